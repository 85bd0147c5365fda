"""Between the model's records and the core's columns."""

from __future__ import annotations

from array import array
from typing import Any

from ext.schedule import Batches
from tests.property.model import Batch, Run


def columns(pushed: list[Run]) -> tuple[Any, ...]:
    """The runs as push_many takes them."""
    to = [recipient for run in pushed for recipient in run.to]
    return (
        array("I", [run.send for run in pushed]),
        array("B", [run.tier for run in pushed]),
        array("I", [run.account for run in pushed]),
        array("I", [run.key[0] for run in pushed]),
        array("I", [run.key[1] for run in pushed]),
        array("I", [run.key[2] for run in pushed]),
        array("B", [run.attempt for run in pushed]),
        array("q", [run.not_before for run in pushed]),
        array("q", [run.due for run in pushed]),
        array("q", [run.deadline for run in pushed]),
        array("q", [run.linger for run in pushed]),
        array("q", [run.pushed for run in pushed]),
        array("I", [len(run.to) for run in pushed]),
        array("H", [position for position, _ in to]),
        array("B", [len(name) for _, name in to]),
        b"".join(name for _, name in to),
    )


def rows(popped: Batches) -> list[Batch]:
    """The columns as the model's batches."""
    batches = []
    for b in range(popped.count):
        items = [
            (
                popped.send[i],
                popped.position[i],
                popped.attempt[i],
                popped.pushed[i],
                popped.ids[popped.id_end[i] : popped.id_end[i + 1]],
            )
            for i in range(popped.start[b], popped.start[b + 1])
        ]
        key = (popped.tenant[b], popped.campaign[b], popped.content[b])
        where = (popped.tier[b], popped.channel[b], popped.account[b])
        batches.append(Batch(*where, key, popped.closed[b], popped.due[b], items))
    return batches
