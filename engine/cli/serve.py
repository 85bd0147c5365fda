"""``surgetank serve``: one process, or the supervisor of those of [[workers]], or one of these."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Coroutine
from typing import Any, get_args

import click
import structlog
import uvloop

from engine import oplog
from engine.cli.common import config_option
from engine.config import Config
from engine.config_file import ConfigProblems, Problem
from engine.config_load import Loaded, load_with_warnings
from engine.config_secrets import secret_values
from engine.errors import ConfigError, EngineError
from engine.send import Tier
from engine.worker import Order, follow_supervisor, ordered, read_order

logger = structlog.get_logger("surgetank.serve")


def tier_names(text: str) -> tuple[Tier, ...]:
    """Tier names with commas between them, or the command's end with what would be valid."""
    names = [name.strip() for name in text.split(",")]
    labels = [tier.label for tier in Tier]
    if unknown := [name for name in names if name not in labels]:
        raise click.BadParameter(f"no tier is called {unknown[0]!r}; valid are {', '.join(labels)}, with commas")
    return tuple(tier for tier in Tier if tier.label in names)


@click.command()
@config_option
@click.option("--tiers", type=tier_names, help="Serve only these, e.g. system,template. Default: all, or [[workers]].")
@click.option("--log-format", type=click.Choice(get_args(oplog.Format)), default="auto", show_default=True,
              help="auto: console on a terminal, else JSON lines.")  # fmt: skip
@click.option("--log-level", type=click.Choice(oplog.LEVELS), default="info", show_default=True)
@click.option("--worker", hidden=True, help="For the supervisor to give.")
@click.pass_context
def serve(
    ctx: click.Context, config_path: str, tiers: tuple[Tier, ...] | None, log_format: oplog.Format, log_level: str,
    worker: str | None,
) -> None:  # fmt: skip
    """Deliver until SIGTERM or Ctrl-C, then finish what is under way, commit, and exit 0.

    \b
    Where the configuration has [[workers]] (Kafka only), each is a process of its own, started again when it dies;
    --tiers serves with this one process alone, whatever [[workers]] says.

    \b
    Examples:
      surgetank serve -c surgetank.toml
      surgetank serve -c surgetank.toml --tiers system --log-format json
    """
    order = read_order() if worker is not None else None
    loaded = load_with_warnings(config_path, order.config if order else None)
    oplog.set_up(log_level, log_format, secrets=secret_values(loaded.config))
    try:
        if order is not None:
            ctx.exit(_work(loaded.config, order))
        ctx.exit(_whole(loaded, tiers))
    except ConfigError as error:  # seen only when it was tried, such as a port in use
        raise ConfigProblems([loaded.file.problem(error.key, str(error))]) from error


def _whole(loaded: Loaded, tiers: tuple[Tier, ...] | None) -> int:
    config = loaded.config
    supervised = config.workers and config.log.kind == "kafka" and tiers is None
    if supervised:
        structlog.contextvars.bind_contextvars(worker="supervisor")
    for warning in loaded.warnings:
        _warn(warning)
    if supervised:
        from engine.supervise import supervise

        return _run(lambda: supervise(config, loaded.file.text, [sys.executable, *sys.orig_argv[1:]]))
    return _serve(config, tiers or _configured_tiers(config))


def _work(config: Config, order: Order) -> int:
    structlog.contextvars.bind_contextvars(worker=order.worker)
    faulthandler.enable()  # a native crash says where
    follow_supervisor()
    return _serve(*ordered(config, order))


def _serve(config: Config, tiers: tuple[Tier, ...]) -> int:
    from engine import pipeline  # late: the other commands need none of it

    return _run(lambda: pipeline.serve(config, tiers))


def _run(serving: Callable[[], Coroutine[Any, Any, int]]) -> int:
    try:
        return uvloop.run(serving())
    except ConfigError:
        raise
    except EngineError as error:
        logger.critical("cannot go on", error=str(error))
    except OSError as error:
        logger.critical("cannot go on", error=str(error), exc_info=True)
    except Exception:
        logger.critical("crashed", exc_info=True)
    return 1


def _configured_tiers(config: Config) -> tuple[Tier, ...]:
    """What [[workers]] names; all when there are none."""
    named = {name for group in config.workers for name in group.tiers}
    return tuple(tier for tier in Tier if not named or tier.label in named)


def _warn(warning: Problem) -> None:
    logger.warning("configuration", file=warning.file, line=warning.line, key=warning.key, text=warning.text)
