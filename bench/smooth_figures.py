"""What a schedule is worth: its peak against the least there can be, and how it fluctuates within a burst."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from fractions import Fraction
from math import sqrt
from typing import NamedTuple

from bench.optimum import Work

S = 10**9
GAP_NS = 30 * S  # starts closer than this to each other are one burst
BURST_CALLS_PER_S = 200  # to leave from the first start to the first due time: below, a call is too much of a second
SMALLER_CALLS_PER_S = 50
PEAK_CALLS = 100


class Burst(NamedTuple):
    """Seconds first..end (not included), its calls, and how many a second must leave."""

    first: int
    end: int
    calls: int
    calls_per_s: float


class Figures(NamedTuple):
    """Of one schedule; ``fluctuation`` is None without a burst."""

    peak_over_rstar: float
    fluctuation: float | None
    fluctuation_all: float | None  # smaller bursts too
    par: float
    cv: float
    late: int


def binned(left: array[int], end_s: int) -> list[int]:
    """Calls by second."""
    bins = [0] * (end_s + 1)
    for at in left:
        bins[at // S] += 1
    return bins


def peak_per_s(left: array[int], rstar_per_s: Fraction) -> float:
    """The most calls in any second, or in any stretch in which R* lets PEAK_CALLS go if that is longer: a call more or
    less in a second is no peak."""
    window = max(S, int(PEAK_CALLS * S / rstar_per_s))
    most = first = 0
    for end, at in enumerate(left, 1):
        while left[first] <= at - window:
            first += 1
        most = max(most, end - first)
    return most * S / window


def bursts_of(work: Sequence[Work]) -> list[Burst]:
    """Calls whose releases follow each other within GAP_NS."""
    found: list[Burst] = []
    rows = sorted(work)
    at = 0
    while at < len(rows):
        first, calls, due = at, 0, 0
        while at < len(rows) and rows[at].release - rows[max(first, at - 1)].release <= GAP_NS:
            calls, due = calls + rows[at].calls, max(due, rows[at].due)
            at += 1
        allowed = min(row.due for row in rows[first:at]) - rows[first].release
        found.append(Burst(rows[first].release // S, -(-due // S), calls, calls * S / allowed))
    return found


def fluctuation(bins: Sequence[int], bursts: Sequence[Burst], calls_per_s: int) -> float | None:
    """Mean over the bursts of so many calls a second, by calls, of (most - mean) / mean of the calls in a second from
    first start to last due time."""
    large = [burst for burst in bursts if burst.calls_per_s >= calls_per_s]
    total = sum(burst.calls for burst in large)
    if not total:
        return None
    weighted = 0.0
    for burst in large:
        seconds = bins[burst.first : burst.end]
        mean = sum(seconds) / len(seconds)
        weighted += burst.calls * (max(seconds) - mean) / mean
    return weighted / total


def figures(left: array[int], work: Sequence[Work], rstar_per_s: Fraction, late: int) -> Figures:
    """``par`` and ``cv`` (of calls by second) from the first release to the last due time."""
    bins = binned(left, max(left[-1], max(row.due for row in work)) // S)
    first, end = min(row.release for row in work) // S, -(-max(row.due for row in work) // S)
    day = bins[first:end]
    mean = sum(day) / len(day)
    deviation = sqrt(sum((calls - mean) ** 2 for calls in day) / len(day))
    bursts, peak = bursts_of(work), peak_per_s(left, rstar_per_s)
    own, smaller = (fluctuation(bins, bursts, least) for least in (BURST_CALLS_PER_S, SMALLER_CALLS_PER_S))
    return Figures(peak / float(rstar_per_s), own, smaller, max(bins) / mean, deviation / mean, late)
