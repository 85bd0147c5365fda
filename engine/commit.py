"""Stage commit (shell): per partition, which records are complete; commits the position up to which all are.

In: completions (offset), each of a record whose recipients all ended and whose receipts are acknowledged.
Out: the group's committed position: the first offset that is not complete.
Invariant: the committed position never passes a record that is not complete.
Never: blocks delivery; a commit that fails is tried again with whatever is complete by then.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from engine.clock import Clock
from engine.counters import Counters
from engine.errors import EngineError, LogUnavailable, StaleEpoch
from engine.logs import Consumer, Partition, Position
from engine.send import Tier
from engine.state.seen import Seen, Segment

logger = structlog.get_logger("surgetank.commit")
COMMIT_EVERY_S = 0.2


class Ledger:
    """One partition under one assignment: what was read and is not complete. Offsets ascend; gaps count as complete."""

    __slots__ = ("_done", "_open", "_stamps", "committed", "epoch", "partition", "position", "stale")

    def __init__(self, partition: Partition, position: int, epoch: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self.position = position  # the next offset to read
        self.committed = position
        self.stale = False  # taken away: completions no longer count
        self._open: deque[int] = deque()
        self._stamps: deque[int] = deque()  # timestamps_ms of _open
        self._done: set[int] = set()

    def open_many(self, offsets: Sequence[int], timestamps_ms: Iterable[int]) -> None:
        """Records read, in order."""
        self._open.extend(offsets)
        self._stamps.extend(timestamps_ms)
        self.position = offsets[-1] + 1

    def complete(self, offset: int) -> None:
        """The record is done with. Each offset at most once. Cost: O(1) amortised."""
        self._done.add(offset)
        opened = self._open
        while opened and opened[0] in self._done:
            self._done.remove(opened.popleft())
            self._stamps.popleft()

    def complete_many(self, offsets: Iterable[int]) -> None:
        """``complete`` for each."""
        for offset in offsets:
            self.complete(offset)

    @property
    def watermark(self) -> int:
        """The first offset that is not complete."""
        return self._open[0] if self._open else self.position

    @property
    def oldest_ms(self) -> int | None:
        """Timestamp of the record at the watermark; None when nothing is open."""
        return self._stamps[0] if self._stamps else None

    @property
    def uncommitted(self) -> int:
        """Records read and not covered by the last commit."""
        return self.position - self.committed


class Source(Protocol):
    """What a committer commits for."""

    tier: Tier
    ledgers: dict[Partition, Ledger]
    consumer: Consumer


class Committer:
    """Commits every tier's positions, the ids seen always first."""

    def __init__(self, seen: Seen, counters: Counters, clock: Clock) -> None:
        self.sources: list[Source] = []
        self._seen = seen
        self._counters = counters
        self._clock = clock
        self._unwritten: list[Segment] = []
        self._lock = asyncio.Lock()
        self._finished = False

    async def run(self) -> None:
        """Commit what is new, several times a second, until cancelled."""
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            for source in self.sources:
                await self.commit(source)

    async def finish(self) -> bool:
        """The last commits, before the groups are left; the first that does not get through is the last one tried."""
        for source in self.sources:
            if not await self.commit(source):
                self._finished = True
        return not self._finished

    async def commit(self, source: Source) -> bool:
        """Commit one tier's watermarks; False when it did not get through (it is tried again)."""
        async with self._lock:
            if self._finished:
                return False
            dirty = [ledger for ledger in source.ledgers.values() if ledger.watermark != ledger.committed]
            if not dirty:
                return True
            positions = {ledger.partition: Position(ledger.watermark) for ledger in dirty}
            started = self._clock.now_ns()
            try:
                await self._write_seen()
                await source.consumer.commit(positions)
            except (LogUnavailable, StaleEpoch, sqlite3.Error) as error:
                self._counters.commit_errors[source.tier] += 1
                logger.warning("commit failed", tier=source.tier.label, error=str(error), disposition=_next(error))
                return False
            self._counters.commit_duration[source.tier].observe(self._clock.now_ns() - started)
            for ledger in dirty:
                ledger.committed = positions[ledger.partition].offset
            return True

    async def _write_seen(self) -> None:
        ledgers = [ledger for source in self.sources for ledger in source.ledgers.values()]
        opened = [ledger.oldest_ms for ledger in ledgers if ledger.oldest_ms is not None]
        segment = self._seen.take(self._clock.wall_ms(), min(opened, default=None))
        if segment is not None:
            self._unwritten.append(segment)
        while self._unwritten:
            await asyncio.to_thread(self._seen.write, self._unwritten[0])
            self._unwritten.pop(0)


def _next(error: Exception) -> str:
    return error.disposition.value if isinstance(error, EngineError) else "retry"
