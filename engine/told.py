"""Sends that ended alike without a call, counted and completed together (part of the dispatcher's shell)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.clock import NS_PER_MS
from engine.commit import Ledger
from engine.open_sends import Flow, OpenSend
from engine.send import Outcome

if TYPE_CHECKING:
    from engine.dispatch import Dispatcher

# Outcomes after which an id stays taken.
KEEPS_ID = frozenset({Outcome.ACCEPTED, Outcome.UNKNOWN})


class Told:
    """Sends of one flow that ended alike: counts them together, and completes the records they finish."""

    __slots__ = ("_completions", "_count", "_dispatcher", "_flow", "_keeps_id", "_observe", "_outcome", "_wall_ms")

    def __init__(self, dispatcher: Dispatcher, flow: Flow, outcome: Outcome) -> None:
        self._dispatcher = dispatcher
        self._flow = flow
        self._outcome = outcome
        self._keeps_id = outcome in KEEPS_ID
        self._observe = dispatcher.counters.end_to_end[flow.tier, flow.channel].observe
        self._wall_ms = dispatcher.clock.wall_ms()
        self._count = 0
        self._completions: list[tuple[Ledger, int]] = []

    def send(self, handle: int, send: OpenSend, positions: Sequence[int]) -> None:
        """The recipients at these places of it."""
        self._observe((self._wall_ms - send.first_seen_ms) * NS_PER_MS, len(positions))
        self._count += len(positions)
        if self._keeps_id:
            send.taken = True
        if self._dispatcher.less(handle, send, positions):
            self._completions.append((send.ledger, send.offset))

    def done(self) -> None:
        """That was all; their receipts are queued."""
        self._dispatcher.counters.end(self._flow.tier, self._flow.channel, self._outcome, self._count)
        for ledger, offset in self._completions:
            self._dispatcher.recorder.complete(ledger, array("q", [offset]))
