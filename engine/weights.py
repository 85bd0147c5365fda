"""The weights that commands have changed (pure): what each is in the core, until its time is over.

In: commands, and flows as they come and go. Out: weights of the core's tiers, tenants and campaigns.
Invariant: the core has a changed weight of a tenant or campaign exactly while its command stands and a flow of it is
open, or the configuration keeps the tenant; so names cost nothing here, and handles may be given to others.
Never: looks at what is queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from engine.errors import Reject
from engine.open_sends import Flow, OpenSends
from engine.send import Tier
from engine.wire_control import Target, covers_campaign
from ext.schedule import OF_CAMPAIGN, OF_TENANT, WHOLE_TIER


class Core(Protocol):
    """What is asked of the core."""

    def reweight(self, scope: int, handle: int, weight: int, campaign: int = 0) -> None:
        """Another weight."""


class Weights:
    """One worker's. Times are ms since the epoch. ``tiers``, ``tenants``: the configured weights, by name."""

    def __init__(self, core: Core, opens: OpenSends, tiers: Mapping[str, int], tenants: Mapping[str, int]) -> None:
        self.standing: dict[Target, tuple[int, int]] = {}  # weight, until when
        self._core = core
        self._opens = opens
        self._tiers = tiers
        self._tenants = tenants
        opens.made.append(self._made)
        opens.gone.append(self._gone)

    def change(self, target: Target, weight: int, until_ms: int) -> None:
        """Until then, whatever stood before. Raises Reject("command_invalid") for a tier that has no weight."""
        if target.tier == "system":
            raise Reject("command_invalid", "system has no weight: it always goes first; valid: template, basic")
        self.standing[target] = (weight, until_ms)
        self._apply(target)

    def restore(self, target: Target) -> None:
        """Back to what the configuration says, or a wider command."""
        if self.standing.pop(target, None) is not None:
            self._apply(target)

    def expire(self, now_ms: int) -> list[Target]:
        """Restore what has had its time; returns it."""
        over = [target for target, (_, until_ms) in self.standing.items() if until_ms <= now_ms]
        for target in over:
            self.restore(target)
        return over

    def _apply(self, target: Target) -> None:
        if target.campaign is not None:
            for flow in self._opens.of_campaign(target.campaign, target.tenant):
                self._weigh_campaign(flow)
        elif target.tenant is not None:
            handle = self._opens.tenant(target.tenant)
            if handle is not None:
                self._core.reweight(OF_TENANT, handle, self._of_tenant(target.tenant))
        elif target.tier is not None:
            weight = self._weight(target, self._tiers[target.tier])
            self._core.reweight(WHOLE_TIER, Tier[target.tier.upper()], weight)

    def _weight(self, target: Target, otherwise: int) -> int:
        return self.standing.get(target, (otherwise, 0))[0]

    def _of_tenant(self, tenant: str) -> int:
        return self._weight(Target(tenant=tenant), self._tenants.get(tenant, 1))

    def _weigh_campaign(self, flow: Flow) -> None:
        """The command about one tenant's campaign comes before that about all tenants'."""
        everywhere = self._weight(Target(campaign=flow.campaign), 1)
        weight = self._weight(Target(tenant=flow.tenant, campaign=flow.campaign), everywhere)
        self._core.reweight(OF_CAMPAIGN, flow.tenant_handle, weight, flow.campaign_handle)

    def _made(self, flow: Flow) -> None:
        if not self.standing:
            return
        if Target(tenant=flow.tenant) in self.standing:
            self._core.reweight(OF_TENANT, flow.tenant_handle, self._of_tenant(flow.tenant))
        if covers_campaign(self.standing, flow.tenant, flow.campaign):
            self._weigh_campaign(flow)

    def _gone(self, flow: Flow) -> None:
        """Its handles may be somebody else's from now on."""
        if not self.standing:
            return
        if Target(tenant=flow.tenant) in self.standing and self._opens.tenant(flow.tenant) is None:
            self._core.reweight(OF_TENANT, flow.tenant_handle, 1)
        if covers_campaign(self.standing, flow.tenant, flow.campaign) and not self._opens.of_campaign(
            flow.campaign or "", flow.tenant
        ):
            self._core.reweight(OF_CAMPAIGN, flow.tenant_handle, 1, flow.campaign_handle)
