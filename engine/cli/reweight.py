"""``surgetank reweight``: gives a tenant, campaign or tier another weight for a time."""

from __future__ import annotations

from typing import Any

import click

from engine.cli.ask import answered, ask, tell_refusals, timeout_option
from engine.cli.common import config_option, duration, json_option, tell
from engine.cli.pause import LONGEST, target_of
from engine.config import Duration, load


@click.command()
@click.argument("kind", type=click.Choice(("tenant", "campaign", "tier")))
@click.argument("name")
@click.argument("weight", type=click.IntRange(1, 1000), required=False)
@click.option("--reset", is_flag=True, help="Instead of a WEIGHT: as configured again, at once.")
@click.option("--tenant", metavar="T", help="Of a campaign: only this tenant's. Default: every tenant's.")
@config_option
@click.option("--for", "lasts", type=duration, default="24h", show_default=True, help="Then it is as configured again.")
@timeout_option
@json_option
@click.pass_context
def reweight(
    ctx: click.Context, kind: str, name: str, weight: int | None, reset: bool, tenant: str | None, config_path: str,
    lasts: Duration, timeout: Duration, as_json: bool,
) -> None:  # fmt: skip
    """Give a tenant, campaign or tier (template, basic) the WEIGHT 1..1000 for a time, in every worker.

    Among those that wait beside it, each has a share by its weight (1 where nothing is said): a tenant of its account,
    a campaign of its tenant, template beside basic. It shows where they compete: below the ceiling a paced tier goes
    by due time. Exit code 1 when no worker answered in time, or one cannot obey.

    \b
    Examples:
      surgetank reweight tenant shop-7 5 --for 2h -c surgetank.toml
      surgetank reweight campaign spring-sale --reset -c surgetank.toml
    """
    if (weight is None) != reset:
        raise click.UsageError("give either a WEIGHT or --reset")
    if not 0 < lasts <= LONGEST:
        raise click.BadParameter(f"must be 1ms..{LONGEST}", ctx, param_hint="--for")
    config = load(config_path)
    on = target_of(config, kind, name, tenant)
    if on.tier == "system":
        raise click.BadParameter("system has no weight: it always goes first; there are template, basic", ctx)
    new: dict[str, Any] = {} if weight is None else {"weight": weight}
    id, found = ask(config, timeout, "reweight", LONGEST if reset else lasts, on=on, **new)
    said = f"{on} has its configured weight" if weight is None else f"{on} has the weight {weight} for {lasts}"
    text = (
        f"{said} ({answered(found)})" if found else f"no worker answered within {timeout}. The command stands: {said}."
    )
    tell({"command": id, "workers": sorted(found)}, text, as_json)
    ctx.exit(0 if tell_refusals(found) and found else 1)
