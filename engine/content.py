"""Registered contents and templates, followed on the content topic (shell).

Read to its end before intake starts, then as it grows. A record that cannot be understood is said in the log and
changes nothing: what was registered before stays.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from engine import wire
from engine.drivers import Field, Template
from engine.errors import Reject
from engine.logs import Chunk

logger = structlog.get_logger("surgetank.content")


class Contents:
    """The newest record of each id. ``changed(id, channels)`` is called for each that came after the start."""

    def __init__(self, changed: Callable[[str, set[str]], None]) -> None:
        self.templates: dict[str, Template] = {}
        self._changed = changed

    def take(self, chunk: Chunk) -> None:
        """Apply records in order; a tombstone takes the content away."""
        for offset, key, value in zip(chunk.offsets, chunk.keys, chunk.values, strict=True):
            try:
                self._one(key, value)
            except Reject as reject:
                logger.error("a registered content cannot be read", offset=offset, key=key, reason=str(reject))

    def _one(self, key: bytes | None, value: bytes | None) -> None:
        name = wire.content_id(key)
        before = self.templates.pop(name, None)
        channels = {before.channel} if before else set()
        if value is not None:
            try:
                registered = wire.decode_registered(value)
            except Reject:
                if before is not None:
                    self.templates[name] = before
                raise
            fields = {field: Field(f.required, f.max_chars) for field, f in registered.fields.items()}
            self.templates[name] = Template(name, registered.channel, registered.content, fields)
            channels.add(registered.channel)
        self._changed(name, channels)
