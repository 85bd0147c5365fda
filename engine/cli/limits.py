"""``surgetank limits``: what every worker has used of each limit. ``set`` and ``reset`` change one for a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import click

from engine.cli.ask import answered, ask, tell_refusals, timeout_option
from engine.cli.common import config_option, duration, json_option, tell, utc
from engine.cli.pause import LONGEST, target_of
from engine.config import Config, Duration, load
from engine.errors import Reject
from engine.limits_changed import rule_of
from engine.wire_control import LimitUse, Reply, Target, Window

LASTS = Duration.parse("1m")  # a question is nothing to workers that start later
KINDS = ("everything", "tier", "channel", "account", "tenant")


@click.group(invoke_without_command=True)
@partial(config_option, required=False)
@timeout_option
@json_option
@click.pass_context
def limits(ctx: click.Context, config_path: str | None, timeout: Duration, as_json: bool) -> None:
    """Show what is used of every limit in the window that ends now, or the calendar period, worker by worker.

    Calls under way count too. A worker that shares its limits with others shows its share. Exit code 1 when no worker
    answered in time.

    \b
    Examples:
      surgetank limits -c surgetank.toml --json
      surgetank limits set channel wecom-notice --calls 50 --per 1s --for 2h -c surgetank.toml
    """
    if ctx.invoked_subcommand is not None:
        return
    if config_path is None:
        raise click.UsageError("Missing option '-c' / '--config'.")
    id, found = ask(load(config_path), timeout, "limits", LASTS)
    workers = {worker: reply.limits or [] for worker, reply in found.items()}
    lines = [f"{worker}: {line(use)}" for worker, uses in sorted(workers.items()) for use in uses]
    text = "\n".join(lines) or ("no limits" if found else f"no worker answered within {timeout}")
    tell({"question": id, "workers": workers}, text, as_json)
    ctx.exit(0 if found else 1)


def scope_options(command: Callable[..., None]) -> Callable[..., None]:
    """KIND, NAME, ``--per`` and ``--zone``."""
    command = click.option("--zone", help="Of a limit by the calendar: its time zone, e.g. Asia/Shanghai.")(command)
    command = click.option("--per", required=True, help="The window's length, as in the configuration, e.g. 1s or 1d.")(
        command
    )
    command = click.argument("name", required=False)(command)
    return click.argument("kind", type=click.Choice(KINDS))(command)


@limits.command("set")
@scope_options
@click.option("--calls", type=click.IntRange(1, 10**9), help="Calls in any window, of all workers together.")
@click.option("--recipients", type=click.IntRange(1, 10**12), help="Recipients in any window; this or --calls.")
@config_option
@click.option("--for", "lasts", type=duration, default="24h", show_default=True, help="Then it is as configured again.")
@timeout_option
@json_option
@click.pass_context
def set_(
    ctx: click.Context, kind: str, name: str | None, per: str, zone: str | None, calls: int | None,
    recipients: int | None, config_path: str, lasts: Duration, timeout: Duration, as_json: bool,
) -> None:  # fmt: skip
    """Give a limit another number for a time, in every worker; each has its share of it.

    Of everything, a tier, channel, account (CHANNEL/ACCOUNT) or tenant; --per (and --zone) say which of its limits. One
    that it does not have is added for that time. What was used of it counts on. The command stands for --for: workers
    that start meanwhile obey it. Exit code 1 when no worker answered in time, or one cannot obey.

    \b
    Examples:
      surgetank limits set channel wecom-notice --calls 50 --per 1s --for 2h -c surgetank.toml
      surgetank limits set everything --calls 500 --per 1m -c surgetank.toml
    """
    if (calls is None) == (recipients is None):
        raise click.UsageError("give either --calls N or --recipients N")
    if not 0 < lasts <= LONGEST:
        raise click.BadParameter(f"must be 1ms..{LONGEST}", ctx, param_hint="--for")
    config, number = load(config_path), calls or recipients or 0
    on, window = _scope(config, kind, name), _window("calls" if calls else "recipients", per, zone)
    id, found = ask(config, timeout, "limit", lasts, on=on, window=window, number=number)
    stands = f"The command stands: for {lasts} every worker that runs keeps to {number:,} {window}."
    _end(ctx, id, on, window, found, f"no worker answered within {timeout}. {stands}", as_json)


@limits.command("reset")
@scope_options
@click.option("--calls", is_flag=True, help="The limit of calls.")
@click.option("--recipients", is_flag=True, help="The limit of recipients; this or --calls.")
@config_option
@timeout_option
@json_option
@click.pass_context
def reset(
    ctx: click.Context, kind: str, name: str | None, per: str, zone: str | None, calls: bool, recipients: bool,
    config_path: str, timeout: Duration, as_json: bool,
) -> None:  # fmt: skip
    """Undo ``limits set``: the limit is as the configuration has it, at once.

    \b
    Example:
      surgetank limits reset channel wecom-notice --calls --per 1s -c surgetank.toml
    """
    if calls == recipients:
        raise click.UsageError("give either --calls or --recipients")
    config = load(config_path)
    on, window = _scope(config, kind, name), _window("calls" if calls else "recipients", per, zone)
    id, found = ask(config, timeout, "limit", LONGEST, on=on, window=window)
    text = f"no worker answered within {timeout}. The command stands: the limit is as configured."
    _end(ctx, id, on, window, found, text, as_json)


def _scope(config: Config, kind: str, name: str | None) -> Target:
    if kind == "everything" and name is not None:
        raise click.BadParameter("means nothing for everything", param_hint="NAME")
    if kind != "everything" and name is None:
        raise click.BadParameter(f"missing: which {kind}", param_hint="NAME")
    return target_of(config, kind, name or "", None)


def _window(unit: Literal["calls", "recipients"], per: str, zone: str | None) -> Window:
    """As workers write it: "60s" is "1m"."""
    try:
        return Window(unit, str(rule_of(Window(unit, per, zone), 1).per), zone)
    except Reject as reject:
        raise click.BadParameter(reject.detail, param_hint="--per") from reject


def _end(
    ctx: click.Context, id: str, on: Target, window: Window, found: Mapping[str, Reply], nobody: str, as_json: bool
) -> None:
    now = {worker: [use for use in reply.limits or [] if _is(use, on, window)] for worker, reply in found.items()}
    lines = [f"{worker}: {line(use)}" for worker, uses in sorted(now.items()) for use in uses]
    text = "\n".join(lines) or f"{on} has no limit of {window} now ({answered(found)})"
    tell({"command": id, "workers": now}, text if found else nobody, as_json)
    ctx.exit(0 if tell_refusals(found) and found else 1)


def _is(use: LimitUse, on: Target, window: Window) -> bool:
    return use.on == on and use.limit == f"{use.number} {window}"


def line(use: LimitUse) -> str:
    """One limit, for people."""
    full = "" if not use.full else f"; full until {'a call ends' if use.until is None else utc(use.until)}"
    changed = ""
    if use.changed_until is not None:
        then = "none" if use.configured is None else f"{use.configured:,}"
        changed = f"; by command until {utc(use.changed_until)}, then {then}"
    return f"{use.on}: {use.limit}: {use.used:,} used, {use.in_flight:,} in flight, of {use.number:,}{full}{changed}"
