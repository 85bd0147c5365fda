"""The engine's own schedule of a case: the real core on a virtual clock.

In: a case, a pacing mode, how many calls can be under way and how long one takes. Out: when each call left.
Invariant: nothing happens but at a time that the core, an arrival or the end of a call names.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import pairwise
from typing import NamedTuple

from bench.smooth_cases import DUE_NS, LINGER_NS, Case, Sends
from engine.config import Pacing
from engine.send import MAX_RECIPIENTS
from ext.schedule import ASAP, EVEN, NEVER, PACED, Core

BASIC = 2
DAY_NS = 86_400 * 10**9
TAU_NS = int(Pacing().tau)  # the engine's own
BUDGET = 4096
MODES = {"paced": (PACED, TAU_NS), "oa": (PACED, 0), "even": (EVEN, 0), "asap": (ASAP, 0)}  # mode, tau


def in_parts(sends: Sends) -> list[Sends]:
    """As the engine would get them: no send has more than MAX_RECIPIENTS."""
    starts = range(0, sends.recipients, MAX_RECIPIENTS)
    return [sends._replace(recipients=min(MAX_RECIPIENTS, sends.recipients - start)) for start in starts]


class Schedule(NamedTuple):
    """When calls left, ns, ascending; and how many recipients left more than a millisecond late."""

    left: array[int]
    late: int


class Clock:
    """One run."""

    def __init__(self, case: Case, mode: str, slots: int, call_ns: int) -> None:
        pacing, tau_ns = MODES[mode]
        self._case, self._call_ns = case, call_ns
        self._core = Core(pacing=(ASAP, ASAP, pacing), tau_ns=tau_ns)
        self._core.add_channel(slots, 0, case.cap)
        self._core.add_account(0)
        self._slots = slots
        self._under_way: deque[tuple[int, int, int]] = deque()  # when a call ends, its recipients, their tenant
        self._left = array("q")
        self._sends = 0

    def run(self) -> Schedule:
        """All of it."""
        sends, core = self._case.sends, self._core
        at, now = 0, sends[0].at
        while True:
            while self._under_way and self._under_way[0][0] <= now:
                ended, recipients, tenant = self._under_way.popleft()
                core.release(ended, 0, BASIC, recipients, recipients, tenant=tenant)
            first = at
            while at < len(sends) and sends[at].at <= now:
                at += 1
            if at > first:
                self._push(now, sends[first:at])
            more = self._pop(now)
            if more:
                continue
            now = self._next(now, sends[at].at if at < len(sends) else NEVER)
            if now == NEVER:
                break
        counts, _ = core.lateness(BASIC).snapshot()
        return Schedule(self._left, counts[-1] - counts[0])

    def _next(self, now: int, arrival: int) -> int:
        """The next time at which anything can happen. That a call ends matters only where it frees the last slot."""
        due = self._core.next_due(now)
        ends = self._under_way[0][0] if len(self._under_way) == self._slots else NEVER
        ahead = min(arrival, due, ends)
        assert ahead > now, "the core has work and does nothing"
        return ahead

    def _pop(self, now: int) -> bool:
        popped = self._core.pop_batches(now, BUDGET)
        if popped.count == 0:
            return bool(popped.more)
        ends, calls = now + self._call_ns, popped.count
        sizes = (to - start for start, to in pairwise(popped.start))
        self._under_way.extend((ends, size, tenant) for size, tenant in zip(sizes, popped.tenant, strict=True))
        self._left.extend([now] * calls)
        return bool(popped.more)

    def _push(self, now: int, sends: list[Sends]) -> None:
        sends = [part for each in sends for part in in_parts(each)]
        rows = len(sends)
        counts = [each.recipients for each in sends]
        zeros, times = array("I", bytes(4 * rows)), array("q", [each.at for each in sends])
        linger = 0 if self._case.cap == 1 else LINGER_NS
        self._core.push_many(
            now, zeros, bytes([BASIC]) * rows, zeros, array("I", [each.tenant for each in sends]),
            array("I", [each.campaign for each in sends]), zeros, bytes(rows), times,
            array("q", [each.at + DUE_NS for each in sends]), array("q", [each.at + DAY_NS for each in sends]),
            array("q", [linger]) * rows, times, array("I", counts), *self._names(sum(counts)),
        )  # fmt: skip

    def _names(self, recipients: int) -> tuple[array[int], bytes, bytes]:
        """Positions, id lengths and ids; no two of a batch are the same."""
        first = self._sends
        self._sends += recipients
        ids = array("I", (n & 0xFFFFFFFF for n in range(first, first + recipients)))
        return array("H", bytes(2 * recipients)), b"\x04" * recipients, ids.tobytes()
