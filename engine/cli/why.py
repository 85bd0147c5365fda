"""``surgetank why``: asks every worker what holds a campaign, or a send, back, and looks at what waits on the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click
import uvloop

from engine.cli.ask import answered, ask, timeout_option
from engine.cli.common import config_option, json_option, opened_log, tell, utc
from engine.clock import Clock
from engine.config import Config, Duration, load
from engine.send import Send
from engine.waiting import Looking, Waits
from engine.wire_control import Hold, Reply, Target

LASTS = Duration.parse("1m")  # a question is nothing to workers that start later
WORDS = {
    "turn": "may go now; others go first",
    "pause": "paused",
    "slot": "no call to spare: `in_flight` are under way",
    "block": "the platform wants a rest",
    "limit": "the limit is used up",
    "grant": "the limit waits for its grant to be written",
    "linger": "waits for more to share a call with",
    "time": "not before its time, or waits for a retry",
    "frequency": "its recipients have had their messages",
    "pacing": "paced: has time, and leaves at the lowest rate that is in time",
}
LATER = {
    "not_before": "not before its time",
    "retry": "waits for a retry",
    "retry_budget": "waits for a retry that the channel's budget did not allow",
    "rest": "the platform wants a rest",
    "frequency": "a recipient has had its messages",
    "pause": "paused",
    "limit": "the limit was used up",
}


@click.command()
@click.argument("campaign", required=False)
@click.option("--send", "send", metavar="ID", help="Of the sends with this id, instead of a campaign.")
@config_option
@click.option("--tenant", metavar="T", help="Only this tenant's sends of the campaign. Default: every tenant's.")
@click.option("--look", type=click.IntRange(0), default=100_000, show_default=True, metavar="N",
              help="Look at so many of the records that wait on later topics, at most.")  # fmt: skip
@timeout_option
@json_option
@click.pass_context
def why(
    ctx: click.Context, campaign: str | None, send: str | None, config_path: str, tenant: str | None, look: int,
    timeout: Duration, as_json: bool,
) -> None:  # fmt: skip
    """Say why what waits of CAMPAIGN has not left yet: what holds it, whose limit, pause or rest that is, until when.

    Each worker answers for what it has; what waits on later topics is looked for there. What a worker has not read yet,
    or is sending now, nobody can explain. Exit code 1 when no worker answered in time.

    \b
    Examples:
      surgetank why spring-sale -c surgetank.toml
      surgetank why --send order-4711 -c surgetank.toml --json
    """
    if (campaign is None) == (send is None):
        raise click.UsageError("name a CAMPAIGN, or a send with --send ID")
    if send is not None and tenant is not None:
        raise click.BadParameter("means nothing with --send", param_hint="--tenant")
    on = None if campaign is None else Target(tenant=tenant, campaign=campaign)
    config = load(config_path)
    id, found = ask(config, timeout, "why", LASTS, on=on, send=send)
    workers = {worker: reply.why or [] for worker, reply in found.items()}

    def wants(one: Send, of: str) -> bool:
        return one.id == send if send is not None else one.campaign == campaign and tenant in (None, of)

    looked = uvloop.run(_look(config, wants, look))
    waits = sorted(looked.found.values(), key=lambda one: (one.next, one.tier, one.channel, one.account, one.tenant))
    document = {"question": id, "workers": workers, "later": {"read": looked.read, "all": looked.all, "waits": waits}}
    tell(document, _text(found, waits, looked, campaign or f"the send {send}", timeout), as_json)
    ctx.exit(0 if found else 1)


async def _look(config: Config, wants: Callable[[Send, str], bool], most: int) -> Looking:
    async with opened_log(config) as log:
        looking = Looking(log, config, wants, Clock().wall_ms(), most)
        await looking.run()
    return looking


def _text(found: Mapping[str, Reply], waits: Sequence[Waits], looked: Looking, what: str, timeout: Duration) -> str:
    lines = [f"{worker}: {line(hold)}" for worker, reply in sorted(found.items()) for hold in reply.why or []]
    lines += [f"on the log: {later_line(one)}" for one in waits]
    if not found:
        lines.append(f"no worker answered within {timeout}")
    elif not lines:
        lines.append(f"nothing of {what} waits ({answered(found)})")
    if not looked.all:
        lines.append(f"more waits on later topics than the {looked.read:,} records looked at (--look)")
    return "\n".join(lines)


def later_line(one: Waits) -> str:
    """What waits on later topics, for people."""
    whose = f"{one.tier}, {one.channel}/{one.account}, tenant {one.tenant}"
    until = f"looked at again {utc(one.next)}" if one.until is None else f"until {utc(one.until)} and later"
    have = f"{one.sends:,} sends, {one.recipients:,} recipients"
    return f"{whose}: {have}: {LATER.get(one.reason, one.reason)}; {until}"


def line(hold: Hold) -> str:
    """One Hold, for people."""
    whose = f"{hold.tier}, {hold.channel}/{hold.account}, tenant {hold.tenant}"
    rate = None if hold.rate is None else f"{hold.rate:.4g} calls/s now"
    facts = [hold.limit, rate, None if hold.on is None else str(hold.on)]
    said = ", ".join(fact for fact in facts if fact)
    about = " about" if hold.held == "pacing" else ""
    until = "" if hold.held == "turn" or hold.until is None else f" until{about} {utc(hold.until)}"
    have = f"{hold.sends:,} sends, {hold.ready:,} recipients ready"
    return f"{whose}: {have}: {WORDS[hold.held]}{f' ({said})' if said else ''}{until}"
