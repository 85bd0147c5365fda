"""The pauses in force (pure): what each keeps in the core, until it is resumed or its time is over.

In: commands, and flows as they come and go. Out: pauses of the core's nodes; whether one covers what waits elsewhere.
Invariant: the core keeps a tenant or campaign exactly while a standing pause covers it and a flow of it is open; so
names cost nothing here, and handles may be given to others.
Never: looks at what is queued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from engine.admit import Channel
from engine.errors import Reject
from engine.open_sends import Flow, OpenSends
from engine.send import Tier
from engine.wire_control import Target, covers_campaign
from ext.schedule import ACCOUNT, CHANNEL, OF_CAMPAIGN, OF_TENANT, WHOLE_TIER

Place = tuple[int, int, int]  # of the core: scope, handle, campaign


class Core(Protocol):
    """What is asked of the core."""

    def pause(self, scope: int, handle: int, campaign: int = 0, until_ns: int = 0) -> None:
        """Nothing of it leaves, until then at least."""

    def resume(self, scope: int, handle: int, campaign: int = 0) -> None:
        """It may leave again."""


class Pauses:
    """One worker's. Times are ms since the epoch."""

    def __init__(
        self,
        core: Core,
        opens: OpenSends,
        channels: Mapping[str, Channel],
        core_ns: Callable[[int], int],
        now_ms: int,
    ) -> None:
        """``core_ns``: a time as the core has it. What was resumed before ``now_ms`` is not known."""
        self.standing: dict[Target, int] = {}  # until when
        self.resumed_ms = now_ms  # when a pause last ended
        self._core = core
        self._core_ns = core_ns
        self._opens = opens
        self._channels = channels
        opens.made.append(self._made)
        opens.gone.append(self._gone)

    def pause(self, target: Target, until_ms: int) -> None:
        """Until then, whatever stood before. Raises Reject("command_invalid") for a channel or account nobody has."""
        places = self._places(target)
        self.standing[target] = until_ms
        self._tell(places)

    def resume(self, target: Target, now_ms: int) -> None:
        """Undo the pause of exactly this; what another pause covers stays. Raises Reject like ``pause``."""
        places = self._places(target)
        self.standing.pop(target, None)
        self.resumed_ms = max(self.resumed_ms, now_ms)
        self._tell(places)

    def _tell(self, places: Mapping[Place, Iterable[Target]]) -> None:
        for place, targets in places.items():
            until_ms = max((self.standing.get(target, -1) for target in targets), default=-1)
            if until_ms < 0:
                self._core.resume(*place)
            else:
                self._core.pause(*place, max(self._core_ns(until_ms), 0))

    def covers(self, tier: Tier, channel: str, account: str, tenant: str, campaign: str | None) -> bool:
        """Whether a standing pause covers a send of these."""
        parts = (
            Target(tier=tier.label),  # type: ignore[arg-type]
            Target(channel=channel),
            Target(channel=channel, account=account),
            Target(tenant=tenant),
        )
        return any(part in self.standing for part in parts) or covers_campaign(self.standing, tenant, campaign)

    def expire(self, now_ms: int) -> list[Target]:
        """Resume what has had its time; returns it."""
        over = [target for target, until_ms in self.standing.items() if until_ms <= now_ms]
        for target in over:
            self.resume(target, now_ms)
        return over

    def _places(self, target: Target) -> dict[Place, tuple[Target, ...]]:
        """What of the core it covers now, and whose pauses keep that."""
        if target.campaign is not None:
            return dict(map(_campaign_of, self._opens.of_campaign(target.campaign, target.tenant)))
        if target.tenant is not None:
            handle = self._opens.tenant(target.tenant)
            return {} if handle is None else {(OF_TENANT, handle, 0): (target,)}
        if target.tier is not None:
            return {(WHOLE_TIER, Tier[target.tier.upper()], 0): (target,)}
        channel = self._channels.get(target.channel or "")
        if channel is None:
            raise Reject("command_invalid", f"no channel {target.channel}")
        if target.account is None:
            return {(CHANNEL, channel.handle, 0): (target,)}
        if target.account not in channel.accounts:
            raise Reject("command_invalid", f"channel {channel.name} has no account {target.account}")
        return {(ACCOUNT, channel.accounts[target.account], 0): (target,)}

    def _made(self, flow: Flow) -> None:
        if not self.standing:
            return
        tenant = Target(tenant=flow.tenant)
        if tenant in self.standing:
            self._tell({(OF_TENANT, flow.tenant_handle, 0): (tenant,)})
        if covers_campaign(self.standing, flow.tenant, flow.campaign):
            self._tell(dict([_campaign_of(flow)]))

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


def _campaign_of(flow: Flow) -> tuple[Place, tuple[Target, ...]]:
    place = (OF_CAMPAIGN, flow.tenant_handle, flow.campaign_handle)
    return place, (Target(campaign=flow.campaign), Target(tenant=flow.tenant, campaign=flow.campaign))
