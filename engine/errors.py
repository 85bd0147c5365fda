"""One root error, and a leaf for each thing a caller may have to do.

Callers branch on ``disposition``, never on the text.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Disposition(Enum):
    """What the one who catches the error must do with the work at hand."""

    RETRY = "retry"  # the same again later may succeed
    DROP = "drop"  # the work is no longer ours: forget it, it is safe elsewhere
    DEAD_LETTER = "dead_letter"  # this work can never succeed: keep it on the dead topic
    STOP = "stop"  # the process cannot go on


class EngineError(Exception):
    """Root of every error surgetank raises on purpose."""

    disposition: ClassVar[Disposition] = Disposition.STOP


class ConfigError(EngineError):
    """The configuration is wrong; nothing was started. Exit code 2.

    ``key`` is the path of the key at fault, e.g. ("channels", "partner", "batch"); the loader adds file and line.
    """

    disposition = Disposition.STOP

    def __init__(self, message: str, key: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.key = key


class Reject(EngineError):
    """A send that can never be delivered: ``reason`` is one of ``engine.send.REASONS``."""

    disposition = Disposition.DEAD_LETTER

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class LogUnavailable(EngineError):
    """The log (broker, file) did not answer; nothing is known to be lost."""

    disposition = Disposition.RETRY


class LogUnusable(EngineError):
    """The log can never be used as it is: foreign or damaged file, wrong schema, held by another engine."""

    disposition = Disposition.STOP


class StaleEpoch(EngineError):
    """The partition was taken away since the work began; its new owner does it again."""

    disposition = Disposition.DROP


class PlatformUnavailable(EngineError):
    """The platform, or its token endpoint, did not answer usefully."""

    disposition = Disposition.RETRY


class PlatformRefused(EngineError):
    """The platform refuses us (credentials, permissions): no retry helps until somebody acts."""

    disposition = Disposition.DEAD_LETTER


class RecordRefused(EngineError):
    """The log will never take this record: too large, no such partition, no key on a compacted topic."""

    disposition = Disposition.DEAD_LETTER


class MapUnreadable(EngineError):
    """A commit's map of what is done cannot be used: its records are read and done again, which is safe.

    ``reason``: see docs/operations.md (Progress).
    """

    disposition = Disposition.DROP

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
