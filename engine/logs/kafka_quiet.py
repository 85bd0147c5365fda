"""aiokafka says the same line many times a second while a broker is away; this lets some of them through."""

from __future__ import annotations

import logging
from time import monotonic

WINDOW_S = 10.0
LINES = 3  # of one kind a window


class Quiet(logging.Filter):
    """At most LINES records of one kind (logger, level, unformatted text) in WINDOW_S; then how many were left out.

    Bounded: the kinds are the lines in aiokafka's source.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}  # kind -> (window's start, lines in it)

    def filter(self, record: logging.LogRecord) -> bool:
        """True: let it through."""
        kind, now = (record.name, record.levelno, str(record.msg)), monotonic()
        start, lines = self._seen.get(kind, (now, 0))
        if now - start >= WINDOW_S:
            if lines > LINES:
                record.msg, record.args = f"{record.getMessage()} ({lines - LINES} more like it)", ()
            start, lines = now, 0
        self._seen[kind] = (start, lines + 1)
        return lines < LINES


_QUIET = Quiet()


def quieten() -> None:
    """Filter every logger of aiokafka (a filter on the parent alone would not see its children's records)."""
    for name, logger in tuple(logging.Logger.manager.loggerDict.items()):
        if name.startswith("aiokafka") and isinstance(logger, logging.Logger):
            logger.addFilter(_QUIET)  # adding it again changes nothing
