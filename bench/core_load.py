"""The scheduling core under a load that can be repeated: columns to push, a queue of a given depth, timed rounds.

An *op* is one recipient pushed, or one popped; a pair is both. A *flow* is a campaign with a content of its own: what
two flows hold never shares a call. Flows stand in sqrt(flows) tenants. By ``dist``:

uniform      each row's flow is drawn evenly
zipf         flow k is drawn with a share of 1/k: a few are deep, most hold next to nothing
adversarial  flows come in one fixed random order, each as late as it can, and a call takes one recipient: nothing
             merges, nothing is in a cache when it is needed
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from math import isqrt, log
from random import Random
from statistics import median
from time import perf_counter_ns
from typing import NamedTuple

from ext.schedule import NEVER, Core

DISTRIBUTIONS = ("uniform", "zipf", "adversarial")
CAP = 200  # recipients a call
SLOTS = 2**20  # calls in flight: never the limit here
DAY_NS = 86_400 * 10**9  # a deadline, as every send of the engine has one
STEP_NS = 20_000  # between two calls of the core
CALLS, ROUNDS, WARM = 16, 7, 5  # calls of the core a round, rounds that count, rounds before them
HEAP_PAIRS = 2000  # a round of heapq's
FILL = 4096  # recipients a push while the queue fills
NAMES = 2**20  # ids that differ
ID_BYTES = 12
BASIC = 2

Columns = tuple[object, ...]


class Spread(NamedTuple):
    """Of the rounds, ns."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        ordered = sorted(values)
        tenth = len(ordered) // 10
        return cls(*(round(value, 1) for value in (median(ordered), ordered[tenth], ordered[-1 - tenth])))


def flows_of(dist: str, flows: int, random: Random) -> Iterator[int]:
    """Flow numbers without end."""
    order = list(range(flows))
    random.shuffle(order)
    if dist == "adversarial":
        while True:
            yield from order
    reach = log(flows + 1)
    while True:
        if dist == "uniform":
            yield int(random.random() * flows)
        else:
            yield order[int(2.718281828459045 ** (random.random() * reach)) - 1]


@cache
def names(id_bytes: int) -> bytes:
    """NAMES ids, one behind the other."""
    return b"".join(b"%0*d" % (id_bytes, n) for n in range(NAMES))


class Load:
    """A core with one channel and the columns for it: rows of ``run`` recipients with ids of ``id_bytes``."""

    def __init__(self, flows: int, dist: str, run: int = 1, id_bytes: int = ID_BYTES, seed: int = 1) -> None:
        self.core, self.run, self.now, self.queued = Core(own_queues=2**20), run, 0, 0
        self.popped = self.calls = 0  # recipients, and the calls they came in
        self.core.add_channel(SLOTS, 1, 1 if dist == "adversarial" else CAP)
        self.core.add_account(0)
        self._flows = flows_of(dist, flows, Random(seed))
        self._tenants = isqrt(flows)
        self._id_bytes = id_bytes
        self._ids = names(id_bytes)
        self._next_id = self._depth = 0

    def columns(self, recipients: int) -> Columns:
        """What push_many takes after the time, for so many recipients of the next flows."""
        rows, run = recipients // self.run, self.run
        flows = [flow for flow, _ in zip(self._flows, range(rows), strict=False)]
        zeros, times = array("I", bytes(4 * rows)), array("q", [self.now]) * rows
        tenants = array("I", [flow % self._tenants for flow in flows])
        campaigns = array("I", flows)
        never, day, none = array("q", [NEVER]) * rows, array("q", [self.now + DAY_NS]) * rows, bytes(rows)
        self._next_id = (self._next_id + recipients) % (NAMES - 2 * FILL)
        ids = self._ids[self._next_id * self._id_bytes : (self._next_id + recipients) * self._id_bytes]
        facts = (times, never, day, array("q", bytes(8 * rows)), times)
        shared = (zeros, bytes([BASIC]) * rows, zeros, tenants, campaigns, zeros, none)
        positions = array("H", range(run)) * rows
        return *shared, *facts, array("I", [run]) * rows, positions, bytes([self._id_bytes]) * (rows * run), ids

    def push(self, columns: Columns, recipients: int) -> int:
        """ns."""
        self.now += STEP_NS
        start = perf_counter_ns()
        self.core.push_many(self.now, *columns)  # type: ignore[arg-type]
        spent = perf_counter_ns() - start
        self.queued += recipients
        return spent

    def pop(self, recipients: int, budget: int) -> tuple[int, int]:
        """ns, and how many came: as many as asked for, or a call's worth more; the next round asks for fewer."""
        spent = came = 0
        while came < recipients:
            self.now += STEP_NS
            start = perf_counter_ns()
            popped = self.core.pop_batches(self.now, budget)
            spent += perf_counter_ns() - start
            came += popped.items
            self.calls += len(popped.tenant)
            for tenant, (first, end) in zip(popped.tenant, pairwise(popped.start), strict=True):
                self.core.release(self.now, 0, BASIC, end - first, end - first, 0, tenant)
            if not popped.items and not popped.more:
                break
        self.queued -= came
        self.popped += came
        return spent, came

    def fill(self, queued: int) -> None:
        """Up to so many queued, which rounds then keep."""
        self._depth = queued
        while self.queued < queued:
            n = self._whole_runs(min(FILL, queued - self.queued))
            self.push(self.columns(n), n)

    def age(self, pairs: int) -> None:
        """Pop and push so many, so that freed memory lies where it may."""
        moved = 0
        while moved < pairs:
            moved += self.pop(min(FILL, self.queued), FILL)[1]
            self.fill(self._depth)

    def _whole_runs(self, recipients: int) -> int:
        return max(recipients // self.run, 1) * self.run

    def round(self, batch: int) -> tuple[float, float]:
        """ns a push and ns a pop, ``batch`` recipients a call of the core."""
        pushing = popping = popped = 0
        n = self._whole_runs(batch)
        for _ in range(CALLS):
            pushing += self.push(self.columns(n), n)
            spent, came = self.pop(self.queued - self._depth, batch)
            popping, popped = popping + spent, popped + came
        return pushing / (CALLS * n), popping / popped

    def measure(self, batch: int) -> tuple[list[float], list[float]]:
        """ns a push and ns a pop, of each round."""
        for _ in range(WARM):
            self.round(batch)
        pushes, pops = zip(*(self.round(batch) for _ in range(ROUNDS)), strict=True)
        return list(pushes), list(pops)


class Heap:
    """heapq, so many tuples of (due, sequence, id) queued; without merging, limits, fairness or cancel."""

    def __init__(self, queued: int, seed: int = 1) -> None:
        self._random, self._made = Random(seed), 0
        self._heap = self._entries(0, queued)
        heapq.heapify(self._heap)

    def age(self, pairs: int) -> None:
        """Push and pop so many at least, so that tuples lie where they may, not in the order they were made."""
        self.measure(-(-pairs // HEAP_PAIRS))

    def measure(self, rounds: int) -> list[float]:
        """ns a pair, of each round: one pushed, the first popped."""
        return [self._round() for _ in range(rounds)]

    def _round(self) -> float:
        heap = self._heap
        entries = self._entries(heap[0][0], HEAP_PAIRS)
        start = perf_counter_ns()
        for entry in entries:
            heapq.heappush(heap, entry)
            heapq.heappop(heap)
        return (perf_counter_ns() - start) / HEAP_PAIRS

    def _entries(self, first: int, count: int) -> list[tuple[int, int, bytes]]:
        """New ones, due from ``first`` on, with ids of as many bytes as those of a load."""
        numbers = range(self._made, self._made + count)
        self._made += count
        return [(first + self._random.randrange(10**9), n, b"%0*d" % (ID_BYTES, n)) for n in numbers]
