"""What the scheduling core costs: push and pop by how much is queued, beside heapq with tuples.

``python -m bench core [--most N] [--json FILE]``. An op is one recipient pushed, or popped; a pair is both. N are
queued first, over 1,000 flows, then N is kept: a push_many of 256 recipients of flows drawn evenly, pop_batches with
a budget of 256 until as many came out, and so on. Columns are laid out and calls released outside of the time. heapq
gets the same N as (due, sequence, recipient) tuples, one push and one pop a pair, without merging, limits, fairness or
cancel. Numbers are medians of the rounds, ns an op, with the least and the most.
"""

from __future__ import annotations

import argparse
import heapq
import json
import platform
import sys
from array import array
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter_ns
from typing import Any

from ext.schedule import NEVER, Core

FLOWS, CALL, CAP, ROUNDS, CALLS_A_ROUND = 1_000, 256, 200, 7, 200
DAY_NS = 86_400 * 10**9  # a deadline, as every send of the engine has one
SLOTS = 2**20


class Load:
    """A core with one channel, and columns for it: runs of ``size`` recipients."""

    def __init__(self, size: int, seed: int) -> None:
        self.core, self.random, self.size, self.next_id = Core(), Random(seed), size, 0
        self.core.add_channel(SLOTS, 0, CAP)
        self.core.add_account(0)

    def columns(self) -> tuple[Any, ...]:
        """CALL recipients of flows drawn evenly, ids of 12 bytes, no two the same."""
        runs = CALL // self.size
        zeros, never, day = array("I", bytes(4 * runs)), array("q", [NEVER]) * runs, array("q", [DAY_NS]) * runs
        tenants = array("I", [self.random.randrange(FLOWS) for _ in range(runs)])
        ids = b"".join(b"user%08d" % (n % 10**8) for n in range(self.next_id, self.next_id + CALL))
        self.next_id += CALL
        now, none = array("q", bytes(8 * runs)), bytes(runs)
        recipients = (array("H", [*range(self.size)] * runs), bytes([12]) * CALL, ids)
        shared = (zeros, bytes([2]) * runs, zeros, tenants, zeros, zeros, none)
        return *shared, now, never, day, now, now, array("I", [self.size] * runs), *recipients

    def push(self, columns: tuple[Any, ...]) -> int:
        """ns."""
        start = perf_counter_ns()
        self.core.push_many(0, *columns)
        return perf_counter_ns() - start

    def pop(self, recipients: int) -> tuple[int, int]:
        """ns, and how many came: as many, or all there are."""
        spent = came = 0
        popped = None
        while came < recipients and (popped is None or popped.more):
            start = perf_counter_ns()
            popped = self.core.pop_batches(0, CALL)
            spent += perf_counter_ns() - start
            came += popped.items
            for account, (start, end) in zip(popped.account, pairwise(popped.start), strict=True):
                self.core.release(0, account, 2, end - start, end - start)
        return spent, came

    def fill(self, queued: int) -> None:
        for _ in range(queued // CALL):
            self.core.push_many(0, *self.columns())

    def round(self) -> tuple[float, float]:
        """ns a push and ns a pop, each of one recipient."""
        pushing = popping = popped = 0
        for _ in range(CALLS_A_ROUND):
            pushing += self.push(self.columns())
            spent, came = self.pop(CALL)
            popping += spent
            popped += came
        return pushing / (CALLS_A_ROUND * CALL), popping / popped


def heap_round(heap: list[tuple[int, int, int]], random: Random) -> float:
    """ns a pair."""
    many = CALLS_A_ROUND * CALL
    entries = [(random.randrange(10**9), n, n) for n in range(many)]
    start = perf_counter_ns()
    for entry in entries:
        heapq.heappush(heap, entry)
        heapq.heappop(heap)
    return (perf_counter_ns() - start) / many


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 1), "least": round(min(values), 1), "most": round(max(values), 1)}


def measure_core(queued: int, size: int) -> dict[str, Any]:
    load = Load(size, seed=queued)
    empty = load.core.stats()["memory_bytes"][0]
    load.fill(queued)
    per_recipient = (load.core.stats()["memory_bytes"][0] - empty) / queued
    load.round()
    pushes, pops = zip(*(load.round() for _ in range(ROUNDS)), strict=True)
    return {"push": spread(list(pushes)), "pop": spread(list(pops)), "bytes": round(per_recipient, 1)}


def measure_heap(queued: int) -> dict[str, float]:
    random = Random(queued)
    heap = [(random.randrange(10**9), n, n) for n in range(queued)]
    heapq.heapify(heap)
    return spread([heap_round(heap, random) for _ in range(3)])


def measure_cancel(queued: int) -> float:
    """us to cancel one campaign that is all there is."""
    load = Load(1, seed=1)
    for _ in range(queued // CALL):
        load.core.push_many(0, *load.columns()[:3], *shuffled_campaign(load))
    start = perf_counter_ns()
    load.core.cancel(0, 0)
    return (perf_counter_ns() - start) / 1000


def shuffled_campaign(load: Load) -> tuple[Any, ...]:
    """The columns from tenant on: one tenant, and flows by content instead."""
    columns = load.columns()
    return columns[4], columns[4], columns[3], *columns[6:]


def measure(most: int) -> dict[str, Any]:
    rows = []
    sizes = [10**power for power in range(3, 9) if 10**power <= most]
    for queued in sizes:
        row: dict[str, Any] = {"queued": queued, "heapq": measure_heap(queued)}
        row |= {f"runs of {size}": measure_core(queued, size) for size in (1, 32)}
        rows.append(row)
    return {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "flows": FLOWS,
        "rows": rows,
        "cancel_us": {str(queued): round(measure_cancel(queued), 1) for queued in sizes},
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['machine']}; {result['flows']} flows; ns a recipient: median (least..most)")
    for row in result["rows"]:
        print(f"{row['queued']:>11,} queued   heapq pair {figure(row['heapq'])}")
        for name in (name for name in row if name.startswith("runs")):
            cells = row[name]
            print(f"{name:>20}: push {figure(cells['push'])}  pop {figure(cells['pop'])}  {cells['bytes']} B")
    cancels = ", ".join(f"{int(queued):,} queued {us} us" for queued, us in result["cancel_us"].items())
    print(f"cancel of one campaign in {result['flows']} flows: {cancels}")


def figure(cells: dict[str, float]) -> str:
    return f"{cells['median']} ({cells['least']}..{cells['most']})"


def main(argv: list[str]) -> int:
    """Measure, print, and write the JSON file asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench core", description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000, help="recipients queued at most, 1,000 and up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    result = measure(options.most)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
