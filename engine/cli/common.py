"""What several commands share: options, the opened log, output for people and for scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click
import msgspec

from engine.config import Config, Duration
from engine.logs import Log

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    """``-c FILE``, as ``config_path``."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="FILE",
        required=True,
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


@asynccontextmanager
async def opened_log(config: Config) -> AsyncIterator[Log]:
    """The configured log, for a command beside the engine. Raises LogUnavailable, LogUnusable."""
    from engine.logs.open import open_log  # late: --help needs no broker client

    log = open_log(config.log, state=config.state, engine=False)
    try:
        await log.start()
        yield log
    finally:
        await log.close()


def tell(document: Any, text: str, as_json: bool) -> None:
    """The result, on standard output."""
    click.echo(msgspec.json.encode(document).decode() if as_json else text)
