"""What comes back from later topics: when it is due, in its partition's order, and never too much of it in memory."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence

import msgpack

from engine import wire
from engine.admit import Channel
from engine.cancelled import Cancelled, Standing
from engine.clock import Clock
from engine.config import ChannelConfig
from engine.drivers import load
from engine.later_due import KEPT_BYTES, PART, LaterDue
from engine.logs import Chunk, Headers, Partition, Position
from engine.send import Origin, Tier
from engine.turns import Turns

TOPIC = "s.later.basic.1h"
DELAY_MS = 3_600_000
NOW_MS = 1_800_000_000_000
WEBHOOK = load("webhook")("partner", ChannelConfig("webhook", "http://127.0.0.1:1/"))
CHANNELS = {"partner": Channel("partner", 0, WEBHOOK, {"default": 0}, True)}


class Hand(Clock):
    """Set by hand."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def wall_ms(self) -> int:
        return self.ms


class Pausing:
    """A pause of some campaigns."""

    def __init__(self, *campaigns: str) -> None:
        self.resumed_ms = NOW_MS
        self.campaigns = set(campaigns)

    def covers(self, tier: Tier, channel: str, account: str, tenant: str, campaign: str | None) -> bool:
        assert (tier, channel, account, tenant) == (Tier.BASIC, "partner", "default", "default")
        return campaign in self.campaigns


class Nobody:
    """A listener."""

    async def assigned(self, positions: Mapping[Partition, Position], epoch: int) -> None:
        pass

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        pass


class Log:
    """A consumer that has records by partition, and hands them out as long as a partition is not paused."""

    def __init__(self, records: Mapping[int, Sequence[tuple[bytes, Headers]]]) -> None:
        self.records = {number: list(enumerate(of)) for number, of in records.items()}
        self.paused: set[Partition] = set()
        self.asked: list[int] = []

    async def start(self) -> None:
        pass

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        self.asked.append(max_records)
        chunks = []
        for number, records in self.records.items():
            taken = [] if Partition(TOPIC, number) in self.paused else records[:max_records]
            if taken:
                self.records[number] = records[len(taken) :]
                max_records -= len(taken)
                offsets, values = [offset for offset, _ in taken], [value for _, (value, _) in taken]
                headers = [headers for _, (_, headers) in taken]
                nothing: list[bytes | None] = [None] * len(taken)
                chunks.append(Chunk(TOPIC, number, 1, offsets, [NOW_MS] * len(taken), nothing, values, headers))
            if not max_records:
                break
        return chunks

    async def commit(self, positions: Mapping[Partition, Position], timeout_s: float = 5.0) -> None:
        pass

    def pause(self, partitions: Collection[Partition] | None = None) -> None:
        assert partitions is not None
        self.paused |= set(partitions)

    def resume(self, partitions: Collection[Partition] | None = None) -> None:
        assert partitions is not None
        self.paused -= set(partitions)

    def lag(self) -> dict[Partition, int]:
        return {Partition(TOPIC, number): len(records) for number, records in self.records.items()}

    async def renew(self) -> None:
        pass

    async def close(self) -> None:
        pass


def moved(
    back_ms: int, campaign: str = "k", to: int = 1, size: int = 0, reason: str = "not_before"
) -> tuple[bytes, Headers]:
    body = {"id": "i", "channel": "partner", "to": [f"u{n}" for n in range(to)], "campaign": campaign}
    value = msgpack.packb(body | {"content": {"text": "x" * size}})
    history = wire.History(Origin("s.basic", 0, 0), 1, NOW_MS, 0, None, reason, "", back_ms, back_ms)
    return value, wire.headers_of(history)


PARTITIONS = {Partition(TOPIC, number): Position(0) for number in range(10)}


async def due_of(log: Log, clock: Clock, cancelled: Cancelled | None = None, paused: Pausing | None = None) -> LaterDue:
    cancelled = Cancelled() if cancelled is None else cancelled
    due = LaterDue(
        Tier.BASIC, {TOPIC: DELAY_MS}, Nobody(), CHANNELS, cancelled, paused or Pausing(), Turns(clock), clock
    )
    due.consumer = log
    await due.assigned(PARTITIONS, 1)
    return due


async def taken(due: LaterDue, most: int = 100) -> list[tuple[int, int]]:
    """Partition and offset of what it hands out now."""
    chunks = await due.poll(most, 0.01)
    return [(chunk.partition, offset) for chunk in chunks for offset in chunk.offsets]


async def turns_until(condition: Callable[[], bool]) -> int:
    """The loop's turns until it holds."""
    for turns in range(100):
        if condition():
            return turns
        await asyncio.sleep(0)
    raise AssertionError("not within 100 turns")


async def test_nothing_is_handed_out_before_its_time_and_its_partition_is_paused_meanwhile() -> None:
    clock = Hand()
    log = Log({0: [moved(NOW_MS + 10), moved(NOW_MS + 5), moved(NOW_MS + 20)], 1: [moved(NOW_MS)]})
    due = await due_of(log, clock)
    assert await taken(due) == [(1, 0)]
    assert log.paused == {Partition(TOPIC, 0)}
    clock.ms += 9
    assert await taken(due) == [], "the second is due, and stands behind the first"
    clock.ms += 1
    assert await taken(due) == [(0, 0), (0, 1)]
    clock.ms += 10
    assert await taken(due) == [(0, 2)]
    assert (log.paused, due.size) == (set(), 0)


async def test_a_time_nobody_can_have_written_holds_no_longer_than_the_topic_does() -> None:
    clock = Hand()
    due = await due_of(Log({0: [moved(NOW_MS + 10**9)]}), clock)
    assert await taken(due) == []
    clock.ms += DELAY_MS
    assert await taken(due) == [(0, 0)]


async def test_when_much_is_kept_one_record_of_a_partition_is_enough() -> None:
    big = moved(NOW_MS + 1_000, size=KEPT_BYTES // 4)
    log = Log({0: [big] * 4, **{number: [big] * 4 for number in range(1, 6)}})
    due = await due_of(log, Hand())
    assert await taken(due, 4) == []
    assert log.asked[0] == 4
    assert set(log.asked[1:]) == {1}
    assert [len(records) for records in log.records.values()] == [0, 3, 3, 3, 3, 3]
    assert due.size < 3 * KEPT_BYTES
    await due.revoked([Partition(TOPIC, number) for number in range(6)])
    assert due.size == 0


async def test_much_that_is_read_at_once_is_looked_at_a_part_at_a_time() -> None:
    clock, count = Hand(), 3 * PART + 1
    log = Log({0: [moved(NOW_MS + 10 + at % 7) for at in range(count)]})
    due = await due_of(log, clock)
    polling = asyncio.create_task(due.poll(count, 0.01))
    await turns_until(lambda: due.size > 0)
    assert await turns_until(lambda: len(due._kept[Partition(TOPIC, 0)]) == 4) >= 3
    assert await polling == []
    clock.ms += 16
    assert await taken(due, count) == [(0, offset) for offset in range(count)], "in their order, all of them"
    assert due.size == 0


async def test_of_a_partition_taken_away_between_two_parts_nothing_is_kept() -> None:
    due = await due_of(Log({0: [moved(NOW_MS + 10)] * (2 * PART)}), Hand())
    polling = asyncio.create_task(due.poll(2 * PART, 0.01))
    await turns_until(lambda: due.size > 0)
    await due.revoked([Partition(TOPIC, 0)])
    assert await polling == []
    assert (due.size, sum(due.waiting().values())) == (0, 0)


async def test_what_goes_at_once_takes_along_the_parts_before_it() -> None:
    at = NOW_MS + 1_000_000
    records = [moved(at)] * (2 * PART + 1) + [moved(at, "k", reason="pause"), moved(at)]
    due = await due_of(Log({0: records}), Hand(), paused=Pausing())
    assert await taken(due, 1000) == [(0, offset) for offset in range(2 * PART + 2)]


class Pinned(list[bytes | None]):
    """A column that would keep much else in memory."""


async def test_what_is_kept_keeps_nothing_else() -> None:
    value, headers = moved(NOW_MS + 10)
    column = Pinned([value])
    column_of = weakref.ref(column)
    due = await due_of(Log({}), Hand())
    due._keep_part(Partition(TOPIC, 0), Chunk(TOPIC, 0, 1, [0], [NOW_MS], [None], column, [headers]))
    del column
    assert column_of() is None
    assert due.size == len(value)


async def test_a_cancel_lets_out_what_it_covers_and_what_stands_before_it() -> None:
    clock, cancelled, at = Hand(), Cancelled(), NOW_MS + 1_000
    log = Log({0: [moved(at, "other"), moved(at, "k", to=3), moved(at, "other")], 1: [moved(at, "other")]})
    due = await due_of(log, clock, cancelled)
    assert await taken(due) == []
    cancelled.add("k", Standing(None, NOW_MS + 1, NOW_MS + 10**6), NOW_MS)
    assert due.release() == 3
    assert await taken(due) == [(0, 0), (0, 1)]
    assert due.release() == 0
    log.records[1] = [(1, moved(at, "k"))]
    await due.assigned({Partition(TOPIC, 1): Position(1)}, 1)
    log.paused.clear()
    assert await taken(due) == [(1, 1)], "what is read later is let out as it is seen"


async def test_what_was_moved_for_a_pause_that_is_over_goes_at_once() -> None:
    """What is kept of it, what is read later, and nothing else."""
    clock, paused = Hand(), Pausing("k", "l")
    at = NOW_MS + 1_000_000
    first = [moved(at, "l", reason="pause"), moved(at, "k", to=3, reason="pause"), moved(at, "k"), moved(at, "k")]
    log = Log({0: first, 1: [moved(at, "l", reason="limit")]})
    due = await due_of(log, clock, paused=paused)
    assert await taken(due) == []
    assert due.resumed() == 0, "all is paused"
    paused.campaigns = {"l"}
    assert due.resumed() == 3
    assert await taken(due) == [(0, 0), (0, 1)], "with what stands before it"
    paused.campaigns = set()
    log.records[2] = [(0, moved(at, "l", reason="pause")), (1, moved(at, "m"))]
    assert await taken(due) == [(2, 0)]
    paused.resumed_ms = NOW_MS - 600_000
    log.records[3] = [(0, moved(at, "l", reason="pause"))]
    assert await taken(due) == [], "moved long after the last resume: nobody looks"
