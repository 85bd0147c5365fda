"""The limits that commands have changed, until their time is over (shell): what ``surgetank limits set`` does here.

In: commands. Out: other numbers for limits, this process's share of each, or limits that are not configured.
Invariant: what was used of a limit stays; when a command expires the configured number is back, and a limit that was
not configured is none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from engine.admit import Channel
from engine.config import NS, YEAR, Config, Limit, Span
from engine.config_check import limit_problems
from engine.errors import Reject
from engine.limits import NO_LIMIT, Kept, Limits, window_of, with_number
from engine.open_sends import OpenSends
from engine.send import Tier
from engine.shares import own_share
from engine.wire_control import Command, Target, Window
from ext.schedule import ACCOUNT, CHANNEL, GLOBAL, OF_TENANT, WHOLE_TIER

logger = structlog.get_logger("surgetank.limits")


class Place(NamedTuple):
    """A scope: as the core has it, and as the file of what is used."""

    scope: int
    handle: int
    name: tuple[str, ...]


class Changed:
    """One worker's. Times are ms since the epoch."""

    def __init__(self, config: Config, limits: Limits, channels: Mapping[str, Channel], opens: OpenSends) -> None:
        self.standing: list[Kept] = []
        self._config = config
        self._limits = limits
        self._channels = channels
        self._opens = opens

    def obey(self, command: Command) -> None:
        """Raises Reject("command_invalid") for what is not there, or cannot be shared."""
        on, window, number = command.on, command.window, command.number
        assert isinstance(on, Target)  # noqa: S101 - it was decoded
        assert isinstance(window, Window)  # noqa: S101
        kept = self._limits.find(on, rule_of(window, 1))
        if not isinstance(number, int):
            self._undo(on, window, kept)
            return
        mine = own_share(self._config, number, on.tier)
        if not mine:
            raise Reject("command_invalid", f"{number} {window} are fewer than the workers that share them")
        kept = kept or self._added(on, rule_of(window, NO_LIMIT))
        before = kept.told if kept.told < NO_LIMIT else None
        self._limits.renumber(kept, mine)
        kept.until_ms = command.expires
        self.standing = [one for one in self.standing if one is not kept] + [kept]
        logger.warning(
            "limit changed",
            target=str(on),
            limit=str(window),
            number=number,
            here=mine,
            before=before,
            until_ms=command.expires,
            command=command.id,
        )

    def expire(self, now_ms: int) -> bool:
        """What has had its time is as it was; whether there was any."""
        over = [one for one in self.standing if one.until_ms is not None and one.until_ms <= now_ms]
        for kept in over:
            self._restore(kept, "its time is over")
        return bool(over)

    def _undo(self, on: Target, window: Window, kept: Kept | None) -> None:
        if kept is None:
            there = ", ".join(str(window_of(one.rule)) for one in self._limits.of(on)) or "none"
            raise Reject("command_invalid", f"{on} has no limit of {window}; it has: {there}")
        if kept in self.standing:
            self._restore(kept, "by command")

    def _restore(self, kept: Kept, reason: str) -> None:
        before = kept.told
        self._limits.renumber(kept, NO_LIMIT if kept.configured is None else kept.configured)
        kept.until_ms = None
        self.standing = [one for one in self.standing if one is not kept]
        logger.info(
            "limit restored",
            target=str(kept.on),
            limit=str(window_of(kept.rule)),
            here=kept.configured,
            before=before,
            reason=reason,
        )

    def _added(self, on: Target, rule: Limit) -> Kept:
        place = self._place(on)
        try:
            return self._limits.add(place.scope, place.handle, place.name, rule, configured=False)
        except sqlite3.Error as error:
            raise Reject("command_invalid", f"what is used of it cannot be kept: {error}") from error

    def _place(self, on: Target) -> Place:
        if on.tenant is not None:  # its handle stays its own: a limit is never taken out of the core
            return Place(OF_TENANT, self._opens.keep_tenant(on.tenant), ("tenant", on.tenant))
        if on.tier is not None:
            return Place(WHOLE_TIER, Tier[on.tier.upper()], ("tier", on.tier))
        if on.channel is None:
            return Place(GLOBAL, 0, ("everything",))
        channel = self._channels.get(on.channel)
        if channel is None:
            raise Reject("command_invalid", f"no channel {on.channel}; there are {', '.join(self._channels)}")
        if on.account is None:
            return Place(CHANNEL, channel.handle, ("channel", on.channel))
        if on.account not in channel.accounts:
            there = ", ".join(channel.accounts)
            raise Reject("command_invalid", f"channel {on.channel} has no account {on.account}; it has {there}")
        return Place(ACCOUNT, channel.accounts[on.account], ("account", on.channel, on.account))


def rule_of(window: Window, number: int) -> Limit:
    """Raises Reject("command_invalid") for a window that no configuration could have."""
    try:
        per = Span.parse(window.per)
    except ValueError:
        raise Reject("command_invalid", f'per {window.per!r} is not a duration such as "1s", or "1mo"') from None
    if not NS["ms"] <= per <= YEAR:
        raise Reject("command_invalid", f"per {window.per} must be 1ms..365d")
    rule = (
        Limit(per, calls=1, zone=window.zone) if window.unit == "calls" else Limit(per, recipients=1, zone=window.zone)
    )
    for _, text in limit_problems((rule,), ()):
        raise Reject("command_invalid", f"{window}: {text}")
    return with_number(rule, number)
