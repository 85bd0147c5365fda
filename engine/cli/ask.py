"""What commands to the workers share: a record on the control topic, and the replies to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import click
import uvloop
from msgspec import UNSET

from engine import wire_control as wire
from engine.cli.common import duration, opened_log
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.config import Config, Duration
from engine.errors import Reject
from engine.logs import Chunk, Reader, Record

OTHERS_S = 1.0  # after the first answer, for the other workers'
POLL_RECORDS = 1000


def timeout_option(command: Callable[..., None]) -> Callable[..., None]:
    """``--timeout``, as ``timeout``."""
    return click.option(
        "--timeout", type=duration, default="10s", show_default=True, help="How long to wait for answers."
    )(command)


def ask(
    config: Config,
    timeout: Duration,
    command: str,
    lasts: Duration,
    *,
    tenant: str | None = None,
    campaign: str | None = None,
    on: wire.Target | None = None,
    send: str | None = None,
    **more: Any,
) -> tuple[str, Mapping[str, wire.Reply]]:
    """Give every worker a command that stands so long; ``more``: other keys of it. Returns its id, and the replies that
    came in time, by worker.

    Raises UsageError for a name that no command can carry.
    """
    at = Clock().wall_ms()
    made = wire.Command(
        id=uuid4().hex,
        command=command,
        tenant=tenant,
        campaign=UNSET if campaign is None else campaign,
        on=UNSET if on is None else on,
        send=UNSET if send is None else send,
        at=at,
        expires=at + lasts // NS_PER_MS,
        **more,
    )
    try:
        wire.decode_command(wire.encode_command(made)[1])
    except Reject as reject:
        raise click.UsageError(f"a name must have 1..128 bytes: {reject.detail}") from reject
    return made.id, uvloop.run(replies(config, made, timeout / NS_PER_S))


async def replies(config: Config, command: wire.Command, timeout_s: float) -> Mapping[str, wire.Reply]:
    """By worker; empty when nobody answered."""
    topic = f"{config.log.prefix}.control"
    key, value = wire.encode_command(command)
    async with opened_log(config, uses=[topic]) as log:
        reader = await log.reader([topic], from_end=True)
        try:
            await log.append([Record(topic, value, key)])
            found = await _collect(reader, command.id, timeout_s)
            if command.command in wire.QUESTIONS:  # nobody needs them again
                keys = [key, *(wire.encode_reply(reply)[0] for reply in found.values())]
                await log.append([Record(topic, None, key) for key in keys])
            return found
        finally:
            await reader.close()


async def _collect(reader: Reader, command: str, timeout_s: float) -> Mapping[str, wire.Reply]:
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    found: dict[str, wire.Reply] = {}
    while (left := until - loop.time()) > 0:
        for chunk in await reader.poll(POLL_RECORDS, min(left, 0.2)):
            for reply in _replies(chunk):
                if reply.reply_to == command:
                    if not found:
                        until = min(until, loop.time() + OTHERS_S)
                    found[reply.worker] = reply
    return found


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


def answered(found: Mapping[str, wire.Reply]) -> str:
    """ "2 workers answered"."""
    return f"{len(found)} worker{'s' if len(found) != 1 else ''} answered"


def tell_refusals(found: Mapping[str, wire.Reply]) -> bool:
    """Say on standard error which workers could not obey; True: none."""
    refusals = [(worker, reply.refused) for worker, reply in found.items() if reply.refused]
    for worker, why in refusals:
        click.echo(f"surgetank: {worker} cannot: {why}", err=True)
    return not refusals
