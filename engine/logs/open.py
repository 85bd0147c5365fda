"""Which log the configuration asks for."""

from __future__ import annotations

from pathlib import Path

from engine.clock import NS_PER_MS
from engine.config import LogConfig
from engine.logs import Log


def open_log(config: LogConfig, *, state: str, engine: bool) -> Log:
    """The configured log, not started.

    ``state`` is the state directory: an sqlite path left at its default lies in it. ``engine`` True: this process
    consumes; of those an sqlite file takes one. Producers and readers pass False.
    """
    if config.kind == "kafka":
        from engine.logs.kafka import KafkaLog

        return KafkaLog(
            config.bootstrap,
            first_start=config.first_start,
            security=config.security,
            member=config.member,
            metadata_limit=config.metadata_limit,
            session_timeout_ms=config.session_timeout // NS_PER_MS,
        )
    from engine.logs.sqlite import SqliteLog

    path = config.path if config.path != LogConfig().path else str(Path(state) / "log.db")
    retention_ms = config.retention // NS_PER_MS
    return SqliteLog(
        path,
        engine=engine,
        first_start=config.first_start,
        retention_ms=retention_ms,
        max_bytes=config.max_bytes,
        metadata_limit=config.metadata_limit,
    )
