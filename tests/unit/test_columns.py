"""Sends into the core and batches out of it: what was put in comes out, whatever the ids look like."""

from __future__ import annotations

import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commit import Ledger
from engine.drivers import Prepared
from engine.drivers._checks import joined
from engine.logs import Partition
from engine.open_sends import OpenSend, OpenSends
from engine.send import Origin, Tier
from engine.wire import NO_META
from ext.columns import Batch, Columns
from ext.schedule import NEVER, Core

IDS = st.lists(
    st.text(min_size=1, max_size=30).filter(lambda text: 0 < len(text.encode("utf-8", "replace")) <= 128),
    min_size=1,
    max_size=8,
    unique=True,
)


class Bench:
    """A core with one channel, and sends in it."""

    def __init__(self, cap: int = 100) -> None:
        self.core = Core()
        self.opens = OpenSends()
        self.columns = Columns()
        self.core.add_account(self.core.add_channel(8, 0, cap))

    def add(
        self, id: str, to: list[str], tier: Tier = Tier.SYSTEM, attempt: int = 0, not_before: int = 0, offset: int = 0
    ) -> int:
        flow = self.opens.flow(tier, "c", "a", 0, "t", None)
        content = self.opens.content_by_raw("c", b"r") or self.opens.content("c", b"r", Prepared(b"k", b"b"))
        value = msgpack.packb({"id": id, "channel": "c", "to": to, "content": {}})
        send = OpenSend(
            id=id, origin=Origin("t", 0, offset), flow=flow, content=content, ledger=Ledger(Partition("t", 0), 0, 1),
            offset=0, key=id.encode().ljust(16, b"."), total=len(to), left=len(to), first_seen_ms=0, pushed_ns=0,
            due_ns=0, deadline_ns=NEVER, linger_ns=0, meta=NO_META, record_key=None, value=value, headers=(), data={},
        )  # fmt: skip
        handle = self.opens.add(send)
        self.columns.add(handle, send, attempt, not_before, list(range(len(to))), [id.encode() for id in to])
        return handle

    def batches(self, now_ns: int = 1) -> list[Batch]:
        self.columns.push(self.core, now_ns)
        popped = self.core.pop_batches(now_ns, 1000)
        return [Batch(popped, number, self.opens, now_ns) for number in range(popped.count)]


@given(st.lists(IDS.map(lambda ids: [id for id in ids if id.isprintable()] or ["u"]), min_size=1, max_size=5))
def test_what_goes_in_comes_out(recipients: list[list[str]]) -> None:
    bench = Bench()
    handles = [bench.add(f"i{n}", to) for n, to in enumerate(recipients)]
    wanted = {(handles[n], at): id for n, to in enumerate(recipients) for at, id in enumerate(to)}
    found: dict[tuple[int, int], str] = {}
    for batch in bench.batches():
        assert batch.sends == [bench.opens[handle] for handle in batch.handles]
        assert set(batch.attempts) == {0}
        assert (batch.tier, batch.channel, batch.flow.channel, batch.popped_ns) == (Tier.SYSTEM, 0, "c", 1)
        found.update(zip(zip(batch.handles, batch.positions, strict=True), batch.ids, strict=True))
        assert [*map(batch.handle_of, range(len(batch)))] == batch.handles
        assert [*map(batch.position_of, range(len(batch)))] == batch.positions
        with pytest.raises(IndexError):
            batch.handle_of(len(batch))
        with pytest.raises(IndexError):
            batch.position_of(-1)
    assert found == wanted


def test_several_batches_of_one_pop_keep_their_own_ids() -> None:
    bench = Bench(cap=2)
    bench.add("i", ["a", "王", "bb", "李四", "c"])
    assert [list(batch.ids) for batch in bench.batches()] == [["a", "王"], ["bb", "李四"], ["c"]]


@given(IDS)
def test_ids_in_a_json_string(ids: list[str]) -> None:
    bench = Bench()
    bench.add("i", ids)
    (batch,) = bench.batches()
    assert json.loads(b'["%b"]' % joined(batch.ids, b'","')) == ids
    escaped = any(json.dumps(id, ensure_ascii=False) != f'"{id}"' for id in ids)
    assert (batch.ids.joined(b"|") is None) == escaped


def test_ids_are_a_sequence() -> None:
    bench = Bench()
    bench.add("i", ["a", "王"])
    (batch,) = bench.batches()
    assert (len(batch.ids), batch.ids[0], batch.ids[-1]) == (2, "a", "王")
    for at in (2, -3):
        with pytest.raises(IndexError, match=f"{at} of 2 ids"):
            batch.ids[at]


def test_after_a_push_the_columns_are_empty() -> None:
    bench = Bench()
    bench.add("i", ["a"])
    assert len(bench.batches()) == 1
    assert bench.batches() == []


def test_a_later_attempt_keeps_its_number_and_its_time() -> None:
    bench = Bench()
    bench.add("i", ["a"], attempt=3, not_before=10_000_000)
    assert bench.batches(1) == []
    (batch,) = bench.batches(30_000_000)
    assert list(batch.attempts) == [3]


def test_the_name_tells_recipients_apart_and_nothing_else() -> None:
    def name(*sends: tuple[str, list[str]], cap: int = 100, tier: Tier = Tier.SYSTEM, attempt: int = 0) -> str:
        bench = Bench(cap)
        for id, to in sends:
            bench.add(id, to, tier, attempt)
        return bench.batches()[0].name()

    whole = name(("i", ["a", "b"]))
    assert name(("i", ["a", "b"]), attempt=2) == whole, "a repeat is known as one"
    others = [name(("j", ["a", "b"])), name(("i", ["a", "b"]), cap=1), name(("i", ["a", "b"]), ("j", ["c"]))]
    assert len({whole, *others}) == 4


def test_the_name_tells_sends_of_one_id_apart() -> None:
    """An id is free again when nobody was accepted: the same key with another body is refused."""

    def name(offset: int) -> str:
        bench = Bench()
        bench.add("i", ["a"], offset=offset)
        return bench.batches()[0].name()

    assert name(0) == name(0)
    assert name(0) != name(1)


def test_whoever_was_declined_goes_under_another_name() -> None:
    """A platform that knows names would answer the old one as before, for ever."""
    bench = Bench()
    send = bench.opens[bench.add("i", ["a", "b"])]
    (batch,) = bench.batches()
    names = [batch.name()]
    for positions in ([1], [0, 1], [1], [0]):
        send.decline(positions)
        names.append(batch.name())
    assert len({*names}) == 5
    assert batch.name() == names[-1]  # an unknown effect changes nothing
    assert (send.most_declined([0]), send.most_declined([0, 1])) == (2, 3)


def test_rows_are_left_out_of_every_column() -> None:
    bench = Bench()
    bench.add("i", ["a", "b", "c", "d"])
    (batch,) = bench.batches()
    batch.without([0, 2])
    assert (list(batch.ids), batch.positions) == (["b", "d"], [1, 3])
    assert len(batch) == len(batch.handles) == len(batch.sends) == len(batch.attempts) == 2
