"""How the core's plain model paces: which calls are counted where, who waits, and when a lane may go. See model.py.

Rates, slots and rings are ``PaceModel``'s; what opens a call is looked for in the FIFO each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.property.pace_model import (
    ASAP,
    BELOW,
    FASTEST,
    NS,
    OVER,
    PATIENCE_NS,
    SLOT_NS,
    CapacityModel,
    PaceModel,
    rate_of,
)

if TYPE_CHECKING:
    from tests.property.model import Channel, Fifo, Node, Parcel, Queue, Recipient, Run, Scope, Timer

NEVER = 2**63 - 1
NEWCOMER_NS, BOUNDING_NS = 10**10, 2**36
PASSES, LEAST_PASSES = 8, 4
DIGITS, PILE, PILES, AT_ONCE = 15, 16, 48, 64  # of a haste


class Beside:
    """The rate of calls that nothing paces."""

    def __init__(self) -> None:
        self.at = self.sum = 0

    def go_on(self, now: int) -> None:
        while self.sum and now - self.at >= 2**30:
            self.sum -= (self.sum + 7) // 8
            self.at += 2**30
        if not self.sum:
            self.at = now

    def count(self, now: int) -> None:
        self.go_on(now)
        self.sum += 2**16

    def rate(self, now: int) -> int:
        self.go_on(now)
        return rate_of(self.sum, 2**49)


class Pacing:
    """Of a lane, or of a tier over all its lanes."""

    def __init__(self, mode: int, tau: int, floor: int, timer: Timer) -> None:
        self.pace = PaceModel(mode, tau, floor)
        self.timer = timer
        self.slot: int | None = None  # of a lane: where it stands in its tier's rings
        self.returning: list[Queue] = []
        self.ahead = -(2**62)

    def may_pass(self, now: int) -> bool:
        """One in PASSES calls, and a burst."""
        interval = PASSES * (NS // self.pace.rate)
        self.ahead = max(self.ahead, now - max(NEWCOMER_NS, LEAST_PASSES * interval))
        if self.ahead + interval <= now:
            self.ahead += interval
            return True
        return False


class Paced:
    """The part of the model that paces."""

    now: int
    lead: int
    channels: list[Channel]
    everything: Scope
    of_tier: list[Scope]
    arm: Callable[[Timer, int, Callable[[], None]], None]
    disarm: Callable[[Timer], None]
    hold: Callable[[Node, str], None]
    let_go: Callable[[Node, str], None]
    must_close: Callable[[Run], int]
    largest_call: Callable[[int, list[tuple[Node, Scope]], int], int]
    path: Callable[[Node, Node], list[tuple[Node, Scope]]]

    def pace(self, modes: tuple[int, ...], tau: int, floor: int, near: tuple[int, ...]) -> None:
        self.modes, self.tau, self.floor, self.near = modes, tau, floor, near
        self.early: dict[tuple[int, int, int], int] = {}  # account, tier, tenant: until when it is not new again

    def pacing(self, tier: int, timer: Timer) -> Pacing | None:
        return None if self.modes[tier] == ASAP else Pacing(self.modes[tier], self.tau, self.floor, timer)

    # --- due times ---

    def haste(self, lane: Node, run: Run) -> int:
        if lane.pacing is None:
            return 0
        if not self.is_paced(lane, run):
            return AT_ONCE + (128 if run.attempt else 0)
        slots = max(0, self.must_close(run) - max(self.now, run.not_before)) // SLOT_NS
        return min(1 + (slots.bit_length() + 1) // 2, DIGITS) + (128 if run.attempt else 0)

    def is_paced(self, lane: Node, run: Run) -> bool:
        near = self.near[run.tier]
        at_once = near and max(0, run.due - max(run.pushed, run.not_before)) <= near
        return lane.pacing is not None and not at_once

    def due_of(self, run: Run) -> int:
        return self.must_close(run) if run.due > max(run.pushed, run.not_before) else max(self.now, run.not_before)

    def slot_of(self, lane: Node, run: Run) -> int:
        return 0 if lane.pacing is None else lane.pacing.pace.slot(self.now, self.due_of(run))

    def first_slot(self, queue: Queue, first: Recipient) -> int:
        tenant, lane = queue.branch.above(1), queue.leaf.above(1)
        due, key = self.must_close(first.run), (queue.leaf.handle, lane.tier, tenant.handle)
        if not tenant.newcomer:
            return first.slot
        tenant.newcomer = False
        assert lane.pacing is not None
        if due <= self.now + NEWCOMER_NS or self.early.get(key, 0) > self.now or not lane.pacing.may_pass(self.now):
            return first.slot
        self.early[key] = due
        return lane.pacing.pace.slot(self.now, self.now + NEWCOMER_NS)

    # --- work ---

    def count_call(self, lane: Node, slot: int) -> None:
        own, tier = lane.pacing, lane.above(1).pacing
        assert own is not None
        assert tier is not None
        own.pace.add_at(self.now, slot, 1)
        tier.pace.add_at(self.now, slot, 1)
        at = max(own.pace.read_at, self.now + 1)
        if "held back" in lane.held and own.timer.tick > max(0, -(-at // 2**20)):
            self.arm(own.timer, at, lambda: self.let_go(lane, "held back"))

    def uncount_call(self, lane: Node, slot: int) -> None:
        for node in (lane, lane.above(1)):
            assert node.pacing is not None
            node.pacing.pace.remove(slot, 1)

    def open_calls(self, queue: Queue, fifo: Fifo, new: list[Recipient]) -> None:
        """Those of the last ones in the FIFO that open a call."""
        lane, mixed = queue.leaf.above(1), queue.mixed
        if lane.pacing is None or queue.at_once:
            return
        cap, at = self.cap_of(queue), len(fifo.of) - len(new)
        fifo.names = fifo.names if at else set()
        for i, recipient in enumerate(fifo.of[at:], at):
            repeats = not mixed and len(new) < cap and recipient.name in fifo.names
            if i and (fill(fifo.of[:i]) >= cap or repeats or (mixed and i == at)):
                recipient.opens = True
                fifo.names = set()
                self.count_call(lane, recipient.slot)
            if not mixed and len(new) < cap:
                fifo.names.add(recipient.name)

    def cap_of(self, queue: Queue) -> int:
        lane, tenant = queue.leaf.above(1), queue.branch.above(1)
        return self.largest_call(self.channels[lane.handle].cap, self.path(queue.leaf, tenant), lane.tier)

    def count_first(self, queue: Queue) -> None:
        lane = queue.leaf.above(1)
        if lane.pacing is None or queue.at_once or queue.counted or not queue.fifo.of:
            return
        first = queue.fifo.of[0]
        queue.counted = True
        queue.counted_in = first.slot
        if first.opens:
            first.opens = False
        else:
            self.count_call(lane, first.slot)
        queue.slot = self.first_slot(queue, first)

    def uncount(self, queue: Queue, recipient: Recipient) -> None:
        if queue.counted:
            self.stand_down(queue)
            self.uncount_call(queue.leaf.above(1), queue.counted_in)
            queue.counted = False
        elif recipient.opens:
            self.uncount_call(queue.leaf.above(1), recipient.slot)

    def count_parcel(self, queue: Queue, parcel: Parcel) -> None:
        lane, of = queue.leaf.above(1), parcel.fifo.of
        if lane.pacing is None or queue.at_once or not queue.fifo.of:
            return
        opens = any(recipient.opens for recipient in of)
        fits = fill(queue.fifo.of) + len(of) <= self.cap_of(queue)
        if queue.mixed or opens or not fits:
            of[0].opens = True
            queue.fifo.names = parcel.fifo.names
            self.count_call(lane, of[0].slot)
            return
        for recipient in of:
            if recipient.name in queue.fifo.names:
                recipient.opens = True
                queue.fifo.names = set()
                self.count_call(lane, recipient.slot)
            queue.fifo.names.add(recipient.name)

    # --- who waits ---

    def place(self, lane: Node) -> None:
        own, tier = lane.pacing, lane.parent.pacing if lane.parent else None
        if own is None or tier is None:
            return
        first, slot = own.pace.first(), None
        if lane.stands and own.returning:
            slot = tier.pace.base - 1
        elif lane.stands and first is not None:
            slot = first.slot  # type: ignore[attr-defined]
        if slot == own.slot:
            return
        if own.slot is not None:
            tier.pace.wait_no_more(lane)
        own.slot = slot
        if slot is not None:
            tier.pace.wait(self.now, lane, slot)

    def place_last(self, lane: Node) -> None:
        own, tier = lane.pacing, lane.above(1).pacing
        if own is not None and tier is not None and own.slot is not None:
            tier.pace.wait_no_more(lane)
            tier.pace.wait(self.now, lane, own.slot)

    def stand_by(self, queue: Queue) -> None:
        lane = queue.leaf.above(1)
        own = lane.pacing
        if own is None or queue.state != "ready" or queue.stands is not None:
            return
        own.pace.wait(self.now, queue, queue.slot)
        queue.stands = own.pace
        if queue.at_once and "held back" in lane.held:
            self.disarm(own.timer)
            self.let_go(lane, "held back")
        if own.slot is None or queue.slot < own.slot:
            self.place(lane)

    def stand_down(self, queue: Queue) -> None:
        lane = queue.leaf.above(1)
        if lane.pacing is None or queue.stands is None:
            return
        if isinstance(queue.stands, list):
            queue.stands.remove(queue)
            lane.pacing.pace.aside -= 1
            self.place(lane)
        else:
            lane.pacing.pace.wait_no_more(queue)
            if queue.slot == lane.pacing.slot:
                self.place(lane)
        queue.stands = None

    def give_back(self, node: Node) -> None:
        if not node.aside:
            return
        lane = node
        while lane.pacing is None:
            lane = lane.above(1)
        for queue in node.aside:
            queue.stands = lane.pacing.returning
        lane.pacing.returning += node.aside
        node.aside.clear()
        if "held back" in lane.held:
            self.disarm(lane.pacing.timer)
            self.let_go(lane, "held back")
        self.place(lane)

    def due_first(self, lane: Node) -> Queue | None:
        assert lane.pacing is not None
        queue: Queue = lane.pacing.pace.first()  # type: ignore[assignment]
        for node in (queue.leaf, queue.branch.above(1), queue.branch):
            if node.held:
                self.stand_down(queue)
                if queue.slot < lane.pacing.pace.base and not is_limited(node):
                    queue.slot = lane.pacing.pace.base - 1
                queue.stands = node.aside
                node.aside.append(queue)
                lane.pacing.pace.aside += 1
                late = [who for who in lane.pacing.pace.passed if not who.at_once]  # type: ignore[attr-defined]
                if lane.pacing.pace.aside == 1 or not late:
                    lane.pacing.pace.read_at = self.now
                return None
        return queue

    def is_away(self, lane: Node) -> bool:
        assert lane.pacing is not None
        queue: Queue | None = lane.pacing.pace.first()  # type: ignore[assignment]
        nodes = () if queue is None else (queue.leaf, queue.branch.above(1), queue.branch)
        holds = next((node for node in nodes if node.held), None)
        return holds is not None and not is_limited(holds)

    # --- when ---

    def ceiling(self, node: Node) -> int:
        assert node.pacing is not None
        queued = sum(len(queue.fifo.of) for queue in self.queues_below(node))
        recipients = max(queued // max(node.pacing.pace.work, 1), 1)
        rates, scopes = [FASTEST], [self.everything, self.of_tier[node.tier]]
        if node.scope is not None:
            channel = self.channels[node.handle]
            rate = channel.capacity.rate(channel.slots - channel.reserved)
            rates.append(rate if rate == FASTEST else max(rate - channel.beside.rate(self.now), 1))
            scopes.append(node.scope)
        for scope in scopes:
            for limit in scope.limits:
                if limit.per <= BOUNDING_NS:
                    calls = limit.ceiling(node.tier)
                    rates.append(rate_of(max(calls // recipients, 1) if limit.recipients else calls, limit.per))
        return min(rates)

    def queues_below(self, node: Node) -> list[Queue]:
        raise NotImplementedError

    def leaves_at(self, node: Node) -> int:
        assert node.pacing is not None
        if self.now >= node.pacing.pace.read_at:
            node.pacing.pace.roll(self.now)
            node.pacing.pace.ceiling = self.ceiling(node)
            node.pacing.pace.overdue = self.overdue(node)
        return node.pacing.pace.when(self.now)

    def overdue(self, node: Node) -> bool:
        assert node.pacing is not None
        pace, who = node.pacing.pace, [node.pacing.pace.first(), *node.pacing.pace.passed[-1:]]
        if node.level == "tier":
            who = [lane.pacing.pace.first() for lane in who[:1] if lane is not None]  # type: ignore[attr-defined]
        return any(queue is not None and not has_patience(pace, queue) for queue in who)  # type: ignore[arg-type]

    def held_back(self, lane: Node) -> bool:
        own = lane.pacing
        if own is None:
            return False
        if own.returning:
            queue = own.returning.pop(0)
            queue.stands = None
            own.pace.aside -= 1
            self.stand_by(queue)
            self.place(lane)
            return True
        if own.pace.first() is None:
            return False
        when = self.leaves_at(lane)
        waiting: list[Queue] = [*own.pace.passed, *(who for ring in own.pace.waiting.values() for who in ring)]  # type: ignore[list-item]
        if any(queue.at_once for queue in waiting):
            if self.waits_long(own.pace.first()):  # type: ignore[arg-type]
                own.pace.state = OVER
            return False
        if when == 0 and own.pace.state == BELOW:
            when = self.leaves_at(lane.above(1))
        if when:
            self.hold(lane, "held back")
            self.arm(own.timer, when, lambda: self.let_go(lane, "held back"))
        return when > 0

    def waits_long(self, queue: Queue) -> bool:
        if not queue.at_once or any(node.held for node in (queue.leaf, queue.branch.above(1), queue.branch)):
            return False
        run = queue.fifo.of[0].run
        return self.now - max(run.pushed, run.not_before) >= PATIENCE_NS

    def note_call(self, lane: Node, queue: Queue, channel: Channel) -> None:
        if all(mode == ASAP for mode in self.modes):
            return
        channel.capacity.start(self.now)
        tier = lane.above(1).pacing
        if lane.pacing is None or tier is None or queue.at_once:
            channel.beside.count(self.now)
            return
        lane.pacing.pace.leave(self.now)
        if lane.pacing.pace.state == BELOW:
            tier.pace.leave(self.now)


def fill(of: list[Recipient]) -> int:
    """Recipients since the last that opens a call, that one included."""
    return next((n for n, recipient in enumerate(reversed(of), 1) if recipient.opens), len(of))


def has_patience(pace: PaceModel, queue: Queue) -> bool:
    slot = max(queue.slot, queue.counted_in)
    return queue.at_once or pace.base - 1 - slot < PATIENCE_NS // SLOT_NS


def is_limited(node: Node) -> bool:
    parked = node.level == "leaf" and node.held == {"parked"}
    return parked and node.kept is not None and node.kept.limit is not None


def by_due(node: Node) -> bool:
    return node.pacing is not None and node.pacing.pace.state != OVER


__all__ = ["NS", "CapacityModel", "Paced", "Pacing", "by_due"]
