"""``surgetank topics check`` and ``topics create``."""

from __future__ import annotations

from typing import Any

import click
import uvloop

from engine.cli.common import config_option, json_option, opened_log, tell
from engine.config import Config, load
from engine.logs import TopicDifference
from engine.topics import topic_specs


@click.group()
def topics() -> None:
    """Check or create the topics the engine uses."""


@topics.command()
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, config_path: str, as_json: bool) -> None:
    """Say what differs from the topics the configuration asks for. Exit code 1 when something does.

    \b
    Example:
      surgetank topics check -c surgetank.toml
    """
    config = load(config_path)
    differences = uvloop.run(_check(config))
    _tell(config, [], differences, as_json)
    ctx.exit(1 if differences else 0)


@topics.command()
@config_option
@json_option
@click.pass_context
def create(ctx: click.Context, config_path: str, as_json: bool) -> None:
    """Create the topics that are missing. Existing ones are left alone; exit code 1 when one of them differs.

    \b
    Example:
      surgetank topics create -c surgetank.toml
    """
    config = load(config_path)
    created, differences = uvloop.run(_create(config))
    _tell(config, created, differences, as_json)
    ctx.exit(1 if differences else 0)


async def _check(config: Config) -> list[TopicDifference]:
    async with opened_log(config) as log:
        return await log.check_topics(topic_specs(config))


async def _create(config: Config) -> tuple[list[str], list[TopicDifference]]:
    async with opened_log(config) as log:
        wanted = topic_specs(config)
        return await log.create_topics(wanted), await log.check_topics(wanted)


def _tell(config: Config, created: list[str], differences: list[TopicDifference], as_json: bool) -> None:
    document: dict[str, Any] = {
        "ok": not differences,
        "created": created,
        "differences": [difference._asdict() for difference in differences],
    }
    lines = [f"created {name}" for name in created] + [_line(difference) for difference in differences]
    if not differences:
        lines.append(f"ok: {len(topic_specs(config))} topics are as they should be")
    tell(document, "\n".join(lines), as_json)


def _line(difference: TopicDifference) -> str:
    if not difference.found:
        return f"{difference.topic}: missing (`surgetank topics create` makes it)"
    return f"{difference.topic}: {difference.key} is {difference.found}, should be {difference.wanted}"
