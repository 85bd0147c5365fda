"""``surgetank cancel``: a command to every worker, over the control topic."""

from __future__ import annotations

from collections.abc import Mapping

import click

from engine.cli.ask import answered, ask, timeout_option
from engine.cli.common import config_option, json_option, tell
from engine.config import Duration, load

LASTS = Duration.parse("24h")


@click.command()
@click.argument("campaign")
@config_option
@click.option("--tenant", metavar="T", help="Only this tenant's sends of the campaign. Default: every tenant's.")
@timeout_option
@json_option
@click.pass_context
def cancel(
    ctx: click.Context, campaign: str, config_path: str, tenant: str | None, timeout: Duration, as_json: bool
) -> None:
    """End every waiting recipient of CAMPAIGN. Calls under way are not taken back.

    What waits on later topics ends at once as far as a worker has read it, and is counted; the rest ends as it comes
    up, at the latest when it is due on its topic, within the hour.
    The command stands for 24 hours: workers that start later obey it too, for sends first seen before it was given.
    Prints how many recipients it ended; exit code 1 when no worker answered in time.

    \b
    Examples:
      surgetank cancel spring-sale -c surgetank.toml
      surgetank cancel spring-sale -c surgetank.toml --tenant shop-7 --json | jq .recipients
    """
    id, found = ask(load(config_path), timeout, "cancel", LASTS, tenant=tenant, campaign=campaign)
    ended = {worker: reply.recipients for worker, reply in found.items()}
    document = {"command": id, "workers": ended, "recipients": sum(ended.values())}
    tell(document, _text(ended, answered(found), campaign, timeout), as_json)
    ctx.exit(0 if ended else 1)


def _text(ended: Mapping[str, int], who: str, campaign: str, timeout: Duration) -> str:
    if not ended:
        return (
            f"no worker answered within {timeout}. The command stands: every worker that runs in the next 24 hours "
            f"will cancel what was sent of {campaign} until now."
        )
    return f"cancelled {sum(ended.values()):,} recipients of {campaign} ({who})"
