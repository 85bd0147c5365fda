"""Stage commit (shell): per partition, which records are complete; commits the position up to which all are.

In: completions (offset), each of a record whose recipients all ended and whose receipts are acknowledged.
Out: the group's committed position: the first offset that is not complete.
Invariant: the committed position never passes a record that is not complete.
Never: blocks delivery; a commit that fails is tried again with whatever is complete by then.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Protocol

import structlog

from engine.clock import Clock
from engine.counters import Counters
from engine.errors import EngineError, LogUnavailable, StaleEpoch
from engine.logs import Consumer, Partition, Position
from engine.send import Tier
from engine.state.seen import Seen, Segment
from ext.ledger import Ledger

__all__ = ["Committer", "Ledger", "Source"]

logger = structlog.get_logger("surgetank.commit")
COMMIT_EVERY_S = 0.2


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
