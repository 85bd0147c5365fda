"""The pauses in force (pure): what each keeps in the core, until it is resumed or its time is over.

In: commands, and flows as they come and go. Out: pauses of the core's nodes.
Invariant: the core keeps a tenant or campaign exactly while a standing pause covers it and a flow of it is open; so
names cost nothing here, and handles may be given to others.
Never: looks at what is queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from engine.admit import Channel
from engine.errors import Reject
from engine.open_sends import Flow, OpenSends
from engine.send import Tier
from engine.wire_control import Target, covers_campaign
from ext.schedule import ACCOUNT, CHANNEL, OF_CAMPAIGN, OF_TENANT, WHOLE_TIER


class Core(Protocol):
    """What is asked of the core."""

    def pause(self, scope: int, handle: int, campaign: int = 0) -> None:
        """Nothing of it leaves."""

    def resume(self, scope: int, handle: int, campaign: int = 0) -> None:
        """It may leave again."""


class Pauses:
    """One worker's. Times are ms since the epoch."""

    def __init__(self, core: Core, opens: OpenSends, channels: Mapping[str, Channel]) -> None:
        self.standing: dict[Target, int] = {}  # until when
        self._core = core
        self._opens = opens
        self._channels = channels
        opens.made.append(self._made)
        opens.gone.append(self._gone)

    def pause(self, target: Target, until_ms: int) -> None:
        """Until then, whatever stood before. Raises Reject("command_invalid") for a channel or account nobody has."""
        places = self._places(target)
        self.standing[target] = until_ms
        for place in places:
            self._core.pause(*place)

    def resume(self, target: Target) -> None:
        """Undo the pause of exactly this; what another pause covers stays. Raises Reject like ``pause``."""
        places = self._places(target)
        self.standing.pop(target, None)
        kept = {place for other in self.standing for place in self._places(other)} if target.kind == "campaign" else ()
        for place in places:
            if place not in kept:
                self._core.resume(*place)

    def expire(self, now_ms: int) -> list[Target]:
        """Resume what has had its time; returns it."""
        over = [target for target, until_ms in self.standing.items() if until_ms <= now_ms]
        for target in over:
            self.resume(target)
        return over

    def _places(self, target: Target) -> set[tuple[int, int, int]]:
        """What of the core it covers now: scope, handle, campaign."""
        if target.campaign is not None:
            flows = self._opens.of_campaign(target.campaign, target.tenant)
            return {(OF_CAMPAIGN, flow.tenant_handle, flow.campaign_handle) for flow in flows}
        if target.tenant is not None:
            handle = self._opens.tenant(target.tenant)
            return set() if handle is None else {(OF_TENANT, handle, 0)}
        if target.tier is not None:
            return {(WHOLE_TIER, Tier[target.tier.upper()], 0)}
        channel = self._channels.get(target.channel or "")
        if channel is None:
            raise Reject("command_invalid", f"no channel {target.channel}")
        if target.account is None:
            return {(CHANNEL, channel.handle, 0)}
        if target.account not in channel.accounts:
            raise Reject("command_invalid", f"channel {channel.name} has no account {target.account}")
        return {(ACCOUNT, channel.accounts[target.account], 0)}

    def _made(self, flow: Flow) -> None:
        if not self.standing:
            return
        if Target(tenant=flow.tenant) in self.standing:
            self._core.pause(OF_TENANT, flow.tenant_handle)
        if covers_campaign(self.standing, flow.tenant, flow.campaign):
            self._core.pause(OF_CAMPAIGN, flow.tenant_handle, flow.campaign_handle)

    def _gone(self, flow: Flow) -> None:
        """Its handles may be somebody else's from now on."""
        if not self.standing:
            return
        if Target(tenant=flow.tenant) in self.standing and self._opens.tenant(flow.tenant) is None:
            self._core.resume(OF_TENANT, flow.tenant_handle)
        if covers_campaign(self.standing, flow.tenant, flow.campaign) and not self._opens.of_campaign(
            flow.campaign or "", flow.tenant
        ):
            self._core.resume(OF_CAMPAIGN, flow.tenant_handle, flow.campaign_handle)
