"""What the plain model of the core says of what is held for longer than the horizon."""

from __future__ import annotations

from itertools import groupby

from tests.property.model import NEVER, Model, Node, Queue

BY_PAUSE, BY_REST, BY_LIMIT = 3, 4, 5
Row = tuple[int, int, int, int, int]  # send, position, attempt, cause, until


def put_off(model: Model, tier: int, rows: list[Row]) -> None:
    """What the core has taken out in one portion: it was due to be taken, and stood first in its queue."""
    for queue, some in groupby(rows, lambda row: queue_with(model, tier, row[0], row[1])):
        until, cause = longest(queue.branch)
        for row in some:
            first = queue.fifo.of[0]
            assert row == (first.run.send, first.position, first.run.attempt, cause, until)
            model.take(queue)
            model.counts["put_off"][tier] += 1
        queue.fifo.renew()
        model.count_first(queue)
        model.stand_by(queue)
        model.rest_if_empty(queue)


def all_put_off(model: Model, tier: int) -> None:
    """Nothing is left to be taken, and who has lost its work by it waits for no turn."""
    assert not taken_from(model, tier)
    while (node := idle(model, tier)) is not None:
        model.tidy(node)
    while (node := emptied(model, tier)) is not None:
        model.unpark(node)


def emptied(model: Model, tier: int) -> Node | None:
    """A node that is parked for long, and has nothing any more: who comes next may fit."""
    lanes = [channel.lanes[tier] for channel in model.channels if not channel.stays]
    leaves = [leaves[tier] for leaves in model.leaves if leaves[tier].above(1) in lanes]
    branches = [node for node in model.branches if node.tier == tier and model.lane_above(node) in lanes]
    for node in [model.tiers[tier], *lanes, *leaves, *branches]:
        if "parked" in node.held and max((until for until, _ in holds_of(node)), default=0) > model.now + model.horizon:
            below = [child for child in (*node.ring, *node.fresh) if child.level != "lane" or child in lanes]
            if not below:
                return node
    return None


def queue_with(model: Model, tier: int, send: int, position: int) -> Queue:
    """The one that has the recipient."""
    found = [
        queue
        for queue in taken_from(model, tier)
        if any((each.run.send, each.position) == (send, position) for each in queue.fifo.of)
    ]
    assert len(found) == 1, "what was taken was not to be taken"
    return found[0]


def taken_from(model: Model, tier: int) -> list[Queue]:
    """The READY queues below a node that is held for long, with nothing held in between."""
    return [queue for node in model.branches if node.tier == tier and is_away(model, node) for queue in node.ready]


def idle(model: Model, tier: int) -> Node | None:
    """A node among them that takes turns without work."""
    nodes = [node for node in model.branches if node.tier == tier and node.stands and not node.has_work]
    return next((node for node in nodes if is_away(model, node)), None)


def is_away(model: Model, branch: Node) -> bool:
    """Of a tenant or campaign."""
    if model.channels[model.lane_above(branch).handle].stays:
        return False
    node = branch
    while node.parent is not None:
        if max((until for until, _ in holds_of(node)), default=0) > model.now + model.horizon:
            return True
        if node.held:
            return False
        node = node.parent
    return False


def holds_of(node: Node) -> list[tuple[int, int]]:
    """Until when, and the cause; the first of two that last as long is the one that is told."""
    found = [(node.paused_until, BY_PAUSE)] if "paused" in node.held else []
    if "parked" in node.held and node.kept is not None and node.kept.until != NEVER:
        found.append((node.kept.until, BY_REST if node.kept.limit is None else BY_LIMIT))
    return found


def longest(campaign: Node) -> tuple[int, int]:
    """Of all that holds it, itself or above."""
    found: list[tuple[int, int]] = []
    node: Node | None = campaign
    while node is not None:
        found += holds_of(node)
        node = node.parent
    return max(found, key=lambda hold: hold[0])
