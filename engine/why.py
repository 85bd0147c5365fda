"""Why something has not left yet, in this worker (shell: it asks the core and the clock).

In: a campaign, or the id of a send. Out: a Hold for each tier and account that it waits in.
Never: walks what is queued in the core. A send is looked for among the open ones, about half a microsecond each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from engine.clock import NS_PER_MS, Clock
from engine.open_sends import Flow, OpenSends
from engine.wire_control import Command, Hold, Target
from ext import schedule

HELD = {
    schedule.HELD_TURN: "turn",
    schedule.HELD_PAUSE: "pause",
    schedule.HELD_SLOT: "slot",
    schedule.HELD_BLOCK: "block",
    schedule.HELD_LIMIT: "limit",
    schedule.HELD_GRANT: "grant",
    schedule.HELD_LINGER: "linger",
    schedule.HELD_TIME: "time",
    schedule.HELD_PACING: "pacing",
}
OWNED = {"pause", "slot", "block", "limit", "grant", "pacing"}  # by a scope
Row = tuple[int, int, int, int, int, int | None, int, int]  # see Core.explain


class Core(Protocol):
    """What is asked of the core."""

    def explain(self, now_ns: int, tenant: int, campaign: int) -> list[Row]:
        """Tier, account, recipients ready, HELD_*, scope, limit, until, rate; by tier and account."""


class Why:
    """One worker's. ``paused``: the pauses in force, and until when, ms; ``told``: what people call a limit of the
    core; ``frequent``: the rule of `frequency` by which recipients of a flow wait until then."""

    def __init__(
        self,
        core: Core,
        opens: OpenSends,
        paused: Mapping[Target, int],
        told: Callable[[int], str],
        frequent: Callable[[Flow, int], str | None],
        clock: Clock,
    ) -> None:
        self._core = core
        self._opens = opens
        self._paused = paused
        self._told = told
        self._frequent = frequent
        self._clock = clock

    def answer(self, command: Command) -> list[Hold]:
        """What the question is about, as far as it waits here; empty: nothing of it does."""
        if isinstance(command.send, str):
            return self._sends(command.send)
        assert isinstance(command.on, Target)  # noqa: S101 - it was decoded
        return self._campaign(self._opens.of_campaign(command.on.campaign or "", command.on.tenant))

    def _campaign(self, flows: Iterable[Flow]) -> list[Hold]:
        """Each flow once: those of one tenant differ in tier and account, and so do the core's rows."""
        found = []
        for flow in flows:
            row = self._row(flow)
            if row is not None:
                found.append(self._hold(flow, row, None))
        return sorted(found, key=lambda hold: (hold.tenant, hold.channel, hold.account, hold.tier))

    def _sends(self, id: str) -> list[Hold]:
        found = []
        for handle in self._opens:
            send = self._opens[handle]
            if send.id == id:
                row = self._row(send.flow)
                if row is not None:
                    found.append(self._hold(send.flow, row, id))
        return found

    def _row(self, flow: Flow) -> Row | None:
        """What the core says of the flow; None: all of it is under way."""
        rows = self._core.explain(self._clock.now_ns(), flow.tenant_handle, flow.campaign_handle)
        return next((row for row in rows if row[:2] == (flow.tier, flow.account_handle)), None)

    def _hold(self, flow: Flow, row: Row, send: str | None) -> Hold:
        _, _, ready, why, scope, limit, until, rate = row
        held, rule = HELD[why], None if limit is None else self._told(limit)
        on = self._target(flow, scope) if held in OWNED else None
        if held == "time" and (rule := self._frequent(flow, until)):
            held, on = "frequency", _scope_of(flow, schedule.ACCOUNT)
        until_ms = None if until == schedule.NEVER else (until - self._clock.offset_ns()) // NS_PER_MS
        return Hold(
            tier=flow.tier.label,
            channel=flow.channel,
            account=flow.account,
            tenant=flow.tenant,
            campaign=flow.campaign,
            send=send,
            sends=flow.open,
            ready=ready,
            held=held,
            on=on,
            limit=rule,
            rate=rate / schedule.CALL_A_SECOND if held == "pacing" else None,
            until=self._paused.get(on) if held == "pause" and on is not None else until_ms,
        )

    def _target(self, flow: Flow, scope: int) -> Target:
        """Whose scope of the flow's it is."""
        everywhere = Target(campaign=flow.campaign)
        if scope == schedule.OF_CAMPAIGN and everywhere in self._paused:
            return everywhere
        return _scope_of(flow, scope)


def _scope_of(flow: Flow, scope: int) -> Target:
    if scope == schedule.GLOBAL:
        return Target()
    if scope == schedule.WHOLE_TIER:
        return Target(tier=flow.tier.label)  # type: ignore[arg-type]
    if scope == schedule.CHANNEL:
        return Target(channel=flow.channel)
    if scope == schedule.ACCOUNT:
        return Target(channel=flow.channel, account=flow.account)
    if scope == schedule.OF_TENANT:
        return Target(tenant=flow.tenant)
    if scope == schedule.EACH_TENANT:
        return Target(channel=flow.channel, tenant=flow.tenant)
    return Target(tenant=flow.tenant, campaign=flow.campaign)
