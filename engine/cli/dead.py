"""``surgetank dead``: what ended without a way on; look at it, send it again, give it up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import click
import msgspec
import uvloop

from engine import wire
from engine.cli.common import config_option, json_option, opened_log, tell
from engine.clock import Clock
from engine.config import Config, load, tier_policy
from engine.decode import decode
from engine.errors import Reject
from engine.logs import Headers, Log, Partition, Record
from engine.send import REASONS, Send, Tier

POLL_RECORDS = 1_000
BATCH = 500
Command = TypeVar("Command", bound=Callable[..., Any])


class Letter(NamedTuple):
    """A record of the dead topic. ``history``, ``send``: None where they cannot be read."""

    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    history: wire.History | None
    send: Send | None

    @property
    def place(self) -> str:
        """PARTITION:OFFSET on the dead topic."""
        return f"{self.partition}:{self.offset}"

    @property
    def recipients(self) -> int:
        """How many it speaks of; a send that cannot be read counts as one."""
        if self.history is not None and self.history.positions is not None:
            return len(self.history.positions)
        return 1 if self.send is None else len(self.send.to)


class Filter(msgspec.Struct, frozen=True):
    """Which letters are meant; what is None or empty says nothing."""

    places: frozenset[str]
    reason: str | None
    channel: str | None
    tenant: str | None
    campaign: str | None
    tier: str | None
    since_ms: int | None
    until_ms: int | None

    def means(self, letter: Letter, tiers: Mapping[str, str]) -> bool:
        """Whether all of it fits; ``tiers``: the tier of each topic."""
        send, history = letter.send, letter.history
        return (
            (not self.places or letter.place in self.places)
            and (self.reason is None or (history is not None and history.reason == self.reason))
            and (self.channel is None or (send is not None and send.channel == self.channel))
            and (self.tenant is None or (send is not None and self.tenant == send.tenant))
            and (self.campaign is None or (send is not None and self.campaign == send.campaign))
            and (self.tier is None or (history is not None and tiers.get(history.origin.topic) == self.tier))
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
        )

    @property
    def empty(self) -> bool:
        """Whether it means every letter."""
        return not any(msgspec.structs.astuple(self))


def moment(_ctx: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """ISO 8601, in UTC unless it says otherwise -> ms since the epoch."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f'{text!r} is not a time such as "2026-01-31T12:00" (UTC) or with +08:00') from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def filters(command: Command) -> Command:
    """PLACE... and the options that choose letters."""
    for add in (
        click.option("--until", callback=moment, metavar="TIME", help="Ended before this time."),
        click.option("--since", callback=moment, metavar="TIME", help="Ended at this time or later."),
        click.option("--tier", type=click.Choice([tier.label for tier in Tier]), help="Of this tier."),
        click.option("--campaign", metavar="K", help="Of this campaign."),
        click.option("--tenant", metavar="T", help="Of this tenant (as the send names it)."),
        click.option("--channel", metavar="C", help="For this channel."),
        click.option("--reason", metavar="R", help="That ended for this reason."),
        click.argument("places", nargs=-1, metavar="[PLACE]..."),
    ):
        command = add(command)
    return command


def _filter(places: Iterable[str], **of: Any) -> Filter:
    return Filter(frozenset(places), of["reason"], of["channel"], of["tenant"], of["campaign"], of["tier"],
                  of["since"], of["until"])  # fmt: skip


@click.group()
def dead() -> None:
    """What ended without a way on: the dead-letter topic. A letter's PLACE is PARTITION:OFFSET, as `list` shows it."""


@dead.command("list")
@config_option
@filters
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="At most so many; 0: all.")
@json_option
def list_(config_path: str, places: tuple[str, ...], limit: int, as_json: bool, **of: Any) -> None:
    """Show letters, a line each, oldest first per partition; then how many there are for each reason.

    \b
    Examples:
      surgetank dead list -c surgetank.toml --reason recipient_forbidden --since 2026-01-31
      surgetank dead list -c surgetank.toml --campaign spring-sale --json | jq .by_reason
    """
    config = load(config_path)
    shown: list[dict[str, Any]] = []
    by_reason: dict[str, int] = {}

    def see(letter: Letter) -> None:
        reason = letter.history.reason if letter.history else "(headers unreadable)"
        by_reason[reason] = by_reason.get(reason, 0) + 1
        if not limit or len(shown) < limit:
            shown.append(_summary(letter))

    uvloop.run(_each(config, _filter(places, **of), see))
    total = sum(by_reason.values())
    lines = [
        f"{row['place']:>10}  {row['at']}  {row['reason']}  {row['topic']}  {row['channel'] or '-'}  {row['id'] or '-'}"
        f"  {row['recipients']:,} recipients" + (f"  ({row['detail']})" if row["detail"] else "")
        for row in shown
    ]
    lines.append(f"{total:,} letters" + (f", {len(shown):,} shown (--limit)" if len(shown) < total else ""))
    lines += [f"{count:>10,}  {name}" for name, count in sorted(by_reason.items(), key=lambda item: -item[1])]
    tell({"letters": shown, "total": total, "by_reason": by_reason}, "\n".join(lines), as_json)


@dead.command()
@config_option
@click.argument("place")
@json_option
@click.pass_context
def show(ctx: click.Context, config_path: str, place: str, as_json: bool) -> None:
    """Show the letter at PLACE: why it ended, its headers, and the record as it came."""
    found: list[Letter] = []
    config = load(config_path)
    uvloop.run(_each(config, _filter([place], **dict.fromkeys(FIELDS)), found.append))
    if not found:
        click.echo(f"surgetank: no letter at {place} of {config.log.prefix}.dead", err=True)
        ctx.exit(1)
    document = _whole(found[0])
    tell(document, json.dumps(document, indent=2, ensure_ascii=False), as_json)


FIELDS = ("reason", "channel", "tenant", "campaign", "tier", "since", "until")


@dead.command()
@config_option
@filters
@click.option("--all", "everything", is_flag=True, help="Every letter there is.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@json_option
def replay(
    config_path: str, places: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool,
    **of: Any,
) -> None:  # fmt: skip
    """Send letters again, to the topic they came from, for the recipients that ended dead.

    Their age counts from now, their attempts from none; a deadline of their own still holds. The letters stay where
    they are. Replaying one again does nothing while the last replay is under way or has reached somebody; if that ended
    dead too, there is a new letter. Exit code 1 when a letter could not be sent.

    \b
    Examples:
      surgetank dead replay -c surgetank.toml --reason http_401 --since 2026-01-31T08:00 --dry-run
      surgetank dead replay -c surgetank.toml 3:1042 3:1043
    """
    config = load(config_path)
    chosen = _filter(places, **of)
    if chosen.empty and not everything:
        raise click.UsageError("say which: PLACEs, options such as --reason, or --all")
    totals = uvloop.run(_replay(config, chosen, dry_run))
    text = f"{totals['letters']:,} letters for {totals['recipients']:,} recipients " + (
        "would be replayed" if dry_run else "replayed"
    )
    if totals["left"]:
        text += f"; {totals['left']:,} left alone: their headers do not say a topic of this configuration"
    tell({**totals, "dry_run": dry_run}, text, as_json)
    click.get_current_context().exit(1 if totals["left"] else 0)


@dead.command()
@config_option
@click.option("--before", callback=moment, required=True, metavar="TIME", help="Letters that ended before this time.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@json_option
def purge(config_path: str, before: int, dry_run: bool, as_json: bool) -> None:
    """Delete letters for good: on each partition, all up to the first that is not older than --before.

    The embedded log keeps some more: those that were appended together with a younger one.
    """
    totals = uvloop.run(_purge(load(config_path), before, dry_run))
    text = f"{totals['letters']:,} letters " + ("would be deleted" if dry_run else "deleted")
    tell({**totals, "dry_run": dry_run}, text, as_json)


# --- reading


async def _letters(log: Log, topic: str) -> AsyncIterator[Letter]:
    """What stands there now."""
    reader = await log.reader([topic])
    try:
        while not await reader.at_end():
            for chunk in await reader.poll(POLL_RECORDS, 0.2):
                columns = zip(chunk.offsets, chunk.timestamps_ms, chunk.keys, chunk.values, chunk.headers, strict=True)
                for offset, at_ms, key, value, headers in columns:
                    yield Letter(
                        chunk.partition, offset, at_ms, key, value, headers, _history(headers), _decoded(value)
                    )
    finally:
        await reader.close()


def _history(headers: Headers) -> wire.History | None:
    try:
        return wire.history(headers)
    except Reject:
        return None


def _decoded(value: bytes | None) -> Send | None:
    try:
        return decode(value)
    except Reject:
        return None


async def _each(config: Config, chosen: Filter, see: Callable[[Letter], None]) -> None:
    topic, tiers = f"{config.log.prefix}.dead", _tiers(config)
    async with opened_log(config, uses=[topic]) as log:
        async for letter in _letters(log, topic):
            if chosen.means(letter, tiers):
                see(letter)


def _tiers(config: Config) -> dict[str, str]:
    return {topic: tier.label for tier in Tier for topic in tier_policy(config, tier).topics}


# --- what commands do


async def _replay(config: Config, chosen: Filter, dry_run: bool) -> dict[str, int]:
    topic, tiers = f"{config.log.prefix}.dead", _tiers(config)
    totals = {"letters": 0, "recipients": 0, "left": 0}
    records: list[Record] = []
    async with opened_log(config, uses=[topic, *tiers]) as log:
        async for letter in _letters(log, topic):
            if not chosen.means(letter, tiers):
                continue
            if letter.history is None or letter.history.origin.topic not in tiers:
                totals["left"] += 1
                continue
            totals["letters"] += 1
            totals["recipients"] += letter.recipients
            records.append(_again(letter, letter.history))
            if len(records) == BATCH:
                await _append(log, records, dry_run)
        await _append(log, records, dry_run)
    return totals


async def _append(log: Log, records: list[Record], dry_run: bool) -> None:
    if records and not dry_run:
        await log.append(records)
    records.clear()
    await asyncio.sleep(0)


def _again(letter: Letter, history: wire.History) -> Record:
    moved = history._replace(
        hop=history.hop + 1, first_seen_ms=Clock().wall_ms(), attempts=0, reason=wire.REPLAY, detail=""
    )
    headers = wire.with_headers(letter.headers, wire.headers_of(moved))
    return Record(history.origin.topic, letter.value, letter.key, headers)


async def _purge(config: Config, before_ms: int, dry_run: bool) -> dict[str, int]:
    topic = f"{config.log.prefix}.dead"
    ends: dict[Partition, int] = {}
    closed: set[int] = set()
    count = 0
    async with opened_log(config, uses=[topic]) as log:
        async for letter in _letters(log, topic):
            if letter.at_ms >= before_ms:
                closed.add(letter.partition)
            if letter.partition not in closed:
                ends[Partition(topic, letter.partition)] = letter.offset + 1
                count += 1
        if ends and not dry_run:
            await log.trim(ends)
    return {"letters": count}


# --- showing


def _summary(letter: Letter) -> dict[str, Any]:
    history, send = letter.history, letter.send
    return {
        "place": letter.place,
        "at": datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds"),
        "reason": history.reason if history else "(headers unreadable)",
        "detail": history.detail if history else "",
        "topic": history.origin.topic if history else "-",
        "channel": send.channel if send else None,
        "tenant": send.tenant if send else None,
        "campaign": send.campaign if send else None,
        "id": send.id if send else None,
        "recipients": letter.recipients,
        "attempts": history.attempts if history else 0,
    }


def _whole(letter: Letter) -> dict[str, Any]:
    """All that is known of it, as JSON can say it."""
    history, value = letter.history, letter.value
    try:
        record = json.loads(msgspec.json.encode(wire.decode_map(value or b"", "malformed")))
    except Reject:
        record = None
    return {
        **_summary(letter),
        "meaning": REASONS.get(history.reason) if history else None,
        "origin": "{}:{}:{}".format(*history.origin) if history else None,
        "hop": history.hop if history else None,
        "positions": history.positions if history else None,
        "headers": {name: value.decode("utf-8", "replace") for name, value in letter.headers if name != wire.OPEN},
        "record": record,
        "hex": None if record is not None else (value or b"").hex(),
    }
