"""Pacing again, in plain Python: the judge of ext/pace.h. Due times in a dict, rates as fractions; no rings, no bits.

Slots, ticks and rounding are part of what pace.h promises, so they are the same; how it keeps them is not.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from math import ceil

NS = 10**15  # in which a rate of 1 lets one call go
FASTEST = 10**15
CALL_A_SECOND = 10**6
SLOT_NS, FAR, SLOTS = 2**28, 64, 4096
TICK_NS, LEAST_NS, SLACK_NS, RATCHET_NS, PATIENCE_NS = 2**26, 2**26, 2**22, 2**34, 2**31
ASAP, EVEN, PACED = range(3)
BELOW, FULL, OVER = range(3)


def rate_of(calls: int, ns: int) -> int:
    return min(ceil(Fraction(calls * NS, ns)), FASTEST)


class PaceModel:
    def __init__(self, mode: int, tau_ns: int, floor: int) -> None:
        self.mode, self.step, self.floor = mode, -(-tau_ns // 64), floor
        self.calls: defaultdict[int, int] = defaultdict(int)  # slot -> calls
        self.even: defaultdict[int, int] = defaultdict(int)  # slot -> rates that end there
        self.ceiling, self.rate, self.need, self.ratchet = FASTEST, floor, 0, 0
        self.state = BELOW
        self.read_at = self.decayed = 0
        self.left = -NS - SLACK_NS
        self.begun = 0
        self.stale = self.overdue = False
        self.aside = 0
        self.waiting: defaultdict[int, list[object]] = defaultdict(list)  # slot -> who
        self.passed: list[object] = []  # who waits in slots that have passed
        self.base = 1  # the slot that time was in when it was last looked at

    @property
    def work(self) -> int:
        return sum(self.calls.values())

    def slot(self, now: int, due: int) -> int:
        """The slot before the one the due time is in; coarser when it is far."""
        self.roll(now)
        base = now // SLOT_NS + 1
        slot = max(due // SLOT_NS, base - 1)
        if slot - base < SLOTS:
            return slot
        return min(slot, (base // FAR + SLOTS - 1) * FAR) // FAR * FAR

    def ahead(self, now: int, slot: int) -> int:
        return max((slot - 1) * SLOT_NS - now, LEAST_NS)

    def roll(self, now: int) -> None:
        self.base = now // SLOT_NS + 1
        for slot in sorted(slot for slot in self.waiting if slot < self.base):
            self.passed += self.waiting.pop(slot)

    def add(self, now: int, due: int, calls: int) -> int:
        slot = self.slot(now, due)
        self.add_at(now, slot, calls)
        return slot

    def add_at(self, now: int, slot: int, calls: int) -> None:
        self.roll(now)
        if not self.work:
            self.begun = now
        self.calls[slot] += calls
        self.stale = True
        if self.mode == EVEN and slot > now // SLOT_NS:
            self.even[slot] += calls * rate_of(1, self.ahead(now, slot))

    def remove(self, slot: int, calls: int) -> None:
        self.calls[slot] -= calls

    def wait(self, now: int, who: object, slot: int) -> None:
        self.roll(now)
        (self.passed if slot < self.base else self.waiting[slot]).append(who)

    def wait_no_more(self, who: object) -> None:
        next(ring for ring in [self.passed, *self.waiting.values()] if who in ring).remove(who)

    def first(self) -> object:
        return next((ring[0] for ring in [self.passed, *(self.waiting[k] for k in sorted(self.waiting))] if ring), None)

    def control(self, now: int) -> None:
        if now < self.read_at:
            return
        self.read_at, self.stale = now + TICK_NS, False
        self.roll(now)
        base = self.base
        late = self.late()
        needs, kept, due = [rate_of(late, LEAST_NS)], 0, late
        for slot in sorted(slot for slot, n in self.calls.items() if n and slot >= base):
            due += self.calls[slot]
            needs.append(rate_of(due, self.ahead(now, slot)))
            if self.ahead(now, slot) >= RATCHET_NS:
                kept = max(kept, needs[-1])
        self.need = max(needs)
        if self.mode == EVEN:
            self.need, kept = max(needs[0], sum(rate for slot, rate in self.even.items() if slot >= base)), 0
        self.state = FULL if self.need >= self.ceiling // 4 * 3 else BELOW
        if self.overdue:
            self.state = OVER
        self.decay(now)
        self.ratchet = max(self.ratchet, kept) if self.step else 0
        self.rate = max(self.need, self.floor, min(self.ratchet, self.need * 2))
        if self.state == FULL:
            self.rate = max(self.rate, self.ceiling)

    def late(self) -> int:
        """Calls that should have left and could; while others are aside, no more than who wait and are late."""
        late = sum(n for slot, n in self.calls.items() if slot < self.base)
        waiting = sum(not getattr(who, "at_once", False) for who in self.passed)
        return min(late, waiting) if self.aside else late

    def decay(self, now: int) -> None:
        while self.ratchet and now - self.decayed >= self.step:
            self.ratchet -= ceil(self.ratchet / 64)
            self.decayed += self.step
        if not self.ratchet:
            self.decayed = now

    def when(self, now: int) -> int:
        self.control(now)
        when = self.left + NS // self.rate
        if self.state == OVER or when <= now:
            return 0
        return min(when, self.read_at) if self.stale else when

    def expects(self, slot: int) -> int:
        before = sum(n for at, n in self.calls.items() if at < slot) if slot >= self.base else 0
        interval = NS // self.rate
        return max(self.left + interval, min(self.left + interval * (before + 1), (slot - 1) * SLOT_NS))

    def leave(self, now: int) -> None:
        interval = NS // self.rate
        least = max(now - max(interval, LEAST_NS), self.begun - SLACK_NS)
        self.left = min(max(self.left + interval, least), now)


class CapacityModel:
    """ext/capacity.h again."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.at = self.slot_ns = self.ended = self.in_flight = 0
        self.known = False

    def go_on(self, now: int) -> None:
        self.slot_ns += min(now - self.at, 2**36) * self.in_flight
        self.at = now
        if self.ended >= 512 or self.slot_ns >= 2**36 * self.slots:
            self.slot_ns, self.ended = self.slot_ns // 2, self.ended // 2

    def start(self, now: int) -> None:
        self.go_on(now)
        self.in_flight += 1

    def end(self, now: int) -> None:
        self.go_on(now)
        self.in_flight -= 1
        self.ended += 1
        self.known = self.known or self.ended >= 16

    def rate(self, slots: int) -> int:
        if not self.known or not self.slot_ns:
            return FASTEST
        return min(max(self.ended * slots * NS // self.slot_ns, CALL_A_SECOND), FASTEST)
