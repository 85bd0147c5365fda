"""``surgetank config check`` and ``config show``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from engine.cli.common import json_option, tell
from engine.config import Config
from engine.config_file import ConfigProblems, Problem
from engine.config_load import load_with_warnings
from engine.config_show import plain, toml
from engine.shares import Worker, worker_config, workers


@click.group()
def config() -> None:
    """Check a configuration file, or show what it amounts to."""


@config.command()
@click.argument("file")
@json_option
@click.pass_context
def check(ctx: click.Context, file: str, as_json: bool) -> None:
    """Say everything that is wrong with FILE, each with its line and what would be valid.

    Keys that are accepted but have no effect in this version are warned of. Nothing is started or written.

    \b
    Examples:
      surgetank config check surgetank.toml
      surgetank config check surgetank.toml --json | jq '.problems[] | .line'
    """
    try:
        loaded = load_with_warnings(file)
    except ConfigProblems as error:
        document = {"ok": False, "problems": _documents(error.problems), "warnings": []}
        click.echo(msgspec.json.encode(document).decode() if as_json else str(error), err=not as_json)
        ctx.exit(2)
    if not as_json:
        tell_warnings(loaded.warnings)
    document = {"ok": True, "problems": [], "warnings": _documents(loaded.warnings)}
    tell(document, f"{file}: ok: {_summary(loaded.config)}", as_json)


@config.command()
@click.argument("file")
@click.option("--worker", metavar="NAME", help="What one process of [[workers]] runs with: its share of every limit.")
@json_option
def show(file: str, worker: str | None, as_json: bool) -> None:
    """Print the effective configuration: every key, defaults and absolute paths included, secrets as "***".

    \b
    Examples:
      surgetank config show surgetank.toml
      surgetank config show surgetank.toml --json | jq .channels
      surgetank config show surgetank.toml --worker system-1
    """
    config = load_with_warnings(file).config
    shown = plain(config if worker is None else worker_config(config, _worker(config, worker)))
    tell(shown, toml(shown).rstrip("\n"), as_json)


def _worker(config: Config, name: str) -> Worker:
    found = {worker.name: worker for worker in workers(config)}
    if name not in found:
        valid = ", ".join(found) if found else "none, as there are no [[workers]]"
        raise click.BadParameter(f"no worker is called {name!r}; valid: {valid}", param_hint="--worker")
    return found[name]


def tell_warnings(warnings: tuple[Problem, ...]) -> None:
    """Warnings, on standard error."""
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _documents(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [{name: value for name, value in problem._asdict().items() if name != "path"} for problem in problems]


def _summary(config: Config) -> str:
    where = config.log.path if config.log.kind == "sqlite" else config.log.bootstrap
    channels = ", ".join(f"{name} ({channel.driver})" for name, channel in config.channels.items())
    return f"{config.log.kind} log at {where}; channels {channels}"
