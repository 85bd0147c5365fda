"""The scheduling core again, in plain Python: slow, short, and the judge of ext/schedule.pyx.

It says what the core must do, outputs in the same order, and shares no idea of how: timers are a heap, every queue is a
list, numbers are counted up when asked for, windows look through a log of what left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

NEVER = 2**63 - 1
TICK_NS = 2**20
SYSTEM, TEMPLATE, BASIC = range(3)
CAP, LINGER, DUE, CUT = range(4)
EXPIRED, CANCELLED = 1, 2


@dataclass(eq=False)
class Run:
    send: int
    tier: int
    account: int
    key: tuple[int, int, int]  # tenant, campaign, content
    attempt: int
    not_before: int
    due: int
    deadline: int
    linger: int
    pushed: int
    to: list[tuple[int, bytes]]  # what is left: (position, id)
    close: int = NEVER
    gone: bool = False  # ended, or fully taken: its timers mean nothing


@dataclass(eq=False)
class Flow:
    leaf: Node
    key: tuple[int, int, int]
    fifo: list[Run] = field(default_factory=list)
    waiting: list[Run] = field(default_factory=list)
    state: str = "idle"  # idle, linger, ready
    close: int = NEVER
    timer: object = None  # the linger timer that counts; others mean nothing
    deficit: int = 0
    fresh: bool = True

    @property
    def queued(self) -> int:
        return sum(len(run.to) for run in self.fifo)


@dataclass(eq=False)
class Node:
    """Everything, a tier, a lane (tier x channel) or a leaf (tier x account)."""

    tier: int
    parent: Node | None
    scope: Scope | None
    handle: int = 0
    ring: list[Node] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)  # a leaf's ring
    state: str = "open"  # open, parked, blocked
    parks: int = 0
    turn: int = 0

    @property
    def has_ready(self) -> bool:
        return bool(self.ring or self.flows)


@dataclass
class Limit:
    recipients: bool
    number: int
    per: int
    reserved: int
    entries: list[list[int]] = field(default_factory=list)  # begun, at, n

    def ceiling(self, tier: int) -> int:
        return self.number if tier == SYSTEM else self.number - self.reserved

    def count(self, at: int, n: int) -> None:
        if self.entries and at < self.entries[-1][0] + -(-self.per // 1000):
            self.entries[-1][1:] = [at, self.entries[-1][2] + n]
        else:
            self.entries.append([at, at, n])

    def when(self, now: int, n: int, tier: int, held: int) -> int:
        self.entries = [entry for entry in self.entries if entry[1] + self.per > now]
        over = held + sum(entry[2] for entry in self.entries) + n - self.ceiling(tier)
        for _, at, used in [(0, now - self.per, 0), *self.entries]:
            over -= used
            if over <= 0:
                return at + self.per
        return NEVER


@dataclass
class Scope:
    blocked: int = 0
    limits: list[Limit] = field(default_factory=list)
    held: list[int] = field(default_factory=lambda: [0, 0])  # calls, recipients
    parked: list[Node] = field(default_factory=list)

    def uses(self, limit: Limit, n: int) -> int:
        return n if limit.recipients else min(n, 1)


@dataclass
class Channel:
    slots: int
    reserved: int
    cap: int
    lanes: list[Node]
    in_flight: list[int] = field(default_factory=lambda: [0, 0, 0])

    def has_slot(self, tier: int) -> bool:
        others = self.in_flight[TEMPLATE] + self.in_flight[BASIC]
        free = others + self.in_flight[SYSTEM] < self.slots
        return free and (tier == SYSTEM or others < self.slots - self.reserved)


@dataclass
class Batch:
    tier: int
    channel: int
    account: int
    key: tuple[int, int, int]
    closed: int
    due: int
    items: list[tuple[int, int, int, int, bytes]]  # send, position, attempt, pushed, id


class Model:
    def __init__(self, template_weight: int, basic_weight: int, lead: int) -> None:
        self.now = 0
        self.lead = lead
        self.stride = [0, 2**20 // template_weight, 2**20 // basic_weight]
        self.timers: list[tuple[int, int, Callable[[], None]]] = []
        self.armed = 0
        self.everything, self.of_tier = Scope(), [Scope() for _ in range(3)]
        self.root = Node(-1, None, None)
        self.tiers = [Node(tier, self.root, self.everything) for tier in range(3)]
        self.channels: list[Channel] = []
        self.leaves: list[list[Node]] = []  # an account: by tier
        self.flows: dict[tuple[Node, tuple[int, int, int]], Flow] = {}  # in order of creation
        self.ended: list[tuple[int, int, int, int, int]] = []  # cause, send, position, attempt, tier
        self.counts = {name: [0, 0, 0] for name in ("pushed", "popped", "expired", "cancelled")}
        self.waits: list[tuple[int, int, int]] = []  # tier, channel, ns
        self.late: list[tuple[int, int]] = []

    # --- the tree ---

    def add_channel(self, slots: int, reserved: int, cap: int) -> None:
        scope = Scope()
        lanes = [Node(tier, self.tiers[tier], scope, len(self.channels)) for tier in range(3)]
        self.channels.append(Channel(slots, reserved, cap, lanes))

    def add_account(self, channel: int) -> None:
        scope, lanes = Scope(), self.channels[channel].lanes
        self.leaves.append([Node(tier, lanes[tier], scope, len(self.leaves)) for tier in range(3)])

    def scope(self, scope: int, handle: int) -> Scope:
        if scope == 3:
            return self.of_tier[handle]
        found = [self.everything, self.channels[handle].lanes[0].scope if scope == 1 else None, None][scope]
        if scope == 2:
            found = self.leaves[handle][0].scope
        assert found is not None
        return found

    def channel_of(self, leaf: Node) -> Channel:
        assert leaf.parent is not None
        return self.channels[leaf.parent.handle]

    def activate(self, node: Node) -> None:
        while node.parent is not None and node.state == "open" and node.has_ready and node not in node.parent.ring:
            if node.parent is self.root and node.tier != SYSTEM:
                other = self.tiers[TEMPLATE + BASIC - node.tier]
                if other in self.root.ring:
                    node.turn = max(node.turn, other.turn)
            node.parent.ring.append(node)
            node = node.parent

    def deactivate(self, node: Node) -> None:
        while node.parent is not None and node in node.parent.ring:
            node.parent.ring.remove(node)
            node = node.parent
            if node.has_ready:
                return

    def park(self, node: Node, scope: Scope, until: int) -> None:
        self.deactivate(node)
        node.state = "parked"
        node.parks += 1
        scope.parked.append(node)
        this = node.parks

        def over() -> None:
            if node.state == "parked" and node.parks == this:
                self.unpark(node, scope)

        if until != NEVER:
            self.arm(until, over)

    def unpark(self, node: Node, scope: Scope) -> None:
        scope.parked.remove(node)
        node.state = "open"
        self.activate(node)

    def reconsider(self, scope: Scope) -> None:
        for node in list(scope.parked):
            self.unpark(node, scope)

    # --- time ---

    def arm(self, at: int, fire: Callable[[], None]) -> None:
        self.armed += 1
        heapq.heappush(self.timers, (-(-at // TICK_NS), self.armed, fire))

    def advance(self, now: int) -> None:
        self.now = max(self.now, now)
        while self.timers and self.timers[0][0] * TICK_NS <= self.now:
            heapq.heappop(self.timers)[2]()

    def next_due(self) -> int:
        """Exact but for timers that mean nothing any more, which the core may have disarmed: they are left out too."""
        if self.ended or self.root.ring:
            return self.now
        return min(self.firing_times(), default=NEVER)

    def firing_times(self) -> Iterator[int]:
        times = [flow.close for flow in self.flows.values() if flow.state == "linger"]
        for flow in self.flows.values():
            times += [run.deadline for run in flow.fifo]
            times += [min(run.not_before, run.deadline) for run in flow.waiting]
        for tick, _, fire in self.timers:
            if fire.__name__ == "over":
                yield min(tick * TICK_NS, NEVER)
        yield from (-(-time // TICK_NS) * TICK_NS for time in times if time != NEVER)

    # --- flows ---

    def rest(self, flow: Flow) -> None:
        flow.timer = None
        if flow.state == "ready":
            flow.leaf.flows.remove(flow)
            flow.deficit = min(flow.deficit, 0)
            if not flow.leaf.flows:
                self.deactivate(flow.leaf)
        flow.state = "idle"

    def make_ready(self, flow: Flow) -> None:
        self.rest(flow)
        flow.state, flow.fresh = "ready", True
        flow.leaf.flows.append(flow)
        self.activate(flow.leaf)

    def make_linger(self, flow: Flow) -> None:
        self.rest(flow)
        flow.state, mark = "linger", object()
        flow.timer = mark
        if flow.close != NEVER:
            self.arm(flow.close, lambda: self.make_ready(flow) if flow.timer is mark else None)

    def rest_if_empty(self, flow: Flow) -> None:
        if flow.fifo:
            return
        self.rest(flow)
        flow.close = NEVER
        if not flow.waiting:
            self.flows.pop((flow.leaf, flow.key), None)

    def must_close(self, run: Run) -> int:
        return min(run.due, NEVER if run.deadline == NEVER else run.deadline - self.lead)

    def end(self, run: Run, cause: int) -> None:
        run.gone = True
        self.counts["expired" if cause == EXPIRED else "cancelled"][run.tier] += len(run.to)
        self.ended += [(cause, run.send, position, run.attempt, run.tier) for position, _ in run.to]

    def enter(self, run: Run, flow: Flow) -> None:
        before = flow.close
        run.close = min(self.now + run.linger, NEVER, self.must_close(run))
        if run.deadline != NEVER:
            self.arm(run.deadline, lambda: None if run.gone else self.expire(run, flow))
        flow.fifo.append(run)
        flow.close = min(flow.close, run.close)
        if flow.state == "ready":
            return
        if flow.queued >= self.channel_of(flow.leaf).cap or flow.close <= self.now:
            self.make_ready(flow)
        elif flow.state == "idle" or flow.close < before:
            self.make_linger(flow)

    def expire(self, run: Run, flow: Flow) -> None:
        flow.fifo.remove(run)
        self.end(run, EXPIRED)
        self.rest_if_empty(flow)

    def wake(self, run: Run, flow: Flow) -> None:
        if run.gone:
            return
        flow.waiting.remove(run)
        if run.deadline > self.now:
            self.enter(run, flow)
        else:
            self.end(run, EXPIRED)
            self.rest_if_empty(flow)

    def push(self, now: int, runs: list[Run]) -> None:
        self.advance(now)
        flows = {run: self.flow_of(run) for run in runs if run.deadline > self.now}
        for run in runs:
            self.counts["pushed"][run.tier] += len(run.to)
            if run not in flows:
                self.end(run, EXPIRED)
            elif run.not_before > self.now:
                flows[run].waiting.append(run)
                if (at := min(run.not_before, run.deadline)) != NEVER:
                    self.arm(at, lambda run=run: self.wake(run, flows[run]))  # type: ignore[misc]
            else:
                self.enter(run, flows[run])

    def flow_of(self, run: Run) -> Flow:
        leaf = self.leaves[run.account][run.tier]
        return self.flows.setdefault((leaf, run.key), Flow(leaf, run.key))

    # --- what may go ---

    def pop(self, now: int, budget: int) -> list[Batch]:
        self.advance(now)
        batches: list[Batch] = []
        steps = 0
        while self.root.ring and steps < budget:
            batch = self.visit(self.next_tier())
            steps += 1
            if batch is not None:
                steps += len(batch.items)
                batches.append(batch)
        return batches

    def next_tier(self) -> Node:
        if self.tiers[SYSTEM] in self.root.ring:
            return self.tiers[SYSTEM]
        return min(self.root.ring, key=lambda tier: (tier.turn, tier.tier))

    def visit(self, tier: Node) -> Batch | None:
        lane = tier.ring[0]
        leaf = lane.ring[0]
        flow = leaf.flows[0]
        channel = self.channels[lane.handle]
        if not channel.has_slot(tier.tier):
            self.deactivate(lane)
            lane.state = "blocked"
            return None
        if flow.fresh:
            flow.fresh = False
            flow.deficit += channel.cap
        assert flow.deficit > 0
        path = self.path(leaf)
        most = self.planned(flow, path)
        for node, scope in path:
            if scope.blocked > self.now:
                self.park(node, scope, scope.blocked)
                return None
        for node, scope in path:
            for limit in scope.limits:
                until = limit.when(self.now, scope.uses(limit, most), tier.tier, scope.held[limit.recipients])
                if until > self.now:
                    self.park(node, scope, until)
                    return None
        batch = self.form(flow, most)
        if batch is None:
            self.rest_if_empty(flow)
            return None
        self.charge(batch, path, channel)
        self.after_batch(flow, len(batch.items))
        return batch

    def path(self, leaf: Node) -> list[tuple[Node, Scope]]:
        """What waits when a scope refuses, and the scope; the widest first."""
        lane = leaf.parent
        assert lane is not None
        tier = lane.parent
        assert tier is not None
        assert lane.scope is not None
        assert leaf.scope is not None
        return [(tier, self.everything), (tier, self.of_tier[tier.tier]), (lane, lane.scope), (leaf, leaf.scope)]

    def planned(self, flow: Flow, path: list[tuple[Node, Scope]]) -> int:
        ceilings = [limit.ceiling(flow.leaf.tier) for _, scope in path for limit in scope.limits if limit.recipients]
        return min(flow.queued, self.channel_of(flow.leaf).cap, *ceilings)

    def form(self, flow: Flow, most: int) -> Batch | None:
        leaf, channel = flow.leaf, self.channel_of(flow.leaf)
        batch = Batch(leaf.tier, leaf.parent.handle if leaf.parent else 0, leaf.handle, flow.key, LINGER, NEVER, [])
        partly, seen = most < flow.queued, set[bytes]()
        due = cut = False
        for run in list(flow.fifo):
            if run.deadline <= self.now and len(seen) < most and not cut:
                flow.fifo.remove(run)
                self.end(run, EXPIRED)
                continue
            while run.to and len(seen) < most and not cut:
                position, name = run.to[0]
                if name in seen:
                    cut = True
                    break
                seen.add(name)
                del run.to[0]
                batch.items.append((run.send, position, run.attempt, run.pushed, name))
                batch.due = min(batch.due, run.due)
                due = due or self.must_close(run) <= self.now
                self.observe(run, batch.channel)
            if not run.to:
                run.gone = True
                flow.fifo.remove(run)
        full = partly or len(seen) == channel.cap
        batch.closed = CUT if cut else CAP if full else DUE if due else LINGER
        return batch if batch.items else None

    def observe(self, run: Run, channel: int) -> None:
        if run.attempt == 0:
            self.waits.append((run.tier, channel, max(0, self.now - max(run.pushed, run.not_before))))
        self.late.append((run.tier, max(0, self.now - run.due)))

    def charge(self, batch: Batch, path: list[tuple[Node, Scope]], channel: Channel) -> None:
        n = len(batch.items)
        for _, scope in path:
            scope.held = [scope.held[0] + 1, scope.held[1] + n]
        channel.in_flight[batch.tier] += 1
        path[0][0].turn += self.stride[batch.tier]
        self.counts["popped"][batch.tier] += n

    def after_batch(self, flow: Flow, n: int) -> None:
        leaf = flow.leaf
        flow.deficit -= n
        if 0 < flow.queued < self.channel_of(leaf).cap:
            flow.close = min(run.close for run in flow.fifo)
            if flow.close > self.now:
                self.make_linger(flow)
        if flow.state == "ready" and flow.queued and flow.deficit <= 0:
            flow.fresh = True
            leaf.flows.append(leaf.flows.pop(leaf.flows.index(flow)))
        self.rest_if_empty(flow)
        node = leaf
        while node.parent is not None and node.parent is not self.root:
            if node in node.parent.ring:
                node.parent.ring.append(node.parent.ring.pop(node.parent.ring.index(node)))
            node = node.parent

    def release(self, now: int, account: int, tier: int, n: int, left: int, late: int) -> None:
        self.advance(now)
        leaf = self.leaves[account][tier]
        for _, scope in self.path(leaf):
            scope.held = [scope.held[0] - 1, scope.held[1] - n]
            for limit in scope.limits:
                limit.when(self.now, 0, tier, 0)
                if left:
                    limit.count(max([self.now + late, *(entry[1] for entry in limit.entries)]), scope.uses(limit, left))
        for _, scope in self.path(leaf):
            self.reconsider(scope)
        channel = self.channel_of(leaf)
        channel.in_flight[tier] -= 1
        for lane in channel.lanes:
            if lane.state == "blocked" and channel.has_slot(lane.tier):
                lane.state = "open"
                self.activate(lane)

    # --- what ends ---

    def cancel(self, tenant: int, campaign: int) -> int:
        before = len(self.ended)
        for flow in [flow for flow in self.flows.values() if flow.key[:2] == (tenant, campaign)]:
            self.rest(flow)
            for run in flow.fifo + flow.waiting:
                self.end(run, CANCELLED)
            del self.flows[(flow.leaf, flow.key)]
        return len(self.ended) - before

    def reap(self, now: int, budget: int) -> list[tuple[int, int, int, int, int]]:
        self.advance(now)
        rows, self.ended = self.ended[:budget], self.ended[budget:]
        return rows

    def block(self, scope: int, handle: int, until: int) -> None:
        of = self.scope(scope, handle)
        of.blocked = max(of.blocked, until)

    # --- numbers ---

    def stats(self) -> dict[str, list[int]]:
        rows = [self.tier_stats(tier) for tier in range(3)]
        return self.counts | {name: [row[name] for row in rows] for name in rows[0]}

    def tier_stats(self, tier: int) -> dict[str, int]:
        flows = [flow for flow in self.flows.values() if flow.leaf.tier == tier]
        waiting = [run for flow in flows for run in flow.waiting]
        queued = sum(flow.queued for flow in flows)
        linger = sum(flow.queued for flow in flows if flow.state == "linger")
        throttled = sum(flow.queued for flow in flows if flow.state == "ready" and self.is_parked(flow.leaf))
        retry = sum(len(run.to) for run in waiting if run.attempt)
        scheduled = sum(len(run.to) for run in waiting if not run.attempt)
        return {
            "queued": queued,
            "waiting": retry + scheduled,
            "retry": retry,
            "scheduled": scheduled,
            "ended": sum(row[4] == tier for row in self.ended),
            "linger": linger,
            "throttled": throttled,
            "ready": queued - linger - throttled,
            "flows": len(flows),
            "runs": sum(len(flow.fifo) + len(flow.waiting) for flow in flows),
        }

    def is_parked(self, node: Node) -> bool:
        return node.state == "parked" or (node.parent is not None and self.is_parked(node.parent))
