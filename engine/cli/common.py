"""What several commands share: options, the opened log, output for people and for scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import msgspec

from engine.config import Config, Duration
from engine.errors import LogUnusable
from engine.logs import Log
from engine.topics import topic_specs

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command, *, required: bool = True) -> Command:
    """``-c FILE``, as ``config_path``."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="FILE",
        required=required,
        envvar="SURGETANK_CONFIG",
        show_envvar=True,
        help="The configuration file.",
    )(command)


def json_option(command: Command) -> Command:
    """``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")(command)


def duration(text: str) -> Duration:
    """A duration as in the configuration, or the command's end with what would be valid."""
    try:
        return Duration.parse(str(text))
    except ValueError:
        raise click.BadParameter(f'{text!r} is not a duration such as "10s" (ns, us, ms, s, m, h, d)') from None


def utc(at_ms: int) -> str:
    """To the second; a time nobody will see is "for ever"."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return "for ever"


@asynccontextmanager
async def opened_log(config: Config, *, uses: Sequence[str] = ()) -> AsyncIterator[Log]:
    """The configured log, for a command beside the engine; the topics it ``uses`` are there.

    Raises LogUnavailable, LogUnusable.
    """
    from engine.logs.open import open_log  # late: --help needs no broker client

    log = open_log(config.log, state=config.state, engine=False)
    try:
        await log.start()
        if uses:
            await _have(log, config, uses)
        yield log
    finally:
        await log.close()


async def _have(log: Log, config: Config, topics: Sequence[str]) -> None:
    """An embedded log gets its topics as the configuration has them; a cluster's are its owner's to make."""
    if config.log.kind == "sqlite":
        await log.create_topics(topic_specs(config))
        return
    wanted = [spec for spec in topic_specs(config) if spec.name in topics]
    missing = [one.topic for one in await log.check_topics(wanted) if one.key == "topic"]
    if missing:
        raise LogUnusable(f"no such topic: {', '.join(missing)} (`surgetank topics create` makes it)")


def tell(document: Any, text: str, as_json: bool) -> None:
    """The result, on standard output."""
    click.echo(msgspec.json.encode(document).decode() if as_json else text)
