"""The compiled table of ids seen against a dict, and its hash against the vectors SipHash's authors give."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ext.seen import FREED, SeenTable, siphash

KEYS = st.integers(0, 40).map(lambda n: struct.pack("<QQ", n % 3, n))  # few parts, so that entries collide


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, "a3817f04ba25a8e66df67214c7550293"), (1, "da87c1d86b99af44347659119b22fc45")],
)
def test_siphash_128(length: int, expected: str) -> None:
    assert siphash(bytes(range(16)), bytes(range(length))).hex() == expected


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=100), st.binary(max_size=100))
def test_different_texts_have_different_hashes(secret: bytes, one: bytes, other: bytes) -> None:
    assert (siphash(secret, one) == siphash(secret, other)) == (one == other)


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 expected"):
        SeenTable(b"short")
    with pytest.raises(ValueError, match="16 expected"):
        SeenTable(b"k" * 16).claim(b"short", 0, 0, 0)


class Table(RuleBasedStateMachine):
    """Claims, frees, segments."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SeenTable(b"s" * 16)
        self.model: dict[bytes, tuple[int, int, int, int]] = {}  # place, hop, offset, segment
        self.segments: dict[int, bytes] = {}
        self.segment = 0
        self.fresh = b""

    @rule(key=KEYS, place=st.integers(0, 1), hop=st.integers(0, 2), offset=st.integers(0, 3))
    def claim(self, key: bytes, place: int, hop: int, offset: int) -> None:
        taken = self.model.get(key)
        same = taken is not None and (taken[0], taken[2]) == (place, offset)
        redelivery = same and taken is not None and hop == taken[1]
        moved = same and taken is not None and hop > taken[1]
        if taken is None or moved:
            self.model[key] = (place, hop, offset, self.segment)
            self.fresh += struct.pack("<16sIIq", key, place, hop, offset)
        ours = taken is None or moved or redelivery
        assert self.table.claim(key, place, hop, offset) == (None if ours or taken is None else taken[:3])

    @rule(key=KEYS, place=st.integers(0, 1), offset=st.integers(0, 3))
    def free(self, key: bytes, place: int, offset: int) -> None:
        taken = self.model.get(key)
        holds = taken is not None and (taken[0], taken[2]) == (place, offset)
        if holds:
            del self.model[key]
            self.fresh += struct.pack("<16sIIq", key, place, 0, FREED)
        assert self.table.free(key, place, offset) == holds

    @rule()
    def take(self) -> None:
        assert self.table.take() == self.fresh
        if self.fresh:
            self.segments[self.segment] = self.fresh
            self.segment += 1
        self.fresh = b""

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if not self.segments:
            return
        number = min(self.segments)
        gone = [key for key, entry in self.model.items() if entry[3] == number]
        assert self.table.forget(number, self.segments.pop(number)) == len(gone)
        for key in gone:
            del self.model[key]

    @rule()
    def restart(self) -> None:
        self.take()
        self.table = SeenTable(b"s" * 16)
        self.segment = 0
        for number, entries in self.segments.items():
            self.table.replay(number, entries)
            self.segment = number + 1

    @invariant()
    def same_size(self) -> None:
        assert len(self.table) == len(self.model)


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_a_large_table_grows_and_shrinks() -> None:
    table = SeenTable(b"s" * 16)
    keys = [siphash(b"x" * 16, b"%d" % n) for n in range(100_000)]
    for n, key in enumerate(keys):
        assert table.claim(key, 1, 0, n) is None
    assert len(table) == 100_000
    assert all(table.claim(key, 2, 0, n) == (1, 0, n) for n, key in enumerate(keys))
    for n, key in enumerate(keys[:-5]):
        assert table.free(key, 1, n)
    assert [table.claim(key, 2, 0, 0) for key in keys[-5:]] == [(1, 0, n) for n in range(99_995, 100_000)]
