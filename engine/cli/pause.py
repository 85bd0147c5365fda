"""``surgetank pause`` and ``surgetank resume``: hold back a part of the traffic, and let it go again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import click

from engine.cli.ask import answered, ask, tell_refusals, timeout_option
from engine.cli.common import config_option, duration, json_option, tell
from engine.config import Config, Duration, load
from engine.send import Tier
from engine.wire_control import Reply, Target

KINDS = ("campaign", "tenant", "account", "channel", "tier")
LONGEST = Duration.parse("365d")


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """KIND, NAME and ``--tenant``, as ``kind``, ``name`` and ``tenant``."""
    command = click.option("--tenant", metavar="T", help="Of a campaign: only this tenant's. Default: every tenant's.")(
        command
    )
    command = click.argument("name")(command)
    return click.argument("kind", type=click.Choice(KINDS))(command)


@click.command()
@target_options
@config_option
@click.option("--for", "lasts", type=duration, default="24h", show_default=True, help="Resumed by itself after this.")
@timeout_option
@json_option
@click.pass_context
def pause(
    ctx: click.Context, kind: str, name: str, tenant: str | None, config_path: str, lasts: Duration, timeout: Duration,
    as_json: bool,
) -> None:  # fmt: skip
    """Hold back everything of a campaign, tenant, account (CHANNEL/ACCOUNT), channel or tier.

    What is queued stays queued, what comes later waits too, calls under way go on, and deadlines and the tier's max_age
    still end what they end. The command stands for --for: workers that start meanwhile obey it. Prints how many
    recipients wait under it now; exit code 1 when no worker answered in time.

    \b
    Examples:
      surgetank pause campaign spring-sale -c surgetank.toml
      surgetank pause account wecom-notice/corp-a -c surgetank.toml --for 30m
    """
    if not 0 < lasts <= LONGEST:
        raise click.BadParameter(f"must be 1ms..{LONGEST}", ctx, param_hint="--for")
    config = load(config_path)
    on = target_of(config, kind, name, tenant)
    id, found = ask(config, timeout, "pause", lasts, on=on)
    text = f"paused {on} for {lasts}: {_count(found):,} recipients wait under it ({answered(found)})"
    if not found:
        text = (
            f"no worker answered within {timeout}. The command stands: every worker that runs within {lasts} "
            f"will hold back {on}."
        )
    _end(ctx, id, found, text, as_json)


@click.command()
@target_options
@config_option
@timeout_option
@json_option
@click.pass_context
def resume(
    ctx: click.Context, kind: str, name: str, tenant: str | None, config_path: str, timeout: Duration, as_json: bool
) -> None:
    """Undo a pause of exactly this campaign, tenant, account (CHANNEL/ACCOUNT), channel or tier.

    What another pause covers stays where it is. Prints how many recipients may leave again; exit code 1 when no worker
    answered in time.

    \b
    Example:
      surgetank resume campaign spring-sale -c surgetank.toml
    """
    config = load(config_path)
    on = target_of(config, kind, name, tenant)
    id, found = ask(config, timeout, "resume", LONGEST, on=on)
    text = f"resumed {on}: {_count(found):,} recipients may leave again ({answered(found)})"
    if not found:
        text = f"no worker answered within {timeout}. The command stands: {on} is paused no more."
    _end(ctx, id, found, text, as_json)


def _count(found: Mapping[str, Reply]) -> int:
    return sum(reply.recipients for reply in found.values())


def _end(ctx: click.Context, id: str, found: Mapping[str, Reply], text: str, as_json: bool) -> None:
    workers = {worker: reply.recipients for worker, reply in found.items()}
    tell({"command": id, "workers": workers, "recipients": _count(found)}, text, as_json)
    ctx.exit(0 if tell_refusals(found) and found else 1)


def target_of(config: Config, kind: str, name: str, tenant: str | None) -> Target:
    """What the words name. Raises BadParameter for what the configuration does not have."""
    if tenant is not None and kind != "campaign":
        raise click.BadParameter(f"means nothing for a {kind}", param_hint="--tenant")
    if kind == "campaign":
        return Target(tenant=tenant, campaign=name)
    if kind == "everything":
        return Target()
    if kind == "tenant":
        return Target(tenant=name)
    if kind == "tier":
        return Target(tier=_one_of("tier", name, [tier.label for tier in Tier]))  # type: ignore[arg-type]
    channel, slash, account = (name, "", "") if kind == "channel" else name.partition("/")
    if kind == "account" and not slash:
        raise click.BadParameter(f"{name!r} names no account: write CHANNEL/ACCOUNT", param_hint="NAME")
    _one_of("channel", channel, list(config.channels))
    if kind == "channel":
        return Target(channel=channel)
    return Target(channel=channel, account=_one_of("account", account, list(config.channels[channel].accounts)))


def _one_of(kind: str, name: str, known: list[str]) -> str:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise click.BadParameter(f"no {kind} {name!r}; {hint}", param_hint="NAME")
    return name
