"""Stage commit (shell): per partition, which records are complete; commits the position up to which all are, and a map
of what is done above it.

In: completions, each of a record whose recipients all ended, and settlements, each of some of a record's recipients;
their receipts are acknowledged. Out: the group's committed position, the first offset that is not complete, with the
map (engine.progress).
Invariant: the committed position never passes a record that is not complete; a commit whose fate is unknown is made
again before any other of its partition.
Never: blocks delivery; a commit that fails is tried again with whatever is complete by then.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Protocol

import structlog

from engine.clock import NS_PER_S, Clock
from engine.counters import Counters
from engine.errors import EngineError, LogUnavailable, RecordRefused, StaleEpoch
from engine.fence import Fence
from engine.logs import Consumer, Partition
from engine.progress import PUT_S, Keep, Note, Progress
from engine.send import Tier
from engine.state.flight import Flight
from engine.state.seen import Seen, Segment
from ext.ledger import Ledger

__all__ = ["Committer", "Ledger", "Source"]

logger = structlog.get_logger("surgetank.commit")
COMMIT_EVERY_S = 0.2
AT_LEAST_EVERY_S = 1.0
SHARE = 4  # at most a fifth of the time is spent on commits, as long as that is often enough
LOOK_EVERY_S = 0.05  # whether it still is


class Source(Protocol):
    """What a committer commits for: one tier."""

    tier: Tier
    keep: Keep
    progress: dict[Partition, Progress]
    consumer: Consumer


class Committer:
    """Commits every tier's progress, the ids seen always first."""

    def __init__(self, seen: Seen, fence: Fence, flight: Flight, counters: Counters, clock: Clock) -> None:
        self.sources: list[Source] = []
        self._finishing = self._finished = False
        self._seen = seen
        self._fence = fence
        self._flight = flight
        self._counters = counters
        self._clock = clock
        self._covered: dict[str, int] = {}  # by group: what its tier had told when its last good commit was begun
        self._unwritten: list[Segment] = []
        self._writing = asyncio.Lock()
        self._committing = [asyncio.Lock() for _ in Tier]

    async def run(self) -> None:
        """Commit what is new, several times a second, until cancelled; the tiers do not wait for each other."""
        async with asyncio.TaskGroup() as tasks:
            for source in self.sources:
                tasks.create_task(self._keep_on(source))

    async def finish(self) -> bool:
        """The last commits, before the groups are left; the first that does not get through is the last one tried."""
        self._finishing = True
        for source in self.sources:
            if not await self.commit(source):
                self._finished = True
        return not self._finished

    async def commit(self, source: Source) -> bool:
        """Commit one tier's progress; False when not all of it got through (it is tried again)."""
        async with self._committing[source.tier]:
            if self._finished:
                return False
            try:
                await self._commit(source)
            except (LogUnavailable, StaleEpoch, RecordRefused, sqlite3.Error) as error:
                self._counters.commit_errors[source.tier] += 1
                logger.warning("commit failed", tier=source.tier.label, error=str(error), disposition=_next(error))
                return False
            return True

    async def _keep_on(self, source: Source) -> None:
        while True:
            started = self._clock.now_ns()
            through = await self.commit(source)
            ended = self._clock.now_ns()
            rest_s = max(COMMIT_EVERY_S, min(SHARE * (ended - started) / NS_PER_S, AT_LEAST_EVERY_S))
            while (left_s := rest_s - (self._clock.now_ns() - ended) / NS_PER_S) > 0:
                await asyncio.sleep(min(left_s, LOOK_EVERY_S))
                if through and self._fence.filling(source.tier):
                    break

    async def _commit(self, source: Source) -> None:
        started, gaps, told = self._clock.now_ns(), self._fence.look(), self._counters.told[source.tier]
        doubts = [(one, one.doubt) for one in source.progress.values() if one.doubt is not None]
        await self._put_through(source, doubts)
        owned = [one for one in source.progress.values() if not one.ledger.stale]
        news = [one for one in owned if one.ledger.dirty]
        if not news and not self._finishing and self._fence.unproven(source.keep.group):
            news = owned[:1]  # to see whether it is still ours
        if news:
            await self._commit_all(source, news)
            self._counters.commit_duration[source.tier].observe(self._clock.now_ns() - started)
        self._fence.proven(source.keep.group, gaps)
        self._covered[source.keep.group] = told
        # What ended may have been of any of the tier's groups: so much is covered by all of them.
        covered = min(self._covered.get(one.keep.group, 0) for one in self.sources if one.tier is source.tier)
        self._counters.committed[source.tier] = max(covered, self._counters.committed[source.tier])
        self._flight.committed(source.tier)

    async def _commit_all(self, source: Source, news: Sequence[Progress]) -> None:
        taken = [(one, one.ledger.snapshot()) for one in news]
        await self._write_seen()
        made = await asyncio.gather(*(one.note(snapshot) for one, snapshot in taken), return_exceptions=True)
        notes = [(one, note) for (one, _), note in zip(taken, made, strict=True) if isinstance(note, Note)]
        await self._put_through(source, notes)
        for failed in made:
            if isinstance(failed, BaseException):
                raise failed

    async def _put_through(self, source: Source, notes: Sequence[tuple[Progress, Note]]) -> None:
        """Commit these; until that is known to have happened, their fate is in doubt."""
        notes = [(one, note) for one, note in notes if not one.ledger.stale]
        if not notes:
            return
        for one, note in notes:
            one.doubt = note
        try:
            await source.consumer.commit({one.ledger.partition: note.position for one, note in notes})
        except RecordRefused as error:
            source.keep.too_long(error)
            for one, note in notes:
                one.doubt = None if note.slot is None else note  # in effect or not, no slot is named
            raise
        for one, note in notes:
            one.committed(note)
        await self._tidy(source, [one for one, _ in notes])

    async def _tidy(self, source: Source, committed: Sequence[Progress]) -> None:
        gone = [record for one in committed for record in one.gone()]
        if not gone:
            return
        try:
            async with asyncio.timeout(PUT_S):
                await source.keep.log.append(gone)
        except (LogUnavailable, TimeoutError) as error:
            logger.warning("old maps stay for now", tier=source.tier.label, error=str(error))
            return
        for one in committed:
            one.forgotten()

    async def _write_seen(self) -> None:
        async with self._writing:
            ledgers = [one.ledger for source in self.sources for one in source.progress.values()]
            opened = [ledger.oldest_ms for ledger in ledgers if ledger.oldest_ms is not None]
            segment = self._seen.take(self._clock.wall_ms(), min(opened, default=None))
            if segment is not None:
                self._unwritten.append(segment)
            while self._unwritten:
                await asyncio.to_thread(self._seen.write, self._unwritten[0])
                self._unwritten.pop(0)


def _next(error: Exception) -> str:
    return error.disposition.value if isinstance(error, EngineError) else "retry"
