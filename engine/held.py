"""Sends of one tier that wait for their content to be registered (pure): which goes on, and which has waited too long.

In: sends as they are held, names as they are registered. Out: the sends that wait no longer.
Invariant: a send here stands in ``counters.held``; one whose partition was taken away meanwhile is given back, not
handed out.
Never: waits longer than it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from engine.arrival import Arrival
from engine.counters import Counters
from engine.send import Send, Tier


class Held(NamedTuple):
    """A send that waits for its content."""

    send: Send
    arrival: Arrival
    account: str
    tenant: str
    until_ns: int


class HeldSends:
    """One tier's, by the name of what they wait for, oldest first."""

    def __init__(self, tier: Tier, counters: Counters) -> None:
        self.sends = 0
        self.bytes = 0
        self._tier = tier
        self._counters = counters
        self._held: dict[str, list[Held]] = {}

    def hold(self, name: str, held: Held) -> None:
        """It waits for ``name``."""
        self._counters.held[self._tier] += held.arrival.count(held.send)
        self.sends += 1
        self.bytes += held.arrival.size
        self._held.setdefault(name, []).append(held)

    def registered(self, name: str) -> list[Held]:
        """What waited for it."""
        return self._free(self._held.pop(name, ()))

    def cancelled(self, covers: Callable[[Held], bool]) -> list[Held]:
        """What a command covers."""
        found = [held for waiting in self._held.values() for held in waiting if covers(held)]
        self._held = {name: [held for held in waiting if not covers(held)] for name, waiting in self._held.items()}
        self._held = {name: waiting for name, waiting in self._held.items() if waiting}
        return self._free(found)

    def expired(self, now_ns: int) -> list[tuple[str, Held]]:
        """What has waited long enough, and for what."""
        found: list[tuple[str, Held]] = []
        for name in [name for name, waiting in self._held.items() if waiting[0].until_ns <= now_ns]:
            waiting = self._held.pop(name)
            late = [held for held in waiting if held.until_ns <= now_ns]
            if len(late) < len(waiting):
                self._held[name] = waiting[len(late) :]
            found += [(name, held) for held in self._free(late)]
        return found

    def _free(self, waiting: Iterable[Held]) -> list[Held]:
        ours = []
        for held in waiting:
            count = held.arrival.count(held.send)
            self._counters.held[self._tier] -= count
            self.sends -= 1
            self.bytes -= held.arrival.size
            if held.arrival.ledger.leaving:
                self._counters.given_back[self._tier] += count
            else:
                ours.append(held)
        return ours
