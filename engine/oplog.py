"""The engine's own log (shell): one line an event on stderr, JSON for machines, coloured text on a terminal.

Everything goes through one handler: structlog's events and those of asyncio, aiokafka, aiohttp and warnings. Each has
``ts`` (ISO, UTC), ``level``, ``event``, ``logger`` and its own fields. No secret is ever written: fields of such a name
are masked, and so is every value of ``secrets`` and every token in an address, wherever in the line they stand.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from engine.config_secrets import MASK, SECRET_NAME

Format = Literal["auto", "json", "console"]
LEVELS = ("debug", "info", "warning", "error", "critical")
SHORTEST_SECRET = 4  # shorter ones would be masked out of the middle of words
IN_ADDRESS = re.compile(r"""([?&][\w-]*(?:secret|passw|token|key|sign)\w*=)[^&\s"'<>]+""", re.IGNORECASE)
NO_SECRET = {"key", "keys"}  # as fields of an event they are those of records and of the configuration
Event = MutableMapping[str, Any]


def set_up(
    level: str = "info", form: Format = "auto", stream: TextIO | None = None, secrets: Iterable[str] = ()
) -> None:
    """Send every logger of the process to ``stream`` (default: stderr). Once, before anything is logged.

    ``form`` auto: console when the stream is a terminal. ``secrets``: values that must not appear.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.StackInfoRenderer(),
        _mask_fields,
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(shared, form == "console" or (form == "auto" and terminal), terminal, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At info aiokafka tells each step of joining a group: eight lines a tier that nobody can act on.
    logging.getLogger("aiokafka").setLevel(max(logging.WARNING, root.level) if root.level > logging.DEBUG else 0)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Renders an event, then masks what is left of secrets in the finished line, tracebacks included."""

    def __init__(
        self, shared: list[structlog.typing.Processor], console: bool, colors: bool, secrets: Iterable[str]
    ) -> None:
        renderer: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
        if console:
            # Plain tracebacks: rich ones show local variables, secrets among them.
            plain = structlog.dev.plain_traceback
            renderer += [structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="ts", exception_formatter=plain)]
        else:
            renderer += [
                structlog.processors.format_exc_info,
                _in_order,
                structlog.processors.JSONRenderer(default=_plain),
            ]
        super().__init__(processors=renderer, foreign_pre_chain=shared)
        self._secrets = _any_of(secrets)

    def format(self, record: logging.LogRecord) -> str:
        line = IN_ADDRESS.sub(rf"\1{MASK}", super().format(record))
        return self._secrets.sub(MASK, line) if self._secrets else line


def _any_of(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """Matches every secret, as it is and as JSON writes it; the longest first, for one may begin with another."""
    spellings = {form for text in secrets if len(text) >= SHORTEST_SECRET for form in (text, json.dumps(text)[1:-1])}
    longest_first = sorted(spellings, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if spellings else None


def _mask_fields(_logger: Any, _method: str, event: Event) -> Event:
    for name in event:
        if name not in NO_SECRET and SECRET_NAME.search(name):
            event[name] = MASK
    return event


def _in_order(_logger: Any, _method: str, event: Event) -> Event:
    """What every line has comes first."""
    return {name: event.get(name) for name in ("ts", "level", "event", "logger")} | dict(event)


def _plain(value: object) -> str:
    """What JSON does not know."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
