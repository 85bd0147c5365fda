"""Moves what must wait to one tier's later topics (shell).

In: recipients of open sends, and until when they wait. Out: records on the later topics; when the log has acknowledged
one, and only then, ``moved`` is told, which settles its recipients.
Invariant: from ``move`` until then its recipients stand in ``counters.moving`` and their record is open; a produce that
fails changes nothing and is made again. A process that may have lost its partitions moves nothing (engine.fence): its
next owner has what it would move.
Never: ends anybody, spends an attempt, or waits for another tier's moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import structlog

from engine import wire
from engine.backoff import Backoff
from engine.clock import NS_PER_MS, Clock
from engine.config import Config, later_topics
from engine.counters import Counters
from engine.errors import LogUnavailable, RecordRefused
from engine.fence import Fence
from engine.logs import Log, Record
from engine.open_sends import OpenSend
from engine.send import Tier
from engine.turns import Turns

logger = structlog.get_logger("surgetank.mover")
GATHER_S = 0.005  # what moves within it goes with one append
APPEND_MOVES = 200  # at once: so many at most are written again after an error; 3 ms to note that they are moved
MADE_MOVES = 32  # a piece of work: about 1 ms
DOUBT_S = 0.05  # between two looks at a fence
NEAR_MS = 1_000  # so much less than a topic's delay, or an eighth of it, and it still goes there


class Wait(NamedTuple):
    """What must wait on the log."""

    until_ms: int
    reason: str
    binds: bool = True  # it may not leave before; else it is looked at again then


class Move(NamedTuple):
    """Recipients of one send on their way."""

    handle: int
    send: OpenSend
    positions: Sequence[int]
    attempts: int
    wait: Wait
    detail: str


class Owner(Protocol):
    """Whose sends they are: the dispatcher."""

    def moved(self, move: Move) -> None:
        """It stands on the log."""

    def not_moved(self, move: Move) -> None:
        """It never will: it waits here. (Its partition may be another worker's by now.)"""


class Mover:
    """One tier's. ``move`` only queues, ``run`` appends."""

    def __init__(
        self, tier: Tier, log: Log, config: Config, fence: Fence, turns: Turns, counters: Counters, clock: Clock
    ) -> None:
        self.owner: Owner
        self.topics = list(later_topics(config, tier).items())  # name, delay in ms; ascending
        self.refused = 0  # moves the log will never take
        self._tier = tier
        self._log = log
        self._fence = fence
        self._turns = turns
        self._counters = counters
        self._clock = clock
        self._moves: list[Move] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def has_room(self) -> bool:
        """Whether more than what has to should be moved now."""
        return len(self._moves) < APPEND_MOVES

    def move(self, move: Move) -> None:
        """Put it on the log, as soon as may be. A wait past its deadline ends there, so that it expires in time."""
        deadline_ms = (move.send.deadline_ns - self._clock.offset_ns()) // NS_PER_MS + 1
        if deadline_ms < move.wait.until_ms:
            move = move._replace(wait=move.wait._replace(until_ms=deadline_ms))
        self._counters.moving[self._tier] += len(move.positions)
        self._moves.append(move)
        self._wake.set()
        self._idle.clear()

    async def run(self) -> None:
        """Append until cancelled; what comes while one append is under way goes with the next."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            moves, self._moves = self._moves[:APPEND_MOVES], self._moves[APPEND_MOVES:]
            await self._append(moves)
            if not self._moves:
                self._wake.clear()
                self._idle.set()

    async def flushed(self) -> None:
        """Wait until everything queued so far is moved, or stays here for good."""
        await self._idle.wait()

    async def _append(self, moves: Sequence[Move]) -> None:
        backoff = Backoff(0.1, 5.0)
        while moves := self._ours(moves):
            if self._fence.doubtful(self._tier):
                await asyncio.sleep(DOUBT_S)
                continue
            records = await self._records(moves)
            if self._fence.doubtful(self._tier) or any(move.send.ledger.leaving for move in moves):
                continue
            try:
                await self._log.append(records)
                break
            except LogUnavailable as error:
                # Some may have been written: the second of the same is known by its origin and recipients.
                waits = {"records": len(moves), "error": str(error), "again_in_s": backoff.next_s}
                logger.warning("moves wait for the log", tier=self._tier.label, **waits)
                await backoff.wait()
            except RecordRefused as error:
                await self._without_refused(moves, error)
                return
        for move in moves:  # all of them, before anything else: a commit may follow
            self._moved(move)

    def _ours(self, moves: Sequence[Move]) -> list[Move]:
        """Without those whose partition was taken away meanwhile: the next owner reads them again."""
        ours = [move for move in moves if not move.send.ledger.leaving]
        for move in moves if len(ours) < len(moves) else ():
            if move.send.ledger.leaving:
                self._give_up(move)
        return ours

    async def _without_refused(self, moves: Sequence[Move], error: RecordRefused) -> None:
        """One record that the log will never take must not hold up all others, nor be lost: it waits in memory."""
        if len(moves) > 1:
            for move in moves:
                await self._append([move])
            return
        self.refused += 1
        send = moves[0].send
        logger.critical("the log refuses to move a send; it waits in memory", id=send.id, why=str(error))
        self._give_up(moves[0])

    def _give_up(self, move: Move) -> None:
        self._counters.moving[self._tier] -= len(move.positions)
        self.owner.not_moved(move)

    def _moved(self, move: Move) -> None:
        count = len(move.positions)
        self._counters.moving[self._tier] -= count
        self._counters.move(self._tier, move.wait.reason, count)
        self.owner.moved(move)

    async def _records(self, moves: Sequence[Move]) -> list[Record]:
        records: list[Record] = []
        for first in range(0, len(moves), MADE_MOVES):
            await self._turns.mine(self._tier)
            records += map(self._record, moves[first : first + MADE_MOVES])
        return records

    def _record(self, move: Move) -> Record:
        send, (until_ms, reason, binds), now_ms = move.send, move.wait, self._clock.wall_ms()
        topic, delay_ms = self._step(until_ms - now_ms)
        history = wire.History(
            origin=send.origin,
            hop=wire.hop_of(send.headers) + 1,
            first_seen_ms=send.first_seen_ms,
            attempts=move.attempts,
            positions=None if send.whole(len(move.positions)) else list(move.positions),
            reason=reason,
            detail=move.detail,
            until_ms=until_ms if binds else 0,
            back_ms=min(until_ms, now_ms + delay_ms),
            declined=send.most_declined(move.positions),
        )
        return Record(topic, send.value, send.record_key, wire.with_headers(send.headers, wire.headers_of(history)))

    def _step(self, left_ms: int) -> tuple[str, int]:
        """The topic of the longest delay that is not longer than what is left; the shortest when all are."""
        fit = [step for step in self.topics if step[1] - min(step[1] // 8, NEAR_MS) <= left_ms]
        return fit[-1] if fit else self.topics[0]
