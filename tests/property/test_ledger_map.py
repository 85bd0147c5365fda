"""The map of what is done: whatever is written comes back, and what is no map is told, never believed."""

from __future__ import annotations

import zlib
from array import array
from base64 import b64decode
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import wire_map
from engine.errors import MapUnreadable
from engine.logs import Partition
from engine.wire_map import Map, Pointer
from ext.ledger import BITSET, MAX_SPAN, RUNS, Ledger

PLACE = Partition("t", 0)
LIMITS = (1024, 4096, 8192)  # characters of metadata
MOST = 8 << 20


def stamp_of(offset: int) -> int:
    return offset * 7 - 1


def opened(start: int, done: list[bool], gaps: frozenset[int] = frozenset()) -> Ledger:
    """``done``: by offset from ``start`` on, but those of ``gaps`` do not exist."""
    ledger = Ledger(PLACE, start, 1)
    offsets = [offset for offset in range(start, start + len(done)) if offset not in gaps]
    ledger.open_many(offsets, [stamp_of(offset) for offset in offsets])
    ledger.complete_many(array("q", [offset for offset in offsets if done[offset - start]]))
    return ledger


def text_of(ledger: Ledger, limit: int = 4096) -> str:
    return wire_map.as_text(wire_map.encode(ledger.snapshot(), b"", wire_map.room_for(limit), MOST))


def restored(text: str, position: int) -> Ledger:
    """A new ledger that knows what ``text`` says."""
    ledger, found = Ledger(PLACE, position, 2), wire_map.decode_text(text, position)
    if found is not None:
        assert isinstance(found, Map)
        ledger.restore(found.stamp_ms, found.codec, found.payload)
    return ledger


def done_of(ledger: Ledger, end: int) -> list[bool]:
    return [ledger.is_done(offset) for offset in range(ledger.position, end)]


# Patterns that are hard for one codec or another, as functions of (offset, random).
PATTERNS: dict[str, Callable[[int, Random], bool]] = {
    "none": lambda _, __: False,
    "all": lambda _, __: True,
    "half": lambda _, random: random.random() < 0.5,
    "few": lambda _, random: random.random() < 0.01,
    "most": lambda _, random: random.random() < 0.99,
    "every other": lambda offset, _: offset % 2 == 1,
    "every seventh": lambda offset, _: offset % 7 != 0,
    "blocks of 64": lambda offset, _: offset // 64 % 2 == 1,
    "runs of 127 and 128": lambda offset, _: offset % 255 < 127,
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_comes_back_at_every_limit(pattern: str, limit: int) -> None:
    random = Random(limit)
    for count in (1, 2, 63, 64, 65, 1000, wire_map.room_for(limit) * 8 - 200, 300_000):
        for start in (0, 61):
            done = [PATTERNS[pattern](offset, random) for offset in range(count)]
            done[0] = False
            ledger = opened(start, done)
            text = text_of(ledger, limit)
            assert done_of(restored(text, ledger.watermark), start + count) == done
            if count <= wire_map.room_for(limit) * 8 - 200:
                assert len(text) <= limit, "a plain bitset fits"


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([0, 5, 2**40]), count=st.integers(1, 700), density=st.floats(0, 1), seed=st.integers(0))
def test_what_is_settled_and_done_comes_back(start: int, count: int, density: float, seed: int) -> None:
    random = Random(seed)
    done = [random.random() < density for _ in range(count)]
    gaps = frozenset(start + n for n in range(count - 1) if random.random() < 0.1)
    ledger = opened(start, done, gaps)
    settled: dict[int, set[int]] = {}
    undone = [offset for offset in range(start, start + count) if not ledger.is_done(offset)]
    for offset in random.sample(undone, len(undone) // 3):
        total = random.choice([2, 64, 65, 10_000, 65_536])
        for _ in range(2):
            some = random.sample(range(total), random.randint(1, min(total, 2000)))
            ledger.settle(offset, total, array("H", some))
            settled.setdefault(offset, set()).update(some)
    position = ledger.snapshot().offset
    again = restored(text_of(ledger, 1 << 20), position)
    for offset in range(position, start + count + 70):
        # A gap behind the last record is not known: nobody was given a record after it.
        if offset < ledger.position:
            assert again.is_done(offset) == ledger.is_done(offset), offset
        assert again.settled(offset) == ledger.settled(offset) == settled.get(offset, set())


@settings(max_examples=200, deadline=None)
@given(count=st.integers(2, 400), density=st.floats(0.1, 0.95), seed=st.integers(0))
def test_a_ledger_goes_on_from_its_map_through_many_restarts(count: int, density: float, seed: int) -> None:
    """However often it is killed, and however little it reads in between: nothing is done again, nothing is lost."""
    random, finished, position, text = Random(seed), set[int](), 0, ""
    for _ in range(60):
        ledger, read = restored(text, position), position
        for _ in range(random.randint(1, 6)):
            more = list(range(read, min(count, read + random.randint(1, 40))))
            read += len(more)
            known = ledger.open_many(more, [stamp_of(offset) for offset in more])
            fresh = [offset for offset in more if not ledger.is_done(offset)]
            assert len(more) - len(fresh) == known
            assert not finished & set(fresh)
            assert set(more) - set(fresh) <= finished
        for offset in range(position, read):
            if not ledger.is_done(offset) and random.random() < density:
                ledger.complete(offset)
                finished.add(offset)
        snapshot = ledger.snapshot()
        assert snapshot.offset >= position
        text, position = text_of(ledger), snapshot.offset
        if position == count:
            break
    assert all(offset in finished for offset in range(position))


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda some: "st1:" + some.hex()))
def test_foreign_metadata_is_no_map(text: str) -> None:
    if text:
        with pytest.raises(MapUnreadable) as told:
            wire_map.decode_text(text, 0)
        assert told.value.reason in {"foreign", "version", "damaged"}
    else:
        assert wire_map.decode_text(text, 0) is None


@pytest.mark.parametrize(("text", "reason"), [("st2:AAAA", "version"), ("st0:", "version"), ("mm2-offset", "foreign")])
def test_another_version_is_told_from_foreign_metadata(text: str, reason: str) -> None:
    with pytest.raises(MapUnreadable) as told:
        wire_map.decode_text(text, 0)
    assert told.value.reason == reason


@settings(deadline=None)
@given(at=st.integers(0, 10**6), change=st.integers(1, 255), cut=st.booleans(), seed=st.integers(0, 100))
def test_damage_anywhere_is_seen(at: int, change: int, cut: bool, seed: int) -> None:
    random = Random(seed)
    ledger = opened(3, [False, *(random.random() < 0.7 for _ in range(500))])
    text = text_of(ledger).encode()
    at %= len(text)
    damaged = text[:at] if cut else text[:at] + bytes([text[at] ^ change]) + text[at + 1 :]
    if damaged:
        with pytest.raises(MapUnreadable):
            wire_map.decode_text(damaged.decode("latin-1"), 3)


def test_a_map_of_another_position_is_not_believed() -> None:
    text = text_of(opened(3, [False, True]))
    with pytest.raises(MapUnreadable) as told:
        wire_map.decode_text(text, 4)
    assert told.value.reason == "other_position"


# Complete as far as they go: the done part, and what follows it.
HEADS = st.sampled_from([b"", b"\2\0\5", b"\3\1\5\1", b"\2\xfe\xff", b"\0"])


@settings(max_examples=500, deadline=None)
@given(
    codec=st.integers(-1, 5),
    payload=st.tuples(HEADS, st.binary(max_size=60)).map(b"".join),
    position=st.sampled_from([0, 63, 64, 2**61]),
)
def test_a_payload_that_says_nonsense_leaves_the_ledger_as_it_was(codec: int, payload: bytes, position: int) -> None:
    ledger = Ledger(PLACE, position, 1)
    try:
        ledger.restore(5, codec, payload)
    except ValueError:
        assert not any(ledger.is_done(offset) for offset in range(position, position + 600))
        ledger.open_many([position, position + 2], [5, 6])
        assert (ledger.watermark, ledger.open, ledger.is_done(position + 1)) == (position, 2, True)
        assert not ledger.refuted
    else:
        # What it says can be said again.
        snapshot = ledger.snapshot()
        again = Ledger(PLACE, position, 1)
        again.restore(5, RUNS, snapshot.payload(RUNS))
        assert again.snapshot().payload(BITSET) == snapshot.payload(BITSET)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def test_a_small_text_cannot_make_a_large_map() -> None:
    for run in (MAX_SPAN + 1, 2**62, 2**63 - 1, 2**63, 2**80):
        runs = varint(1) + varint(run)
        with pytest.raises(ValueError):
            Ledger(PLACE, 0, 1).restore(0, RUNS, varint(len(runs)) + runs)
        with pytest.raises(ValueError):
            Ledger(PLACE, 0, 1).restore(0, RUNS, varint(0) + varint(run) + varint(2) + b"\1")
    many = varint(0) + varint(2**16 + 1)
    with pytest.raises(ValueError, match="recipients"):
        Ledger(PLACE, 0, 1).restore(0, RUNS, varint(0) + varint(1) + varint(2 * len(many)) + many)
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = bomb.compress(bytes(wire_map.MAX_PAYLOAD + 1)) + bomb.flush()
    body = bytes([BITSET | wire_map.DEFLATED, 0, 0]) + packed
    with pytest.raises(MapUnreadable, match="larger"):
        wire_map.decode_text(wire_map.as_text(wire_map.CRC.pack(zlib.crc32(body)) + body), 0)


def test_a_map_of_a_topic_made_anew_is_forgotten() -> None:
    text = text_of(opened(3, [False, True, True, False, True]))
    for offsets, stamps in (([3, 4], [stamp_of(3) + 1, 0]), ([4, 5], [stamp_of(4), 0]), ([9], [stamp_of(3)])):
        ledger = restored(text, 3)
        assert ledger.is_done(4)
        assert ledger.open_many(offsets, stamps) == 0
        assert ledger.refuted
        assert ledger.dirty
        assert not any(ledger.is_done(offset) for offset in offsets)
        assert ledger.open == len(offsets)
    ledger = restored(text, 3)
    assert ledger.open_many([3, 4], [stamp_of(3), 0]) == 1
    assert not ledger.refuted


def test_a_restored_ledger_that_has_read_nothing_says_the_same_again() -> None:
    ledger = opened(3, [False, True, True, False, True])
    ledger.settle(6, 9, array("H", [1, 8]))
    text = text_of(ledger)
    again = restored(text, 3)
    assert not again.dirty
    assert text_of(again) == text


def test_what_does_not_fit_is_cut_and_true_as_far_as_it_goes() -> None:
    random = Random(1)
    done = [False, *(random.random() < 0.5 for _ in range(100_000))]
    ledger = opened(0, done)
    ledger.settle(done.index(False, 90_000), 3, array("H", [1]))
    note = wire_map.encode(ledger.snapshot(), b"", 0, 5_000)
    assert 2_000 < len(note) <= 5_000
    kept = done_of(restored(wire_map.as_text(note), 0), len(done))
    end = len(kept) - kept[::-1].index(True)
    assert kept[:end] == done[:end]
    assert end > 20_000


def test_a_pointer_and_its_record() -> None:
    ledger = opened(7, [False, True])
    snapshot, nonce = ledger.snapshot(), bytes(range(8))
    note = wire_map.encode(snapshot, nonce, 0, MOST)
    pointer = Pointer(nonce, 1, 300, 2**40, wire_map.crc_of(note))
    text = wire_map.as_text(wire_map.encode_pointer(snapshot, pointer))
    assert len(text) < 80
    assert wire_map.decode_text(text, 7) == pointer
    record = wire_map.as_record(note)
    found = wire_map.decode_record(record, 7, pointer.crc)
    assert found.nonce == nonce
    assert wire_map.decode_text(wire_map.as_text(note), 7) == found
    wrong = [
        (record, 8, pointer.crc, "other_position"),
        (record, 7, pointer.crc ^ 1, "mismatch"),
        (record[:-1], 7, pointer.crc, "damaged"),
        (record[:5], 7, pointer.crc, "mismatch"),
        (b"", 7, pointer.crc, "foreign"),
        (b"st9:" + record, 7, pointer.crc, "version"),
        (b64decode(text[4:]), 7, pointer.crc, "foreign"),
    ]
    for value, position, crc, reason in wrong:
        with pytest.raises(MapUnreadable) as told:
            wire_map.decode_record(value, position, crc)
        assert told.value.reason == reason
    itself = wire_map.as_record(wire_map.encode_pointer(snapshot, pointer))
    with pytest.raises(MapUnreadable, match="pointer to a pointer"):
        wire_map.decode_record(itself, 7, wire_map.crc_of(itself[4:]))


def test_settling_needs_an_open_record() -> None:
    ledger = opened(0, [False, True, False])
    for offset in (-1, 1, 3):
        with pytest.raises(ValueError):
            ledger.settle(offset, 2, array("H", [0]))
    with pytest.raises(ValueError, match="position 2 of 2"):
        ledger.settle(0, 2, array("H", [0, 2]))
    assert ledger.settled(0) == frozenset()
    ledger.settle(0, 2, array("H", [1]))
    ledger.complete(0)
    assert ledger.settled(0) == frozenset()
    assert ledger.snapshot().empty
    ledger.stale = True
    ledger.settle(0, 2, array("H", [1]))
