"""The scheduling core again, in plain Python: slow, short, and the judge of ext/schedule.pyx.

It says what the core must do, outputs in the same order, and shares no idea of how: timers are a heap, every FIFO is a
list of recipients, numbers are counted up when asked for, windows look through a log of what left.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.property.pace_model import SLOT_NS, CapacityModel, PaceModel
from tests.property.paced_model import AT_ONCE, DIGITS, PILE, PILES, Beside, Paced, Pacing, by_due
from tests.property.why_model import Explained

NEVER = 2**63 - 1
TICK_NS = 2**20
SYSTEM, TEMPLATE, BASIC = range(3)
CAP, LINGER, DUE, CUT = range(4)
EXPIRED, CANCELLED = 1, 2
FRESH_RUN, LEAST_COST, COMPARED = 8, 16, 8


@dataclass(eq=False)
class Run:
    """One row of a push."""

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
    to: list[tuple[int, bytes]]  # (position, id)


@dataclass(eq=False)
class Recipient:
    run: Run
    position: int
    name: bytes
    close: int
    first: bool = False  # its content is known to stand in a mixed queue by it
    slot: int = 0  # paced: of its due time
    opens: bool = False  # paced: a call that is counted there


@dataclass(eq=False)
class Fifo:
    of: list[Recipient] = field(default_factory=list)
    close: int = NEVER  # not after the earliest
    deadline: int = NEVER
    closes_fall: bool = False
    deadlines_fall: bool = False
    names: set[bytes] = field(default_factory=set)  # paced: of those who came alone into its last call

    def expect(self, close: int, deadline: int) -> None:
        if self.of and not (self.closes_fall and self.deadlines_fall):
            self.closes_fall |= close < self.of[-1].close
            self.deadlines_fall |= deadline < self.of[-1].run.deadline
        self.close, self.deadline = min(self.close, close), min(self.deadline, deadline)

    def add(self, run: Run, close: int, first: bool, slot: int) -> list[Recipient]:
        self.expect(close, run.deadline)
        self.of += [Recipient(run, position, name, close, slot=slot) for position, name in run.to]
        self.of[-len(run.to)].first = first
        return self.of[-len(run.to) :]

    def splice(self, more: Fifo) -> None:
        if not self.of:
            self.closes_fall, self.deadlines_fall, self.names = more.closes_fall, more.deadlines_fall, more.names
        else:
            self.expect(more.of[0].close, more.of[0].run.deadline)
            self.closes_fall |= more.closes_fall
            self.deadlines_fall |= more.deadlines_fall
        self.close, self.deadline = min(self.close, more.close), min(self.deadline, more.deadline)
        self.of += more.of

    def take(self) -> Recipient:
        first = self.of.pop(0)
        if not self.of:
            self.__init__()  # type: ignore[misc]
        return first

    def renew(self) -> None:
        if self.of and not self.closes_fall:
            self.close = self.of[0].close
        if self.of and not self.deadlines_fall:
            self.deadline = self.of[0].run.deadline


@dataclass(eq=False)
class Timer:
    """The entry of the heap that counts; others mean nothing."""

    tick: int = 0
    entry: object = None


@dataclass(eq=False)
class Parcel:
    queue: Queue
    tick: int
    fifo: Fifo = field(default_factory=Fifo)
    timer: Timer = field(default_factory=Timer)


@dataclass(eq=False)
class Queue:
    branch: Node
    key: tuple[int, int, int]
    mixed: bool
    fifo: Fifo = field(default_factory=Fifo)
    parcels: list[Parcel] = field(default_factory=list)
    state: str = "idle"  # idle, linger, ready, dead
    timer: Timer = field(default_factory=Timer)
    haste: int = 0  # paced, like the next ones
    last_due: int = -(2**63)
    slot: int = 0
    counted: bool = False  # its first call
    counted_in: int = 0
    stands: PaceModel | list[Queue] | None = None  # in its lane's rings, or among those aside or returning

    @property
    def leaf(self) -> Node:
        return self.branch.above(2)

    @property
    def at_once(self) -> bool:
        return bool(self.haste & AT_ONCE)

    @property
    def waiting(self) -> list[Recipient]:
        return [recipient for parcel in self.parcels for recipient in parcel.fifo.of]

    def once(self, content: int) -> tuple[Node, tuple[int, int, int]]:
        return self.leaf, (*self.key[:2], content)


@dataclass
class Refusal:
    scope: int  # which of the path
    limit: Limit | None  # None: the scope is blocked
    until: int


@dataclass(eq=False)
class Node:
    """Everything, a tier, a lane (tier x channel), a leaf (tier x account), a tenant or a campaign in a leaf."""

    level: str
    tier: int
    parent: Node | None
    scope: Scope | None = None
    handle: int = 0
    ring: list[Node] = field(default_factory=list)
    fresh: list[Node] = field(default_factory=list)
    ready: list[Queue] = field(default_factory=list)  # a campaign's
    queues: list[Queue] = field(default_factory=list)  # a campaign's, all
    branches: dict[int, Node] = field(default_factory=dict)  # a leaf's tenants, a tenant's campaigns
    held: set[str] = field(default_factory=set)
    timer: Timer = field(default_factory=Timer)
    turn: int = 0
    deficit: int = 0
    owed: bool = False
    fresh_had: int = 0
    pacing: Pacing | None = None  # a tier's or a lane's
    aside: list[Queue] = field(default_factory=list)
    newcomer: bool = True
    kept: Refusal | None = None  # of the last time it was parked
    keeper: Scope | None = None  # likewise
    stays: bool = False
    paused_until: int = 0  # of the last time it was paused

    def above(self, levels: int) -> Node:
        node = self
        for _ in range(levels):
            assert node.parent is not None
            node = node.parent
        return node

    @property
    def has_work(self) -> bool:
        """Queues READY below that nothing below holds."""
        return bool(self.ready) or any(child.has_work and not child.held for child in self.branches.values())

    @property
    def stands(self) -> bool:
        assert self.parent is not None
        return self in self.parent.ring or self in self.parent.fresh


@dataclass
class Limit:
    recipients: bool
    number: int
    per: int
    reserved: int
    entries: list[list[int]] = field(default_factory=list)  # begun, at, n
    handle: int = 0  # the core's

    def ceiling(self, tier: int) -> int:
        return self.number if tier == SYSTEM else self.number - self.reserved

    def count(self, at: int, n: int) -> None:
        if self.entries and at < self.entries[-1][0] + -(-self.per // 1000):
            self.entries[-1][1:] = [at, self.entries[-1][2] + n]
        else:
            self.entries.append([at, at, n])

    def used(self, now: int) -> int:
        return sum(entry[2] for entry in self.entries if entry[1] + self.per > now)

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
    stays: bool = False
    in_flight: list[int] = field(default_factory=lambda: [0, 0, 0])
    beside: Beside = field(default_factory=Beside)

    def __post_init__(self) -> None:
        self.capacity = CapacityModel(self.slots)

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


def tick_up(at: int) -> int:
    return max(0, -(-at // TICK_NS))


class Model(Explained, Paced):
    def __init__(
        self,
        template_weight: int,
        basic_weight: int,
        lead: int,
        own_queues: int,
        *,
        pacing: tuple[int, ...],
        tau_ns: int,
        floor: int,
        near_ns: tuple[int, ...],
        horizon_ns: int,
    ) -> None:
        self.now = 0
        self.horizon = horizon_ns
        self.pace(pacing, tau_ns, floor, near_ns)
        self.lead, self.own_queues = lead, own_queues
        self.stride = [0, 2**20 // template_weight, 2**20 // basic_weight]
        self.timers: list[tuple[int, int, Timer, Callable[[], None]]] = []
        self.armed = self.tick = 0
        self.everything, self.of_tier = Scope(), [Scope() for _ in range(3)]
        self.root = Node("root", -1, None)
        self.tiers = [Node("tier", tier, self.root, pacing=self.pacing(tier, Timer())) for tier in range(3)]
        self.channels: list[Channel] = []
        self.leaves: list[list[Node]] = []  # an account: by tier
        self.branches: list[Node] = []  # tenants and campaigns of all leaves, in order of creation
        self.paused: dict[tuple[int, ...], int] = {}  # tenants, and campaigns with their tenants: until when
        self.tenants: defaultdict[int, Scope] = defaultdict(Scope)
        self.each: defaultdict[int, list[Limit]] = defaultdict(list)  # a channel's rules for each tenant
        self.shares: dict[tuple[int, int], Scope] = {}  # a channel and a tenant: made after its rules
        self.weights: dict[tuple[int, ...], int] = {}
        self.once: set[tuple[Node, tuple[int, int, int]]] = set()  # contents that stand in a mixed queue
        self.told: list[tuple[int, int, int, int, int]] = []  # cause, send, position, attempt, tier
        self.sweeping: list[Queue] = []
        self.dead: list[Queue] = []
        self.counts = {name: [0, 0, 0] for name in ("pushed", "popped", "expired", "cancelled", "put_off")}
        self.waits: list[tuple[int, int, int]] = []  # tier, channel, ns
        self.late: list[tuple[int, int]] = []

    # --- the tree ---

    def add_channel(self, slots: int, reserved: int, cap: int, stays: bool) -> None:
        scope = Scope()
        lanes = [Node("lane", tier, self.tiers[tier], scope, len(self.channels)) for tier in range(3)]
        for lane in lanes:
            lane.pacing = self.pacing(lane.tier, Timer())
        self.channels.append(Channel(slots, reserved, cap, lanes, stays))

    def add_account(self, channel: int) -> None:
        scope, lanes = Scope(), self.channels[channel].lanes
        self.leaves.append([Node("leaf", tier, lanes[tier], scope, len(self.leaves)) for tier in range(3)])

    def scope(self, scope: int, handle: int) -> Scope:
        if scope >= 3:
            return self.of_tier[handle] if scope == 3 else self.tenants[handle]
        found = [self.everything, self.channels[handle].lanes[0].scope if scope == 1 else None, None][scope]
        if scope == 2:
            found = self.leaves[handle][0].scope
        assert found is not None
        return found

    def channel_of(self, leaf: Node) -> Channel:
        return self.channels[leaf.above(1).handle]

    def activate(self, node: Node) -> None:
        while node.parent is not None and not node.held and (node.ring or node.fresh) and not node.stands:
            other = self.other(node)
            if other is not None:
                node.turn = max(node.turn, other.turn - self.stride[other.tier])
            node.parent.ring.append(node)
            self.place(node)
            node = node.parent

    def other(self, node: Node) -> Node | None:
        """The other tier, or its lane of the same channel or leaf of the same account; of template and basic."""
        if node.tier == SYSTEM:
            return None
        if node.level == "tier":
            return self.tiers[TEMPLATE + BASIC - node.tier]
        beside = self.channels[node.handle].lanes if node.level == "lane" else self.leaves[node.handle]
        return beside[TEMPLATE + BASIC - node.tier]

    def behind(self, node: Node) -> Node:
        """Of the two, if both take turns by fair shares, the one that had less."""
        other = self.other(node)
        if other is None or not other.stands or other.turn >= node.turn:
            return node
        lane = self.lane_above(other)
        return node if by_due(lane) or not lane.stands or lane.above(1).held else other

    def deactivate(self, node: Node) -> None:
        while node.parent is not None and node in node.parent.ring:
            node.parent.ring.remove(node)
            self.place(node)
            node = node.parent
            if node.ring or node.fresh:
                return

    def join(self, node: Node, ring: list[Node]) -> None:
        node.owed = True
        ring.append(node)
        if node.level == "tenant":
            self.activate(node.above(1))

    def leave(self, node: Node) -> None:
        parent = node.above(1)
        (parent.ring if node in parent.ring else parent.fresh).remove(node)
        if node.level == "tenant" and not (parent.ring or parent.fresh):
            self.deactivate(parent)

    def newly_ready(self, node: Node) -> None:
        """A campaign, or a tenant, may have got work, or lost its last."""
        while node.level in ("campaign", "tenant") and not node.held:
            parent = node.above(1)
            if node.has_work and not node.stands:
                self.join(node, parent.fresh)
            elif node.stands and not node.has_work and by_due(self.lane_above(node)):
                self.leave(node)
            node = parent

    def lane_above(self, node: Node) -> Node:
        return node if node.level == "lane" else self.lane_above(node.above(1))

    def hold(self, node: Node, why: str) -> None:
        was_open = not node.held
        node.held.add(why)
        node.deficit = min(node.deficit, 0)
        if was_open and node.level not in ("campaign", "tenant"):
            self.deactivate(node)
        elif was_open:
            if node.stands:
                self.leave(node)
            if node.level == "campaign":
                self.newly_ready(node.above(1))

    def let_go(self, node: Node, why: str) -> None:
        node.held.discard(why)
        if node.held:
            return
        self.give_back(node)
        if node.level not in ("campaign", "tenant"):
            self.activate(node)
        elif node.has_work or node.ring or node.fresh:  # be it only what is to be tidied
            self.join(node, node.above(1).ring)
            self.newly_ready(node.above(1))
        else:
            self.free_if_idle(node)

    def park(self, node: Node, scope: Scope, no: Refusal) -> None:
        self.hold(node, "parked")
        node.kept, node.keeper = no, scope
        scope.parked.append(node)
        if no.until != NEVER:
            self.arm(node.timer, no.until, lambda: self.unpark(node))

    def unpark(self, node: Node) -> None:
        assert node.keeper is not None
        self.disarm(node.timer)
        node.keeper.parked.remove(node)
        self.let_go(node, "parked")

    def ask_again(self, node: Node) -> None:
        while node is not self.root:
            if "parked" in node.held:
                self.unpark(node)
            node = node.above(1)

    def reconsider(self, scope: Scope) -> None:
        for node in list(scope.parked):
            self.unpark(node)

    def branch(self, parent: Node, level: str, handle: int) -> Node:
        if handle not in parent.branches:
            parent.branches[handle] = Node(level, parent.tier, parent, None, handle)
            self.branches.append(parent.branches[handle])
            if group_of(parent.branches[handle]) in self.paused:
                parent.branches[handle].held.add("paused")
                parent.branches[handle].paused_until = self.paused[group_of(parent.branches[handle])]
        return parent.branches[handle]

    def free_if_idle(self, node: Node) -> None:
        while node.level in ("campaign", "tenant") and not (node.queues or node.branches or node.stands or node.stays):
            self.disarm(node.timer)
            for scope in (self.tenants[node.handle], self.shares.get((self.lane_above(node).handle, node.handle))):
                if "parked" in node.held and scope is not None and node in scope.parked:
                    scope.parked.remove(node)
            del node.above(1).branches[node.handle]
            self.branches.remove(node)
            node = node.above(1)

    # --- time ---

    def arm(self, timer: Timer, at: int, fire: Callable[[], None]) -> None:
        self.armed += 1
        timer.tick, timer.entry = max(tick_up(at), self.tick), fire
        heapq.heappush(self.timers, (timer.tick, self.armed, timer, fire))

    def disarm(self, timer: Timer) -> None:
        timer.entry = None

    def advance(self, now: int) -> None:
        self.now = max(self.now, now)
        while self.timers and self.timers[0][0] <= self.now // TICK_NS:
            tick, _, timer, fire = heapq.heappop(self.timers)
            if timer.entry is fire:
                self.tick, timer.entry = tick, None
                fire()
        self.tick = max(self.tick, self.now // TICK_NS)

    @property
    def has_ended(self) -> bool:
        return bool(self.told or self.sweeping or self.dead)

    def next_due(self) -> int:
        if self.has_ended or self.root.ring:
            return self.now
        return min((tick * TICK_NS for tick, _, timer, fire in self.timers if timer.entry is fire), default=NEVER)

    # --- queues ---

    def arm_queue(self, queue: Queue) -> None:
        wake = NEVER if queue in self.sweeping else queue.fifo.deadline
        if queue.state == "linger":
            wake = min(wake, queue.fifo.close)
        if wake == NEVER or (queue.timer.entry is not None and queue.timer.tick <= tick_up(wake)):
            return
        self.arm(queue.timer, wake, lambda: self.fire_queue(queue))

    def fire_queue(self, queue: Queue) -> None:
        if queue.state == "linger" and queue.fifo.close <= self.now:
            self.make_ready(queue)
        if queue.fifo.deadline <= self.now and queue not in self.sweeping:
            self.sweeping.append(queue)
        self.arm_queue(queue)

    def rest(self, queue: Queue) -> None:
        was, queue.state = queue.state, "idle"
        if was == "ready":
            self.stand_down(queue)
            queue.branch.ready.remove(queue)
            self.newly_ready(queue.branch)

    def make_ready(self, queue: Queue) -> None:
        self.rest(queue)
        queue.state = "ready"
        queue.branch.ready.append(queue)
        self.newly_ready(queue.branch)
        self.stand_by(queue)

    def make_linger(self, queue: Queue) -> None:
        self.rest(queue)
        queue.state = "linger"
        self.arm_queue(queue)

    def settle(self, queue: Queue) -> None:
        if queue.state != "ready":
            cap = self.channel_of(queue.leaf).cap
            if queue.mixed or len(queue.fifo.of) >= cap or queue.fifo.close <= self.now:
                self.make_ready(queue)
            elif queue.state == "idle":
                self.make_linger(queue)
        self.arm_queue(queue)

    def rest_if_empty(self, queue: Queue) -> None:
        if queue.fifo.of:
            return
        self.rest(queue)
        if not queue.parcels:
            if queue in self.sweeping:
                self.sweeping.remove(queue)
            self.forget(queue)

    def forget(self, queue: Queue) -> None:
        self.disarm(queue.timer)
        queue.branch.queues.remove(queue)
        self.free_if_idle(queue.branch)

    def must_close(self, run: Run) -> int:
        return min(run.due, NEVER if run.deadline == NEVER else run.deadline - self.lead)

    # --- in ---

    def push(self, now: int, runs: list[Run]) -> None:
        self.advance(now)
        aimed = [self.queue_for(run) if run.deadline > self.now else None for run in runs]
        for run, target in zip(runs, aimed, strict=True):
            self.counts["pushed"][run.tier] += len(run.to)
            if target is None:
                for position, _ in run.to:
                    self.tell(run, position)
            else:
                self.put(run, *target)

    def queue_for(self, run: Run) -> tuple[Queue, bool]:
        tenant, campaign, _ = run.key
        leaf = self.leaves[run.account][run.tier]
        haste, due = self.haste(leaf.above(1), run), self.due_of(run)
        branch = self.branch(self.branch(leaf, "tenant", tenant), "campaign", campaign)
        own = {queue.haste: queue for queue in branch.queues if queue.key == run.key and not queue.mixed}
        if haste & DIGITS:
            while haste in own and own[haste].last_due > due + SLOT_NS and haste & PILES != PILES:
                haste += PILE
        queue, first = (own[haste], False) if haste in own else self.new_queue_for(run, leaf, branch, haste)
        queue.last_due = max(queue.last_due, due)
        return queue, first

    def new_queue_for(self, run: Run, leaf: Node, branch: Node, haste: int) -> tuple[Queue, bool]:
        if len(branch.queues) >= self.own_queues and (leaf, run.key) not in self.once:
            self.once.add((leaf, run.key))
            for queue in branch.queues:
                if queue.mixed and queue.at_once == bool(haste & AT_ONCE):
                    return queue, True
            return self.make_queue(branch, run, True, haste), True
        return self.make_queue(branch, run, False, haste), False

    def make_queue(self, branch: Node, run: Run, mixed: bool, haste: int) -> Queue:
        pacing = self.lane_above(branch).pacing
        branch.queues.append(Queue(branch, run.key, mixed, haste=haste, slot=pacing.pace.base - 1 if pacing else 0))
        return branch.queues[-1]

    def put(self, run: Run, queue: Queue, first: bool) -> None:
        start = max(self.now, run.not_before)
        latest = self.must_close(run)
        if start < latest < NEVER and self.is_paced(queue.leaf.above(1), run):
            latest = start + (latest - start) // 2
        close = min(start + run.linger, NEVER, latest)
        slot = self.slot_of(queue.leaf.above(1), run)
        if run.not_before > self.now:
            self.wait(run, queue, close, first, slot)
            return
        new = queue.fifo.add(run, close, first, slot)
        self.open_calls(queue, queue.fifo, new)
        self.count_first(queue)
        self.settle(queue)

    def wait(self, run: Run, queue: Queue, close: int, first: bool, slot: int) -> None:
        until = min(run.not_before, run.deadline)
        if not queue.parcels or queue.parcels[-1].tick != tick_up(until):
            parcel = Parcel(queue, tick_up(until))
            queue.parcels.append(parcel)
            if until != NEVER:
                self.arm(parcel.timer, until, lambda: self.wake(parcel))
        new = queue.parcels[-1].fifo.add(run, close, first, slot)
        self.open_calls(queue, queue.parcels[-1].fifo, new)

    def wake(self, parcel: Parcel) -> None:
        queue = parcel.queue
        if queue.state == "dead":
            return
        self.count_parcel(queue, parcel)
        queue.fifo.splice(parcel.fifo)
        queue.parcels.remove(parcel)
        self.count_first(queue)
        self.settle(queue)

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

    def turn_of(self, parent: Node) -> Node | None:
        first = parent.fresh
        if not first or (parent.fresh_had >= FRESH_RUN and parent.ring):
            first = parent.ring
        node = first[0]
        if not node.has_work:
            self.tidy(node)
            return None
        if node.owed:
            node.owed = False
            cap = self.channels[node.above(2 if node.level == "tenant" else 3).handle].cap
            node.deficit += cap * self.weights.get(group_of(node), 1)
        assert node.deficit > 0
        return node

    def tidy(self, node: Node) -> None:
        if node.level == "tenant" and (node.fresh or node.ring):
            node = (node.fresh or node.ring)[0]
        self.leave(node)
        self.free_if_idle(node)

    def pay(self, node: Node, cost: int) -> None:
        node.deficit -= cost
        if not node.has_work:
            node.deficit = min(node.deficit, 0)
        if not node.has_work or node.deficit <= 0:
            parent = node.above(1)
            parent.fresh_had = min(FRESH_RUN, parent.fresh_had + 1) if node in parent.fresh else 0
            (parent.fresh if node in parent.fresh else parent.ring).remove(node)
            parent.ring.append(node)
            node.owed = True

    def visit(self, tier: Node) -> Batch | None:
        lane = tier.ring[0]
        if by_due(tier) and tier.pacing and tier.pacing.pace.first() is not None:
            lane = tier.pacing.pace.first()  # type: ignore[assignment]
        lane = self.behind(lane)
        channel = self.channels[lane.handle]
        if not channel.has_slot(lane.tier):
            self.hold(lane, "blocked")
            return None
        if self.held_back(lane):
            return None
        queue = self.choose(lane)
        if queue is None:
            return None
        leaf = queue.leaf
        path = self.path(leaf, queue.branch.above(1))
        content, there = self.next_batch(queue, channel.cap)
        most, no = self.ask(queue, path, there)
        if no is not None:
            self.park(path[no.scope][0], path[no.scope][1], no)
            return None
        batch = self.send(queue, content, most, most < there, path, channel)
        if batch is not None:
            for node in (tier, lane, leaf):
                node.turn += self.stride[node.tier]
        return batch

    def choose(self, lane: Node) -> Queue | None:
        if lane.pacing and ((by_due(lane) and lane.pacing.pace.first() is not None) or self.is_away(lane)):
            return self.due_first(lane)
        leaf = self.behind(lane.ring[0])
        tenant = self.turn_of(leaf)
        campaign = self.turn_of(tenant) if tenant else None
        if campaign is None:
            return None
        paced = leaf.above(1).pacing is not None
        return min(campaign.ready[:COMPARED], key=lambda queue: queue.slot) if paced else campaign.ready[0]

    def refusal(self, path: list[tuple[Node, Scope]], n: int, tier: int) -> Refusal | None:
        """The first that refuses a batch of n now."""
        return next(iter(self.refusals(path, n, tier)), None)

    def refusals(self, path: list[tuple[Node, Scope]], n: int, tier: int) -> list[Refusal]:
        found = [Refusal(at, None, scope.blocked) for at, (_, scope) in enumerate(path) if scope.blocked > self.now]
        for at, (_, scope) in enumerate(path):
            for limit in scope.limits:
                until = limit.when(self.now, scope.uses(limit, n), tier, scope.held[limit.recipients])
                if until > self.now:
                    found.append(Refusal(at, limit, until))
        return found

    def path(self, leaf: Node, tenant: Node) -> list[tuple[Node, Scope]]:
        """What waits when a scope refuses, and the scope; the widest first."""
        lane, tier = leaf.above(1), leaf.above(2)
        assert lane.scope is not None
        assert leaf.scope is not None
        above = [(tier, self.everything), (tier, self.of_tier[tier.tier]), (lane, lane.scope), (leaf, leaf.scope)]
        mine = [(tenant, self.tenants[tenant.handle])]
        if self.each[lane.handle]:
            mine.append((tenant, self.share(lane.handle, tenant.handle)))
        return [*above, *mine]

    def share(self, channel: int, tenant: int) -> Scope:
        if (channel, tenant) not in self.shares:
            self.shares[channel, tenant] = Scope(limits=[replace(rule, entries=[]) for rule in self.each[channel]])
        return self.shares[channel, tenant]

    def next_batch(self, queue: Queue, cap: int) -> tuple[int, int]:
        recipients = queue.fifo.of[:cap]
        content = recipients[0].run.key[2]
        if not queue.mixed:
            return queue.key[2], len(recipients)
        alike = next((i for i, each in enumerate(recipients) if each.run.key[2] != content), len(recipients))
        return content, alike

    def ask(self, queue: Queue, path: list[tuple[Node, Scope]], n: int) -> tuple[int, Refusal | None]:
        """How many of n go in one call: half of a limit's number; of system what there is room for; where the wait is
        longer than the horizon, or half of what is left of a deadline, what fits by then. And what refuses them."""
        tier, wait = queue.leaf.tier, self.horizon
        if queue.fifo.deadline < NEVER:
            wait = min(wait, max(queue.fifo.deadline - self.lead - self.now, 0) // 2)
        n = self.largest_call(n, path, tier)
        if tier == SYSTEM:
            rooms = [room(limit, scope, self.now, tier) for _, scope in path for limit in scope.limits]
            n = min([n, *rooms])
        while (no := self.refusal(path, n, tier)) is not None and no.limit is not None:
            fits = room(no.limit, path[no.scope][1], self.now + wait, tier)
            if not no.limit.recipients or fits >= n or not self.now + wait < no.until < NEVER:
                break
            n = fits
        return n, no

    def largest_call(self, n: int, path: list[tuple[Node, Scope]], tier: int) -> int:
        halves = [limit.ceiling(tier) // 2 for _, scope in path for limit in scope.limits if limit.recipients]
        return n if tier == SYSTEM else min([n, *(max(half, 1) for half in halves)])

    def send(
        self, queue: Queue, content: int, most: int, more: bool, path: list[tuple[Node, Scope]], channel: Channel
    ) -> Batch | None:
        leaf = queue.leaf
        key = (*queue.key[:2], content)
        batch = Batch(leaf.tier, leaf.above(1).handle, leaf.handle, key, LINGER, NEVER, [])
        cut, due = self.form(queue, most, batch)
        queue.fifo.renew()
        self.count_first(queue)
        if not batch.items:
            self.stand_by(queue)
            self.rest_if_empty(queue)
            return None
        more = more or len(batch.items) == channel.cap
        batch.closed = CUT if cut else CAP if more else DUE if due else LINGER
        self.charge(batch, queue, path, channel)
        self.after_batch(queue, len(batch.items), channel.cap)
        return batch

    def form(self, queue: Queue, most: int, batch: Batch) -> tuple[bool, bool]:
        due = False
        seen: set[bytes] = set()
        while queue.fifo.of and len(seen) < most:
            first = queue.fifo.of[0]
            run = first.run
            if run.deadline <= self.now:
                self.tell(run, self.take(queue).position)
                continue
            if queue.mixed and run.key[2] != batch.key[2]:
                break
            if first.name in seen:
                return True, due
            seen.add(first.name)
            self.take(queue)
            batch.items.append((run.send, first.position, run.attempt, run.pushed, first.name))
            batch.due = min(batch.due, run.due)
            due = due or self.must_close(run) <= self.now
            if run.attempt == 0:
                self.waits.append((run.tier, batch.channel, max(0, self.now - max(run.pushed, run.not_before))))
            self.late.append((run.tier, max(0, self.now - run.due)))
        return False, due

    def take(self, queue: Queue) -> Recipient:
        self.uncount(queue, queue.fifo.of[0])
        first = queue.fifo.take()
        if first.first:
            self.once.discard(queue.once(first.run.key[2]))
        return first

    def charge(self, batch: Batch, queue: Queue, path: list[tuple[Node, Scope]], channel: Channel) -> None:
        n = len(batch.items)
        for _, scope in path:
            scope.held = [scope.held[0] + 1, scope.held[1] + n]
        channel.in_flight[batch.tier] += 1
        self.note_call(path[2][0], queue, channel)
        self.counts["popped"][batch.tier] += n

    def after_batch(self, queue: Queue, n: int, cap: int) -> None:
        campaign = queue.branch
        tenant, leaf = campaign.above(1), campaign.above(2)
        if not queue.fifo.of:
            self.rest(queue)
        elif not queue.mixed and len(queue.fifo.of) < cap and queue.fifo.close > self.now:
            self.make_linger(queue)
        else:
            campaign.ready.append(campaign.ready.pop(campaign.ready.index(queue)))
            if queue.at_once:
                self.stand_down(queue)
            self.stand_by(queue)
        if not by_due(leaf.above(1)):
            for node in (campaign, tenant):
                self.pay(node, max(n, -(-cap // LEAST_COST)))
        self.rest_if_empty(queue)
        for node in (leaf, leaf.above(1)):
            ring = node.above(1).ring
            if node in ring:
                ring.append(ring.pop(ring.index(node)))
                if node.level == "lane":
                    self.place_last(node)

    def release(self, now: int, account: int, tier: int, n: int, left: int, late: int, tenant: int) -> None:
        self.advance(now)
        leaf = self.leaves[account][tier]
        path = self.path(leaf, Node("tenant", tier, leaf, None, tenant))
        at = self.now + late
        if left and late and any(scope.limits for _, scope in path):
            self.arm(Timer(), at, lambda: self.settle_call(path, n, left, at))
        else:
            self.settle_call(path, n, left, at)
        channel = self.channel_of(leaf)
        channel.in_flight[tier] -= 1
        if any(self.modes):
            channel.capacity.end(self.now)
        for lane in channel.lanes:
            if "blocked" in lane.held and channel.has_slot(lane.tier):
                self.let_go(lane, "blocked")

    def settle_call(self, path: list[tuple[Node, Scope]], n: int, left: int, at: int) -> None:
        for _, scope in path:
            scope.held = [scope.held[0] - 1, scope.held[1] - n]
            for limit in scope.limits:
                if left:
                    limit.count(max([at, *(entry[1] for entry in limit.entries)]), scope.uses(limit, left))
        for _, scope in path:
            self.reconsider(scope)

    # --- what ends ---

    def tell(self, run: Run, position: int) -> None:
        self.counts["expired"][run.tier] += 1
        self.told.append((EXPIRED, run.send, position, run.attempt, run.tier))

    def cancel(self, tenant: int, campaign: int) -> int:
        nodes = [node for node in self.branches if group_of(node) == (tenant, campaign)]
        dead = [queue for node in nodes for queue in node.queues]
        for node in nodes:
            node.stays = True  # though its last queue goes
            self.cancel_all(list(node.queues))
            self.ask_again(node.above(1))
            node.stays = False
            self.free_if_idle(node)
        self.dead += dead
        return sum(len(queue.fifo.of) + len(queue.waiting) for queue in dead)

    def cancel_all(self, queues: list[Queue]) -> None:
        for queue in queues:
            self.counts["cancelled"][queue.branch.tier] += len(queue.fifo.of) + len(queue.waiting)
            self.rest(queue)
            if queue.counted:
                self.uncount_call(queue.leaf.above(1), queue.counted_in)
                queue.counted = False
            if queue in self.sweeping:
                self.sweeping.remove(queue)
            self.forget(queue)
            queue.state = "dead"

    def reap(self, now: int, budget: int) -> list[tuple[int, int, int, int, int]]:
        self.advance(now)
        rows, self.told = self.told[:budget], self.told[budget:]
        steps = len(rows)
        while steps < budget and self.sweeping:
            rows += self.sweep(self.sweeping[0], budget - steps)
            steps = max(steps + 1, len(rows))
        while steps < budget and self.dead:
            rows += self.reap_dead(self.dead[0], budget - steps)
            steps = max(steps + 1, len(rows))
        return rows

    def sweep(self, queue: Queue, most: int) -> list[tuple[int, int, int, int, int]]:
        rows: list[tuple[int, int, int, int, int]] = []
        while len(rows) < most and queue.fifo.of and queue.fifo.of[0].run.deadline <= self.now:
            first = self.take(queue)
            self.counts["expired"][first.run.tier] += 1
            rows.append((EXPIRED, first.run.send, first.position, first.run.attempt, first.run.tier))
        queue.fifo.renew()
        self.count_first(queue)
        self.stand_by(queue)
        if rows:
            self.ask_again(queue.branch.above(1))
        if len(rows) < most or not queue.fifo.of:
            if queue.fifo.of:
                queue.fifo.deadline = queue.fifo.of[0].run.deadline
            self.sweeping.remove(queue)
            self.arm_queue(queue)
            self.rest_if_empty(queue)
        return rows

    def reap_dead(self, queue: Queue, most: int) -> list[tuple[int, int, int, int, int]]:
        rows: list[tuple[int, int, int, int, int]] = []
        while len(rows) < most:
            if not queue.fifo.of:
                if not queue.parcels:
                    self.dead.remove(queue)
                    return rows
                queue.fifo = queue.parcels[0].fifo
                self.disarm(queue.parcels.pop(0).timer)
            first = self.take(queue)
            rows.append((CANCELLED, first.run.send, first.position, first.run.attempt, first.run.tier))
        return rows

    # --- what an operator changes ---

    def pause(self, scope: int, handle: int, campaign: int, paused: bool, until: int = 0) -> None:
        nodes = [self.tiers[handle]] if scope == 3 else self.leaves[handle] if scope == 2 else []
        if scope == 1:
            nodes = self.channels[handle].lanes
        if scope > 3:
            group = (handle,) if scope == 4 else (handle, campaign)
            self.paused.pop(group, None)
            self.paused.update({group: until} if paused else {})
            nodes = [node for node in self.branches if group_of(node) == group]
        for node in nodes:
            if paused:
                self.hold(node, "paused")
                node.paused_until = until
                self.ask_again(node.above(1))
                self.free_if_idle(node)
            elif "paused" in node.held:
                self.let_go(node, "paused")

    def reweight(self, scope: int, handle: int, campaign: int, weight: int) -> None:
        if scope == 3:
            self.stride[handle] = 2**20 // weight
        else:
            group = (handle,) if scope == 4 else (handle, campaign)
            self.weights[group] = weight
            for node in self.branches:
                if group_of(node) == group:
                    node.deficit = min(node.deficit, self.channels[self.lane_above(node).handle].cap * weight)

    def block(self, scope: int, handle: int, until: int) -> None:
        of = self.scope(scope, handle)
        of.blocked = max(of.blocked, until)

    # --- numbers ---

    def stats(self) -> dict[str, list[int]]:
        rows = [self.tier_stats(tier) for tier in range(3)]
        return self.counts | {name: [row[name] for row in rows] for name in rows[0]}

    def ready_of(self, tier: int, account: int, tenant: int, campaign: int) -> int:
        """Recipients of a campaign in a leaf that time does not hold."""
        queues = self.leaves[account][tier].branches[tenant].branches[campaign].queues
        return sum(len(queue.fifo.of) for queue in queues if queue.state == "ready")

    def tier_stats(self, tier: int) -> dict[str, int]:
        queues = [queue for node in self.branches if node.tier == tier for queue in node.queues]
        waiting = [recipient for queue in queues for recipient in queue.waiting]
        queued = sum(len(queue.fifo.of) for queue in queues)
        linger = sum(len(queue.fifo.of) for queue in queues if queue.state == "linger")
        held = [(len(queue.fifo.of), holds(queue.branch)) for queue in queues if queue.state == "ready"]
        paused = sum(n for n, why in held if "paused" in why)
        throttled = sum(n for n, why in held if "parked" in why and "paused" not in why)
        paced = sum(n for n, why in held if "held back" in why and not why & {"paused", "parked"})
        pacing = self.tiers[tier].pacing
        retry = sum(recipient.run.attempt > 0 for recipient in waiting)
        dead = [recipient for queue in self.dead for recipient in queue.fifo.of + queue.waiting]
        return {
            "queued": queued,
            "waiting": len(waiting),
            "retry": retry,
            "scheduled": len(waiting) - retry,
            "ended": sum(row[4] == tier for row in self.told) + sum(each.run.tier == tier for each in dead),
            "linger": linger,
            "throttled": throttled,
            "paused": paused,
            "paced": paced,
            "ready": queued - linger - throttled - paused - paced,
            "flows": len(queues),
            "pacing_calls": pacing.pace.work if pacing else 0,
            "pacing_floor": self.floor if pacing else 0,
            "pacing_need": pacing.pace.need if pacing else 0,
            "pacing_rate": pacing.pace.rate if pacing else 0,
        }

    def queues_below(self, node: Node) -> list[Queue]:
        every = [queue for branch in self.branches for queue in branch.queues]
        return [queue for queue in every if node in (queue.leaf.above(1), queue.leaf.above(2))]


def room(limit: Limit, scope: Scope, at: int, tier: int) -> int:
    """For so many recipients, one at least, if nothing else comes until then."""
    return max(limit.ceiling(tier) - limit.used(at) - scope.held[1], 1) if limit.recipients else NEVER


def holds(node: Node) -> set[str]:
    """What holds it or any above it."""
    return node.held | (holds(node.parent) if node.parent is not None else set())


def group_of(node: Node) -> tuple[int, ...]:
    """A tenant, or a campaign with its tenant."""
    return (node.handle,) if node.level == "tenant" else (node.above(1).handle, node.handle)
