"""Takes in again what was moved to the later topics, when its time has come (shell).

In: chunks of a tier's later topics. Out: the records that are due, to the tier's intake, like those of its own topics.
Invariant: a record is handed out once its time has come, never before, and once under one assignment; the first of a
partition that is not due holds those behind it, which are due hardly earlier, and the partition is paused meanwhile.
What a cancel command covers, or was moved for a pause that is over, waits for nothing: as far as it is kept here it is
handed out at once, with all that stands before it (which, not due, moves on to wait as before).
Never: reads a partition further than what it holds of it, or produces: the record is taken in from where it stands, and
its group's position is what makes that safe.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from engine import wire
from engine.admit import Channel, address
from engine.cancelled import Cancelled
from engine.clock import Clock
from engine.decode import decode
from engine.errors import Reject
from engine.later import PAUSE
from engine.logs import AssignmentListener, Chunk, Consumer, Headers, Partition, Position
from engine.send import Send, Tier
from engine.turns import Turns

LEAST_POLL_S = 0.001
HEARD_MS = 60_000  # so long after one worker others may still move for a pause that is over
PART = 100  # records: some 5 us each
KEPT_BYTES = 32 << 20  # when so much is kept, one record of a partition is enough to know when it is due


class Kept(NamedTuple):
    """A chunk that is not due as a whole. ``back_ms``, ascending: when each record may go, as far as those before it
    let it."""

    chunk: Chunk
    back_ms: list[int]


class Paused(Protocol):
    """The pauses in force."""

    resumed_ms: int  # when one last ended

    def covers(self, tier: Tier, channel: str, account: str, tenant: str, campaign: str | None) -> bool:
        """Whether one covers a send of these."""


class LaterDue:
    """One tier's member over its later topics: a Consumer, and the listener between that and the intake."""

    def __init__(
        self,
        tier: Tier,
        delays_ms: Mapping[str, int],
        listener: AssignmentListener,
        channels: Mapping[str, Channel],
        cancelled: Cancelled,
        paused: Paused,
        turns: Turns,
        clock: Clock,
    ) -> None:
        """``delays_ms``: how long each topic holds a record, at most."""
        self.consumer: Consumer
        self._channels = channels
        self._cancelled = cancelled
        self._paused_by = paused
        self._tier = tier
        self._delays_ms = delays_ms
        self._listener = listener
        self._turns = turns
        self._clock = clock
        self._epochs: dict[Partition, int] = {}  # of what is assigned
        self._kept: dict[Partition, deque[Kept]] = {}
        self._held: set[Partition] = set()  # paused for what is kept of them
        self.size = 0  # bytes of the records kept
        self._paused = False

    # --- the assignment

    async def assigned(self, positions: Mapping[Partition, Position], epoch: int) -> None:
        """See AssignmentListener."""
        self._forget(positions)
        self._epochs.update(dict.fromkeys(positions, epoch))
        await self._listener.assigned(positions, epoch)

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """See AssignmentListener. What is kept of them was not handed out: the next owner reads it."""
        self._forget(partitions)
        await self._listener.revoked(partitions)

    def _forget(self, partitions: Collection[Partition]) -> None:
        for partition in partitions:
            self._epochs.pop(partition, None)
            self.size -= sum(_size(one.chunk) for one in self._kept.pop(partition, ()))
            self._held.discard(partition)

    # --- the consumer

    async def start(self) -> None:
        """See Consumer.start."""
        await self.consumer.start()

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """What is due, or nothing after about ``timeout_s``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            if due := self._take(max_records):
                return due
            left_s = deadline - loop.time()
            if left_s <= 0:
                return []
            most = max_records if self.size < KEPT_BYTES else 1
            await self._keep(await self.consumer.poll(most, min(left_s, self._next_s())))

    async def commit(self, positions: Mapping[Partition, Position], timeout_s: float = 5.0) -> None:
        """See Consumer.commit."""
        await self.consumer.commit(positions, timeout_s)

    def pause(self, partitions: Collection[Partition] | None = None) -> None:
        """See Consumer.pause; of all of them only."""
        self._paused = True
        self.consumer.pause(partitions)

    def resume(self, partitions: Collection[Partition] | None = None) -> None:
        """See Consumer.resume; what is held stays so."""
        self._paused = False
        self.consumer.resume(partitions)
        self.consumer.pause(self._held)

    async def renew(self) -> None:
        """See Consumer.renew."""
        await self.consumer.renew()

    def lag(self) -> dict[Partition, int]:
        """Records not handed out that may be read on: what waits behind one that is held is late for nothing."""
        return {partition: count for partition, count in self.consumer.lag().items() if partition not in self._held}

    def waiting(self) -> dict[Partition, int]:
        """Records not handed out, as last seen."""
        lag = self.consumer.lag()
        for partition, kept in self._kept.items():
            lag[partition] = lag.get(partition, 0) + sum(len(one.chunk.offsets) for one in kept)
        return lag

    async def close(self) -> None:
        """See Consumer.close."""
        await self.consumer.close()

    # --- what is held

    async def _keep(self, chunks: Sequence[Chunk]) -> None:
        piece = 0  # records looked at in this turn
        for read in chunks:
            partition = Partition(read.topic, read.partition)
            for start in range(0, len(read.offsets), PART):
                if piece >= PART:
                    await self._turns.mine(self._tier)
                    piece = 0
                if self._epochs.get(partition) != read.epoch:
                    break  # taken away meanwhile
                part = read.part(slice(start, start + PART))
                self._keep_part(partition, part)
                piece += len(part.offsets)

    def _keep_part(self, partition: Partition, read: Chunk) -> None:
        # As objects: kept for an hour, a few columns would keep all the bytes that were fetched with them.
        chunk = read._replace(keys=[*read.keys], values=[*read.values], headers=[*read.headers])
        # A time that no move of ours can have written must not hold the partition for ever.
        latest = self._clock.wall_ms() + self._delays_ms[chunk.topic]
        backs = (min(wire.back_ms(headers), latest) for headers in chunk.headers)
        kept = self._kept.setdefault(partition, deque())
        # What stands in the parts before it holds it, too.
        kept.append(Kept(chunk, list(accumulate(backs, max, initial=kept[-1].back_ms[-1] if kept else 0))[1:]))
        self.size += _size(chunk)
        if self._cancelled:
            self._release(partition, self._covered, newest=True)
        self._release(partition, self._freed, newest=True)

    def release(self) -> int:
        """A cancel command has come: what it covers goes now; how many recipients that are."""
        return sum(self._release(partition, self._covered) for partition in self._kept) if self._cancelled else 0

    def resumed(self) -> int:
        """A pause is over: what waits for it alone goes now; how many recipients that are."""
        return sum(self._release(partition, self._freed) for partition in self._kept)

    def _release(
        self, partition: Partition, count: Callable[[bytes | None, Headers, int], int], newest: bool = False
    ) -> int:
        """Of what is kept of it, the first ones, up to the last of whom any count. ``newest``: those are in its last
        part or nowhere."""
        found = 0
        for chunk, back_ms in reversed(self._kept[partition]):
            counts = [] if newest and found else [*map(count, chunk.values, chunk.headers, chunk.timestamps_ms)]
            last = len(back_ms) if found else max((at for at, n in enumerate(counts, 1) if n), default=0)
            back_ms[:last] = [0] * last
            found += sum(counts)
            if newest and not found:
                break
        return found

    def _covered(self, value: bytes | None, headers: Headers, stamp_ms: int) -> int:
        """How many recipients of the record a cancel command covers."""
        read = self._read(value, headers)
        if read is None:
            return 0
        send, account, told = read
        seen_ms = stamp_ms if told is None else min(told.first_seen_ms, stamp_ms)
        tenant = send.tenant or account
        if send.campaign is None or not self._cancelled.covers(send.campaign, tenant, seen_ms, self._clock.wall_ms()):
            return 0
        return _open(send, told)

    def _freed(self, value: bytes | None, headers: Headers, stamp_ms: int) -> int:
        """How many recipients the record has that were moved for a pause, and no pause covers any more."""
        if stamp_ms > self._paused_by.resumed_ms + HEARD_MS or wire.reason(headers) != PAUSE:
            return 0
        read = self._read(value, headers)
        if read is None:
            return 0
        send, account, told = read
        tenant = send.tenant or account
        if self._paused_by.covers(self._tier, send.channel, account, tenant, send.campaign):
            return 0
        return _open(send, told)

    def _read(self, value: bytes | None, headers: Headers) -> tuple[Send, str, wire.History | None] | None:
        """The send, its account and its way here; None: intake will say what is wrong with it."""
        try:
            send, told = decode(value), wire.history(headers)
            _, account = address(send, self._channels)
        except Reject:
            return None
        return send, account, told

    def _take(self, max_records: int) -> list[Chunk]:
        if self._paused or not self._kept:
            return []
        now_ms, due = self._clock.wall_ms(), list[Chunk]()
        for partition in list(self._kept):
            kept = self._kept[partition]
            while kept and max_records and kept[0].back_ms[0] <= now_ms:
                chunk, rest = _cut(kept.popleft(), now_ms, max_records)
                due.append(chunk)
                self.size -= _size(chunk)
                max_records -= len(chunk.offsets)
                if rest is not None:
                    kept.appendleft(rest)
            if not kept:
                del self._kept[partition]
        self._hold()
        return due

    def _hold(self) -> None:
        """Pause what something is kept of, and nothing else."""
        held = set(self._kept)
        if begin := held - self._held:
            self.consumer.pause(begin)
        if end := self._held - held:
            self.consumer.resume(end)
        self._held = held

    def _next_s(self) -> float:
        """Until the first of what is held is due."""
        first = min((kept[0].back_ms[0] for kept in self._kept.values()), default=None)
        return (
            float("inf") if first is None or self._paused else max((first - self._clock.wall_ms()) / 1000, LEAST_POLL_S)
        )


def _open(send: Send, told: wire.History | None) -> int:
    return len(send.to) if told is None or told.positions is None else len(told.positions)


def _size(chunk: Chunk) -> int:
    return sum(len(value or b"") for value in chunk.values)


def _cut(kept: Kept, now_ms: int, most: int) -> tuple[Chunk, Kept | None]:
    """The records that are due, ``most`` at most, and the others."""
    chunk, back_ms = kept
    n = min(bisect_right(back_ms, now_ms), most)
    if n == len(back_ms):
        return chunk, None
    return chunk.part(slice(n)), Kept(chunk.part(slice(n, None)), back_ms[n:])
