"""``surgetank cancel``: a command to every worker, over the control topic."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import uuid4

import click
import uvloop

from engine import wire
from engine.cli.common import config_option, duration, json_option, opened_log, tell
from engine.clock import NS_PER_S, Clock
from engine.config import Config, Duration, load
from engine.errors import Reject
from engine.logs import Chunk, Reader, Record

EXPIRES_MS = 24 * 3_600_000
OTHERS_S = 1.0  # after the first answer, for the other workers'
POLL_RECORDS = 1000


@click.command()
@click.argument("campaign")
@config_option
@click.option("--tenant", metavar="T", help="Only this tenant's sends of the campaign. Default: every tenant's.")
@click.option("--timeout", type=duration, default="10s", show_default=True, help="How long to wait for answers.")
@json_option
@click.pass_context
def cancel(
    ctx: click.Context, campaign: str, config_path: str, tenant: str | None, timeout: Duration, as_json: bool
) -> None:
    """End every waiting recipient of CAMPAIGN. Calls under way are not taken back.

    The command stands for 24 hours: workers that start later obey it too, for sends first seen before it was given.
    Prints how many recipients it ended; exit code 1 when no worker answered in time.

    \b
    Examples:
      surgetank cancel spring-sale -c surgetank.toml
      surgetank cancel spring-sale -c surgetank.toml --tenant shop-7 --json | jq .recipients
    """
    config = load(config_path)
    at = Clock().wall_ms()
    command = wire.Command(
        id=uuid4().hex, command="cancel", tenant=tenant, campaign=campaign, at=at, expires=at + EXPIRES_MS
    )
    try:
        wire.decode_command(wire.encode_command(command)[1])
    except Reject as reject:
        raise click.UsageError(f"campaign and tenant must have 1..128 bytes: {reject.detail}") from reject
    ended = uvloop.run(_cancel(config, command, timeout / NS_PER_S))
    document = {"command": command.id, "workers": dict(ended), "recipients": sum(ended.values())}
    tell(document, _text(ended, campaign, timeout), as_json)
    ctx.exit(0 if ended else 1)


async def _cancel(config: Config, command: wire.Command, timeout_s: float) -> Mapping[str, int]:
    """Recipients ended, by worker; empty when nobody answered."""
    topic = f"{config.log.prefix}.control"
    key, value = wire.encode_command(command)
    async with opened_log(config, uses=[topic]) as log:
        reader = await log.reader([topic], from_end=True)
        try:
            await log.append([Record(topic, value, key)])
            return await _answers(reader, command.id, timeout_s)
        finally:
            await reader.close()


async def _answers(reader: Reader, command: str, timeout_s: float) -> Mapping[str, int]:
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    ended: dict[str, int] = {}
    while (left := until - loop.time()) > 0:
        for chunk in await reader.poll(POLL_RECORDS, min(left, 0.2)):
            for reply in _replies(chunk):
                if reply.reply_to == command:
                    if not ended:
                        until = min(until, loop.time() + OTHERS_S)
                    ended[reply.worker] = reply.recipients
    return ended


def _replies(chunk: Chunk) -> list[wire.Reply]:
    """The answers in a chunk; somebody else's record that is none says nothing to us."""
    found = []
    for key, value in zip(chunk.keys, chunk.values, strict=True):
        if value is not None and key is not None and key.startswith(wire.REPLY_KEY):
            try:
                found.append(wire.decode_reply(value))
            except Reject as reject:
                click.echo(f"surgetank: an answer on {chunk.topic} cannot be read: {reject}", err=True)
    return found


def _text(ended: Mapping[str, int], campaign: str, timeout: Duration) -> str:
    if not ended:
        return (
            f"no worker answered within {timeout}. The command stands: every worker that runs in the next 24 hours "
            f"will cancel what was sent of {campaign} until now."
        )
    workers = f"{len(ended)} worker" + ("s" if len(ended) != 1 else "")
    return f"cancelled {sum(ended.values()):,} recipients of {campaign} ({workers} answered)"
