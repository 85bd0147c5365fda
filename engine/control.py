"""Commands to every worker, followed on the control topic (shell).

A command stands until it expires, so a worker that starts later obeys it too; the answer says how many recipients it
ended here. A record that cannot be understood is said in the log and ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from engine import wire
from engine.clock import Clock
from engine.errors import Reject
from engine.logs import Chunk, Record

logger = structlog.get_logger("surgetank.control")
ANSWER_WITHIN_MS = 60_000  # nobody waits longer for an answer


class Control:
    """One worker's ear. ``answers``: what is to be appended; the caller empties it.

    ``cancel`` ends what it can of what the command covers, and says how many recipients that were.
    """

    def __init__(self, topic: str, worker: str, cancel: Callable[[wire.Command], int], clock: Clock) -> None:
        self.answers: list[Record] = []
        self._topic = topic
        self._worker = worker
        self._cancel = cancel
        self._clock = clock

    def take(self, chunk: Chunk) -> None:
        """Obey the commands of a chunk."""
        for offset, key, value in zip(chunk.offsets, chunk.keys, chunk.values, strict=True):
            if value is None or key is None or key.startswith(b"reply/"):
                continue
            try:
                self._obey(wire.decode_command(value))
            except Reject as reject:
                logger.error("a command cannot be read", offset=offset, key=key, reason=str(reject))

    def _obey(self, command: wire.Command) -> None:
        now = self._clock.wall_ms()
        if command.expires <= now:
            return
        ended = self._cancel(command)
        logger.info("campaign cancelled", campaign=command.campaign, tenant=command.tenant, recipients=ended)
        if now - command.at <= ANSWER_WITHIN_MS:
            key, value = wire.encode_reply(command.id, self._worker, ended, now)
            self.answers.append(Record(self._topic, value, key))
