"""Commands to every worker, followed on the control topic (shell).

A command stands until it expires, so a worker that starts later obeys it too. A record that cannot be understood is
said in the log and ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from engine import wire_control as wire
from engine.clock import Clock
from engine.errors import Reject
from engine.logs import Chunk, Record

logger = structlog.get_logger("surgetank.control")
ANSWER_WITHIN_MS = 60_000  # nobody waits longer for an answer


class Control:
    """One worker's ear. ``answers``: what is to be appended; the caller empties it.

    ``obey`` does what it can of a command, and answers.
    """

    def __init__(self, topic: str, obey: Callable[[wire.Command], wire.Reply], clock: Clock) -> None:
        self.answers: list[Record] = []
        self._topic = topic
        self._obey = obey
        self._clock = clock

    def take(self, chunk: Chunk) -> None:
        """Obey the commands of a chunk."""
        for offset, key, value in zip(chunk.offsets, chunk.keys, chunk.values, strict=True):
            if value is None or key is None or key.startswith(wire.REPLY_KEY):
                continue
            try:
                self._take(wire.decode_command(value))
            except Reject as reject:
                logger.error("a command cannot be read", offset=offset, key=key, reason=str(reject))

    def _take(self, command: wire.Command) -> None:
        now = self._clock.wall_ms()
        # What undoes a command undoes the one that stands before it on the topic, however old it is.
        if command.expires <= now and not command.undoes:
            return
        reply = self._obey(command)
        if now - command.at <= ANSWER_WITHIN_MS:
            key, value = wire.encode_reply(reply)
            self.answers.append(Record(self._topic, value, key))
