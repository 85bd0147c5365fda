"""What the commands of the control topic do in this worker (shell).

In: commands, in the order of the topic. Out: a reply to each.
Invariant: what a command changed is undone when the command expires.
Never: answers for another worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog
from msgspec import UNSET

from engine.cancelled import Standing
from engine.consume import Intake
from engine.dispatch import Dispatcher
from engine.errors import Reject
from engine.limits import Limits
from engine.limits_changed import Changed
from engine.paused import Pauses
from engine.weights import Weights
from engine.why import Why
from engine.wire_control import Command, Reply, Target

logger = structlog.get_logger("surgetank.orders")
EXPIRE_S = 0.2  # how often it is looked whether something has had its time


class Orders:
    """One worker's; ``worker`` is its name in the replies."""

    def __init__(
        self,
        worker: str,
        dispatcher: Dispatcher,
        pauses: Pauses,
        weights: Weights,
        why: Why,
        limits: Limits,
        changed: Changed,
        intakes: Sequence[Intake],
    ) -> None:
        self._limits = limits
        self._changed = changed
        self._weights = weights
        self._worker = worker
        self._why = why
        self._dispatcher = dispatcher
        self._pauses = pauses
        self._intakes = intakes
        self._does: dict[str, Callable[[Command], int]] = {
            "cancel": self._cancel,
            "pause": self._pause,
            "resume": self._resume,
            "limit": self._limit,
            "reweight": self._reweight,
        }

    @property
    def paused(self) -> Collection[Target]:
        """What is paused now."""
        return self._pauses.standing.keys()

    def standing(self) -> dict[str, int]:
        """How many commands of each kind are in force."""
        kinds = {"pause": self._pauses.standing, "limit": self._changed.standing, "weight": self._weights.standing}
        return {kind: len(commands) for kind, commands in kinds.items()}

    def obey(self, command: Command) -> Reply:
        """Do it, as far as it can be done here."""
        now_ms = self._dispatcher.clock.wall_ms()
        if command.command == "why":
            found = self._why.answer(command)
            return Reply(reply_to=command.id, worker=self._worker, why=found, at=now_ms)
        if command.command == "limits":
            return Reply(reply_to=command.id, worker=self._worker, limits=self._limits.uses(), at=now_ms)
        try:
            recipients = self._does[command.command](command)
        except Reject as reject:
            logger.error("a command cannot be obeyed", command=command.command, reason=reject.detail)
            return Reply(reply_to=command.id, worker=self._worker, refused=reject.detail, at=now_ms)
        limits = self._limits.uses() if command.command == "limit" else UNSET
        return Reply(reply_to=command.id, worker=self._worker, recipients=recipients, limits=limits, at=now_ms)

    async def run(self) -> None:
        """Undo what has had its time, until cancelled."""
        while True:
            await asyncio.sleep(EXPIRE_S)
            now_ms = self._dispatcher.clock.wall_ms()
            for target in self._pauses.expire(now_ms):
                logger.info("resumed", target=str(target), reason="the pause has expired", recipients=self._back())
                self._dispatcher.wake()
            if self._changed.expire(now_ms):
                self._dispatcher.wake()
            for target in self._weights.expire(now_ms):
                logger.info("weight restored", target=str(target), reason="its time is over")

    def _cancel(self, command: Command) -> int:
        campaign, tenant = command.campaign or "", command.tenant
        ended = self._dispatcher.cancel(campaign, Standing(tenant, command.at, command.expires))
        ended += sum(intake.end_cancelled() for intake in self._intakes)
        logger.info("campaign cancelled", campaign=campaign, tenant=tenant, recipients=ended)
        return ended

    def _pause(self, command: Command) -> int:
        target = _target(command)
        before = self._paused()
        self._pauses.pause(target, command.expires)
        kept = self._paused() - before
        self._dispatcher.wake()  # what is kept for long waits on the log
        logger.info("paused", target=str(target), recipients=kept, until_ms=command.expires)
        return kept

    def _resume(self, command: Command) -> int:
        target = _target(command)
        before = self._paused()
        self._pauses.resume(target, self._dispatcher.clock.wall_ms())
        freed = before - self._paused() + self._back()
        self._dispatcher.wake()
        logger.info("resumed", target=str(target), recipients=freed)
        return freed

    def _limit(self, command: Command) -> int:
        self._changed.obey(command)
        self._dispatcher.wake()
        return 0

    def _reweight(self, command: Command) -> int:
        target = _target(command)
        if isinstance(command.weight, int):
            self._weights.change(target, command.weight, command.expires)
            logger.warning(
                "weight changed",
                target=str(target),
                weight=command.weight,
                until_ms=command.expires,
                command=command.id,
            )
        else:
            self._weights.restore(target)
            logger.info("weight restored", target=str(target), reason="by command")
        return 0

    def _back(self) -> int:
        """What was moved for a pause that has ended comes back, as far as it was read; how many recipients."""
        return sum(intake.due.resumed() for intake in self._intakes if intake.due is not None)

    def _paused(self) -> int:
        return sum(self._dispatcher.core.stats()["paused"])


def _target(command: Command) -> Target:
    assert isinstance(command.on, Target)  # noqa: S101 - it was decoded
    return command.on
