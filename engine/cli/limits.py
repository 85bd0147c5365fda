"""``surgetank limits``: asks every worker what it has used of each limit."""

from __future__ import annotations

import click

from engine.cli.ask import ask, timeout_option
from engine.cli.common import config_option, json_option, tell, utc
from engine.config import Duration, load
from engine.wire_control import LimitUse

LASTS = Duration.parse("1m")  # a question is nothing to workers that start later


@click.command()
@config_option
@timeout_option
@json_option
@click.pass_context
def limits(ctx: click.Context, config_path: str, timeout: Duration, as_json: bool) -> None:
    """Show what is used of every limit in the window that ends now, or the calendar period, worker by worker.

    Calls under way count too. A worker that shares its limits with others shows its share. Exit code 1 when no worker
    answered in time.

    \b
    Example:
      surgetank limits -c surgetank.toml --json
    """
    id, found = ask(load(config_path), timeout, "limits", LASTS)
    workers = {worker: reply.limits or [] for worker, reply in found.items()}
    lines = [f"{worker}: {line(use)}" for worker, uses in sorted(workers.items()) for use in uses]
    text = "\n".join(lines) or ("no limits" if found else f"no worker answered within {timeout}")
    tell({"question": id, "workers": workers}, text, as_json)
    ctx.exit(0 if found else 1)


def line(use: LimitUse) -> str:
    """One limit, for people."""
    full = "" if not use.full else f"; full until {'a call ends' if use.until is None else utc(use.until)}"
    return f"{use.on}: {use.limit}: {use.used:,} used, {use.in_flight:,} in flight, of {use.number:,}{full}"
