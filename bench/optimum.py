"""The least peak rate at which calls can leave in time, known from hindsight, exactly.

For calls with release and due times it is R* = max over r < d of (calls released at r or later and due by d) / (d - r)
(Yao, Demers, Shenker, FOCS 1995): no schedule stays below it, and earliest due first at that rate meets every due time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple


class Work(NamedTuple):
    """Calls that may leave from ``release`` on and should by ``due`` > release (integers of one unit)."""

    release: int
    due: int
    calls: int


class Arrival(NamedTuple):
    """One recipient of a flow."""

    at: int
    due: int


def cut(arrivals: Sequence[Arrival], cap: int) -> Iterator[Work]:
    """The fewest calls for one flow, knowing all its arrivals (ascending): each is released with its last recipient and
    due with its most urgent one; it is closed at ``cap``, or when the next would come too late for it."""
    release = due = size = 0
    for at, until in arrivals:
        if size and (size == cap or at >= due):
            yield Work(release, due, 1)
            size = 0
        due = min(due, until) if size else until
        release, size = at, size + 1
    if size:
        yield Work(release, due, 1)


def least_peak(work: Iterable[Work]) -> Fraction:
    """R*, in calls a unit of time. O(n log n) for each of a few rounds.

    A round runs earliest due first at some rate; when nothing is late the rate is enough. Else the calls that finish
    latest after their due time, with those that ran before them without a break for anything less urgent, are an
    interval's whole work that needs a higher rate: the next round's (Dinkelbach's method; the interval is the one that
    is short of the most work, so few rounds are needed, and each rate is that of some interval, so the last is exact).
    """
    rows = sorted(work)
    rate = Fraction(sum(row.calls for row in rows), max(row.due for row in rows) - rows[0].release)
    while (higher := _short_of(rows, rate)) is not None:
        assert higher > rate
        rate = higher
    return rate


def _short_of(rows: Sequence[Work], rate: Fraction) -> Fraction | None:
    """The rate that the interval short of the most work needs; None: at ``rate`` nothing is late.

    Time runs in units of 1 / rate.numerator, so that a call takes rate.denominator of them and all numbers are whole.
    """
    unit, call = rate.numerator, rate.denominator
    queue: list[tuple[int, int]] = []  # due, time still needed
    breaks: list[tuple[int, int]] = []  # due, until when: the last time that something due later (or nothing) ran
    worst, interval = 0, (0, 1)
    now = at = 0
    while queue or at < len(rows):
        if not queue:
            now = rows[at].release * unit
            breaks = [(1 << 200, now)]
        while at < len(rows) and rows[at].release * unit <= now:
            heapq.heappush(queue, (rows[at].due * unit, rows[at].calls * call))
            at += 1
        due, needed = heapq.heappop(queue)
        ends = now + needed
        if at < len(rows) and rows[at].release * unit < ends:
            heapq.heappush(queue, (due, ends - rows[at].release * unit))
            ends = rows[at].release * unit
        now = ends
        while breaks[-1][0] <= due:
            breaks.pop()
        if now - due > worst:
            worst, interval = now - due, (now - breaks[-1][1], due - breaks[-1][1])
        breaks.append((due, now))
    return rate * Fraction(*interval) if worst else None
