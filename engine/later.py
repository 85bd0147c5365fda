"""What waits on the log, not in memory (shell): decides it, tier by tier, and has it moved there.

In: how long something must wait, and why. Out: None, or a Wait on a later topic, for engine.mover to make.
Invariant: what may not leave within the horizon, and retries that wait long or were not earned, wait on the log.
What others may take back (a pause, a limit) is looked at again after the longest delay at the latest.
Never: moves what may not be repeated; lets one tier's moves or retries hold up, or pay for, another's.

A later topic holds every record equally long, so that in a partition those due first stand first. What waits longer
goes through several (largest first, so the last step is a short one); engine.later_due takes them in again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from engine.clock import NS_PER_MS, Clock
from engine.config import Config, LaterConfig, Retry
from engine.counters import Counters
from engine.fence import Fence
from engine.logs import Log
from engine.mover import Move, Mover, Owner, Wait
from engine.open_sends import Flow, OpenSend
from engine.retry_budget import RetryBudget
from engine.send import Tier
from engine.turns import Turns
from ext.schedule import PUT_OFF_LIMIT, PUT_OFF_PAUSE, PUT_OFF_REST

__all__ = ["FREQUENCY", "NOT_BEFORE", "PAID", "PAUSE", "REST", "Later", "Move", "Wait"]

# Why something was moved, in headers and metrics.
NOT_BEFORE, RETRY, RETRY_BUDGET, REST, FREQUENCY = "not_before", "retry", "retry_budget", "rest", "frequency"
PAUSE, LIMIT = "pause", "limit"
REASONS = frozenset((NOT_BEFORE, RETRY, RETRY_BUDGET, REST, FREQUENCY, PAUSE, LIMIT))
PUT_OFF = {PUT_OFF_PAUSE: PAUSE, PUT_OFF_REST: REST, PUT_OFF_LIMIT: LIMIT}  # the core's causes
PAID = frozenset((PAUSE, LIMIT))  # its retry, if it is one, was the budget's before that came in its way


class Later:
    """One process's."""

    def __init__(self, log: Log, config: Config, fence: Fence, turns: Turns, counters: Counters, clock: Clock) -> None:
        self._policy: LaterConfig = config.later
        self._movers = {tier: Mover(tier, log, config, fence, turns, counters, clock) for tier in Tier}
        self._retry: Mapping[str, Retry] = {name: channel.retry for name, channel in config.channels.items()}
        # After a crash a record and what was moved of it may both be there: where that may repeat nobody, nobody moves.
        self._stays = frozenset(name for name, channel in config.channels.items() if channel.repeats == "never")
        self._budgets: dict[tuple[str, Tier], RetryBudget] = {}
        self._clock = clock

    def owned_by(self, owner: Owner) -> None:
        """Whom the movers tell."""
        for mover in self._movers.values():
            mover.owner = owner

    # --- who waits where

    @property
    def horizon_ns(self) -> int:
        """What may not leave for longer than this waits on the log."""
        return self._policy.horizon

    def wait(self, channel: str, wait_ns: int, reason: str) -> Wait | None:
        """For what may not leave for so long: None when memory is the place. A ``reason`` nobody knows is no reason."""
        if wait_ns <= self._policy.horizon or channel in self._stays:
            return None
        reason = reason if reason in REASONS else NOT_BEFORE
        return Wait(self._clock.wall_ms() + -(-wait_ns // NS_PER_MS), reason)

    def put_off(self, tier: Tier, cause: int, until_ns: int) -> Wait:
        """For what the core has put off (PUT_OFF_*), until then at least."""
        now_ms, reason = self._clock.wall_ms(), PUT_OFF[cause]
        wait_ms = -(-(until_ns - self._clock.now_ns()) // NS_PER_MS)
        if reason == REST:  # a worker that starts later does not know of it
            return Wait(now_ms + wait_ms, REST)
        longest_ms = self._movers[tier].topics[-1][1]
        return Wait(now_ms + min(wait_ms, longest_ms), reason, binds=False)

    def has_room(self, tier: Tier) -> bool:
        """Whether as much is moved as is to be: False while the log is behind."""
        return self._movers[tier].has_room

    def retry_wait(self, flow: Flow, hop: int, wait_ns: int, count: int) -> Wait | None:
        """For ``count`` recipients of a send (moved ``hop`` times) that are to be called again in ``wait_ns``.

        A retry in memory is paid for from its channel's budget here; one from a later topic when it comes back.
        """
        if flow.channel in self._stays:
            return None
        topics = self._movers[flow.tier].topics
        if wait_ns > self._policy.retries:
            delay_ms = next((ms for _, ms in topics if ms * NS_PER_MS >= wait_ns), 0)
            return Wait(self._clock.wall_ms() + max(delay_ms, wait_ns // NS_PER_MS), RETRY)
        if self.budget(flow.channel, flow.tier).spend(self._clock.now_ns(), count):
            return None
        # Longer each time, as it may be a long outage; but what is urgent is to leave soon after its end.
        _, delay_ms = topics[0 if flow.tier is Tier.SYSTEM else min(hop, len(topics) - 1)]
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
        self._movers[send.flow.tier].move(Move(handle, send, positions, attempts, wait, detail))

    @property
    def refused(self) -> int:
        """Moves the log will never take."""
        return sum(mover.refused for mover in self._movers.values())

    async def run(self) -> None:
        """Move until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for mover in self._movers.values():
                tasks.create_task(mover.run())

    async def flushed(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is moved; False when that takes longer: it stays with its record."""
        try:
            async with asyncio.timeout(timeout_s):
                for mover in self._movers.values():
                    await mover.flushed()
        except TimeoutError:
            return False
        return True
