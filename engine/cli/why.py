"""``surgetank why``: asks every worker what holds a campaign, or a send, back."""

from __future__ import annotations

from collections.abc import Mapping

import click

from engine.cli.ask import answered, ask, timeout_option
from engine.cli.common import config_option, json_option, tell, utc
from engine.config import Duration, load
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
    "pacing": "paced: has time, and leaves at the lowest rate that is in time",
}


@click.command()
@click.argument("campaign", required=False)
@click.option("--send", "send", metavar="ID", help="Of the sends with this id, instead of a campaign.")
@config_option
@click.option("--tenant", metavar="T", help="Only this tenant's sends of the campaign. Default: every tenant's.")
@timeout_option
@json_option
@click.pass_context
def why(
    ctx: click.Context, campaign: str | None, send: str | None, config_path: str, tenant: str | None,
    timeout: Duration, as_json: bool,
) -> None:  # fmt: skip
    """Say why what waits of CAMPAIGN has not left yet: what holds it, whose limit, pause or rest that is, until when.

    Each worker answers for what it has; what a worker has not read yet, or is sending now, nobody can explain. Exit
    code 1 when no worker answered in time.

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
    id, found = ask(load(config_path), timeout, "why", LASTS, on=on, send=send)
    workers = {worker: reply.why or [] for worker, reply in found.items()}
    document = {"question": id, "workers": workers}
    tell(document, _text(found, campaign or f"the send {send}", timeout), as_json)
    ctx.exit(0 if found else 1)


def _text(found: Mapping[str, Reply], what: str, timeout: Duration) -> str:
    if not found:
        return f"no worker answered within {timeout}"
    lines = [f"{worker}: {line(hold)}" for worker, reply in sorted(found.items()) for hold in reply.why or []]
    return "\n".join(lines) or f"nothing of {what} waits ({answered(found)})"


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
