"""What cannot leave soon waits on the log, not in memory (shell): moves it to its tier's later topics.

In: recipients of open sends, and until when they must wait. Out: records on the later topics; when the log has
acknowledged one, and only then, ``moved`` is told, which settles its recipients.
Invariant: from ``move`` until then its recipients stand in ``counters.moving`` and their record is open; a produce that
fails changes nothing and is made again.
Never: ends anybody, or spends an attempt.

A later topic holds every record equally long, so that in a partition those due first stand first. What waits longer
goes through several (largest first, so the last step is a short one); engine.later_due takes them in again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from engine import wire
from engine.backoff import Backoff
from engine.clock import NS_PER_MS, Clock
from engine.config import Config, LaterConfig, Retry, later_topics
from engine.counters import Counters
from engine.errors import LogUnavailable, RecordRefused
from engine.logs import Log, Record
from engine.open_sends import Flow, OpenSend
from engine.retry_budget import RetryBudget
from engine.send import Tier

logger = structlog.get_logger("surgetank.later")
GATHER_S = 0.005  # what moves within it goes with one append
APPEND_MOVES = 1_000  # at once: so many at most are written again after an error
NEAR_MS = 1_000  # so much less than a topic's delay, or an eighth of it, and it still goes there
# Why something was moved, in headers and metrics.
NOT_BEFORE, RETRY, RETRY_BUDGET, REST, FREQUENCY = "not_before", "retry", "retry_budget", "rest", "frequency"
REASONS = frozenset((NOT_BEFORE, RETRY, RETRY_BUDGET, REST, FREQUENCY))


class Wait(NamedTuple):
    """What must wait on the log."""

    until_ms: int
    reason: str


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


class Later:
    """One process's. ``wait`` decides, ``move`` only queues, ``run`` appends."""

    def __init__(self, log: Log, config: Config, counters: Counters, clock: Clock) -> None:
        self.owner: Owner
        self.refused = 0  # moves the log will never take
        self._log = log
        self._policy: LaterConfig = config.later
        self._topics = {tier: list(later_topics(config, tier).items()) for tier in Tier}
        self._retry: Mapping[str, Retry] = {name: channel.retry for name, channel in config.channels.items()}
        self._budgets: dict[tuple[str, Tier], RetryBudget] = {}
        self._counters = counters
        self._clock = clock
        self._moves: list[Move] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- who waits where

    @property
    def horizon_ns(self) -> int:
        """What may not leave for longer than this waits on the log."""
        return self._policy.horizon

    def wait(self, wait_ns: int, reason: str) -> Wait | None:
        """For what may not leave for so long: None when memory is the place. A ``reason`` nobody knows is no reason."""
        if wait_ns <= self._policy.horizon:
            return None
        reason = reason if reason in REASONS else NOT_BEFORE
        return Wait(self._clock.wall_ms() + -(-wait_ns // NS_PER_MS), reason)

    def retry_wait(self, flow: Flow, hop: int, wait_ns: int, count: int) -> Wait | None:
        """For ``count`` recipients of a send (moved ``hop`` times) that are to be called again in ``wait_ns``.

        A retry in memory is paid for from its channel's budget here; one from a later topic when it comes back.
        """
        if wait_ns > self._policy.retries:
            delay_ms = next((ms for _, ms in self._topics[flow.tier] if ms * NS_PER_MS >= wait_ns), 0)
            return Wait(self._clock.wall_ms() + max(delay_ms, wait_ns // NS_PER_MS), RETRY)
        if self.budget(flow.channel, flow.tier).spend(self._clock.now_ns(), count):
            return None
        topics = self._topics[flow.tier]
        _, delay_ms = topics[min(hop + 1, len(topics) - 1)]  # longer each time: it may be a long outage
        return Wait(self._clock.wall_ms() + delay_ms, RETRY_BUDGET)

    def budget(self, channel: str, tier: Tier) -> RetryBudget:
        """Of this tier on this channel."""
        budget = self._budgets.get((channel, tier))
        if budget is None:
            retry = self._retry[channel]
            budget = RetryBudget(retry.budget_percent, retry.budget_per_s, self._clock.now_ns())
            self._budgets[channel, tier] = budget
        return budget

    @property
    def tokens(self) -> dict[tuple[str, str], float]:
        """What may be retried now, by channel and tier."""
        now_ns = self._clock.now_ns()
        return {(channel, tier.label): budget.tokens(now_ns) for (channel, tier), budget in self._budgets.items()}

    # --- moving

    def move(
        self, handle: int, send: OpenSend, positions: Sequence[int], attempts: int, wait: Wait, detail: str = ""
    ) -> None:
        """These recipients of the send, of whom so many calls were made, are to wait on the log."""
        deadline_ms = (send.deadline_ns - self._clock.offset_ns()) // NS_PER_MS + 1
        wait = wait._replace(until_ms=min(wait.until_ms, deadline_ms))  # to expire in time
        self._counters.moving[send.flow.tier] += len(positions)
        self._moves.append(Move(handle, send, positions, attempts, wait, detail))
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

    async def flushed(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is moved; False when that takes longer: it stays with its record."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _append(self, moves: Sequence[Move]) -> None:
        backoff = Backoff(0.1, 5.0)
        while moves := self._ours(moves):
            try:
                await self._log.append([self._record(move) for move in moves])
                break
            except LogUnavailable as error:
                # Some may have been written: the second of the same is known by its origin and recipients.
                waits = {"records": len(moves), "error": str(error), "again_in_s": backoff.next_s}
                logger.warning("moves wait for the log", **waits)
                await backoff.wait()
            except RecordRefused as error:
                await self._without_refused(moves, error)
                return
        self._moved(moves)

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
        self._counters.moving[move.send.flow.tier] -= len(move.positions)
        self.owner.not_moved(move)

    def _moved(self, moves: Sequence[Move]) -> None:
        for move in moves:
            tier, count = move.send.flow.tier, len(move.positions)
            self._counters.moving[tier] -= count
            self._counters.moved[tier, move.wait.reason] += count
            self.owner.moved(move)

    def _record(self, move: Move) -> Record:
        send, (until_ms, reason), now_ms = move.send, move.wait, self._clock.wall_ms()
        topic, delay_ms = self._step(send.flow.tier, until_ms - now_ms)
        history = wire.History(
            origin=send.origin,
            hop=wire.hop_of(send.headers) + 1,
            first_seen_ms=send.first_seen_ms,
            attempts=move.attempts,
            positions=None if send.whole(len(move.positions)) else list(move.positions),
            reason=reason,
            detail=move.detail,
            until_ms=until_ms,
            back_ms=min(until_ms, now_ms + delay_ms),
        )
        return Record(topic, send.value, send.record_key, wire.with_headers(send.headers, wire.headers_of(history)))

    def _step(self, tier: Tier, left_ms: int) -> tuple[str, int]:
        """The topic of the longest delay that is not longer than what is left; the shortest when all are."""
        topics = self._topics[tier]
        fit = [step for step in topics if step[1] - min(step[1] // 8, NEAR_MS) <= left_ms]
        return fit[-1] if fit else topics[0]
