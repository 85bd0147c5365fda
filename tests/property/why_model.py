"""What the core's plain model says of why a campaign waits. See model.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.property.model import Channel, Limit, Node, Queue, Refusal, Scope

NEVER = 2**63 - 1
TURN, PAUSE, SLOT, BLOCK, LIMIT, GRANT, LINGER, TIME, PACING = range(9)
LOOKED_AT = 64
SCOPES = {"tier": 3, "lane": 1, "leaf": 2, "tenant": 4, "campaign": 5}
PATH = (0, 3, 1, 2, 4, 6)  # the scopes a batch passes


class Reason(NamedTuple):
    """A row of Core.explain; the limit as the model has it."""

    tier: int
    account: int
    ready: int
    why: int
    scope: int = 0
    limit: Limit | None = None
    until: int = NEVER
    rate: int = 0


class Explained:
    """The part of the model that explains."""

    now: int
    channels: list[Channel]
    branches: list[Node]
    path: Callable[[Node, Node], list[tuple[Node, Scope]]]
    next_batch: Callable[[Queue, int], tuple[int, int]]
    refusals: Callable[[list[tuple[Node, Scope]], int, int], list[Refusal]]
    ask: Callable[[Queue, list[tuple[Node, Scope]], int], tuple[int, Refusal | None]]

    def explain(self, tenant: int, campaign: int) -> list[Reason]:
        nodes = [node for node in self.branches if node.level == "campaign" and node.queues]
        found = [self.explain_node(node) for node in nodes if (node.above(1).handle, node.handle) == (tenant, campaign)]
        return [reason._replace(until=max(reason.until, self.now)) for reason in found]

    def explain_node(self, campaign: Node) -> Reason:
        leaf = campaign.above(2)
        ready = sum(len(queue.fifo.of) for queue in campaign.ready)
        reason = Reason(leaf.tier, leaf.handle, ready, TURN, until=self.now)
        above = [campaign.above(levels) for levels in range(5)]  # the tier is the last
        for node in reversed(above):
            if "paused" in node.held:
                return reason._replace(why=PAUSE, scope=SCOPES[node.level], until=NEVER)
        if not campaign.ready:
            why, until = self.explain_time(campaign)
            return reason._replace(why=why, until=until)
        parked = [node.kept for node in above if "parked" in node.held and node.kept is not None]
        return self.explain_soon(campaign, reason, parked)

    def explain_soon(self, campaign: Node, reason: Reason, parked: list[Refusal]) -> Reason:
        tenant, leaf, lane = (campaign.above(levels) for levels in (1, 2, 3))
        channel = self.channels[lane.handle]
        if not parked and "held back" in lane.held:
            reason = self.explain_pacing(campaign, reason)
        elif not parked and not channel.has_slot(leaf.tier):
            return reason._replace(why=SLOT, scope=SCOPES["lane"], until=NEVER)
        path = self.path(leaf, tenant)
        _, there = self.next_batch(campaign.ready[0], channel.cap)
        n, _ = self.ask(campaign.ready[0], path, there)
        by_scope = sorted(self.refusals(path, n, leaf.tier), key=lambda no: no.scope)  # of each a block first
        no = max([*parked, *by_scope], key=lambda no: -1 if no.until == NEVER else no.until, default=None)
        if no is None or (reason.why == PACING and no.until < reason.until):
            return reason
        return refused(reason, no)

    def explain_pacing(self, campaign: Node, reason: Reason) -> Reason:
        slot = min(queue.slot for queue in campaign.ready[:LOOKED_AT])
        lane, tier = campaign.above(3), campaign.above(4)
        assert lane.pacing is not None
        assert tier.pacing is not None
        pace, scope, of_tier = lane.pacing.pace, SCOPES["lane"], tier.pacing.pace
        if not of_tier.stale and of_tier.expects(slot) > pace.expects(slot):
            pace, scope = of_tier, SCOPES["tier"]
        return reason._replace(why=PACING, scope=scope, until=pace.expects(slot), rate=pace.rate)

    def explain_time(self, campaign: Node) -> tuple[int, int]:
        """Nothing is ready: the earliest of what is waited for."""
        found = []
        for queue in campaign.queues[:LOOKED_AT]:
            if queue.state == "linger":
                found.append((queue.fifo.close, LINGER))
            if queue.parcels:
                tick = min(parcel.tick for parcel in queue.parcels[:LOOKED_AT])
                found.append((NEVER if tick > NEVER >> 20 else tick << 20, TIME))
        until, why = min(found, key=lambda one: one[0])
        return why, until


def refused(reason: Reason, no: Refusal) -> Reason:
    why = BLOCK if no.limit is None else LIMIT
    return reason._replace(why=why, scope=PATH[no.scope], limit=no.limit, until=no.until, rate=0)
