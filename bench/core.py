"""What the scheduling core costs: push and pop by how much is queued, over how many flows and of which distribution,
beside heapq with tuples; cancel, memory, and urgent sends with millions queued; and what the ledger costs.

An op is one recipient pushed or popped, in calls of ``batch`` through Python's buffers; a pair is both. So many are
queued, and as many pairs gone through before the first is timed, so that memory lies as it does in a service that runs.
Columns are laid out and calls released outside of the time. heapq, filled and aged likewise and with ids as long, does
one push and one pop a pair, without merging, limits, fairness or cancel. The two take five turns: figures are medians
of all short rounds, a ratio is the median of the turns'.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from array import array
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

from bench import stack
from bench.core_cases import (
    ENGINE_BUDGET,
    measure_cancel,
    measure_memory,
    measure_urgent,
    memory_latency,
)
from bench.core_ledger import measure_ledger
from bench.core_load import DISTRIBUTIONS, Heap, Load, Spread
from ext.schedule import Core

BATCH = 256  # recipients a call of the core
BATCHES = (16, 64, 1024, 4096)  # beside it, at one point of the sweep
RUN = 64  # recipients a send, beside sends of one
TURNS, HEAP_ROUNDS = 5, 3  # of the core and of heapq at each point, for the machine's pace changes; rounds a turn
SAMPLE_FLOWS = 10_000  # where batches, runs, memory and urgent are measured
EMPTY_CALLS = 2000


def sweep(queued: list[int], heaps: dict[int, Heap]) -> list[dict[str, Any]]:
    """Every number queued, over every number of flows up to it, in every distribution."""
    rows: list[dict[str, Any]] = []
    for dist in DISTRIBUTIONS:
        for flows in (10**power for power in range(2, 7) if 10**power <= queued[-1]):
            load = Load(flows, dist)
            rows += [_point(load, depth, flows, dist, BATCH, heaps) for depth in queued if depth >= flows]
    return rows


def variants(queued: int, heaps: dict[int, Heap]) -> list[dict[str, Any]]:
    """Other sizes of calls, and sends of many recipients, at one point."""
    flows = min(SAMPLE_FLOWS, queued)
    load = Load(flows, "uniform")
    rows = [_point(load, queued, flows, "uniform", batch, heaps) for batch in BATCHES]
    return [*rows, _point(Load(flows, "uniform", run=RUN), queued, flows, "uniform", BATCH, heaps)]


def _point(load: Load, queued: int, flows: int, dist: str, batch: int, heaps: dict[int, Heap]) -> dict[str, Any]:
    load.fill(queued)
    load.age(queued)
    popped, calls = load.popped, load.calls
    turns = [(*load.measure(batch), heaps[queued].measure(HEAP_ROUNDS)) for _ in range(TURNS)]
    push, pop, heap = (Spread.of([ns for turn in kind for ns in turn]) for kind in zip(*turns, strict=True))
    ratios = [round(median(peer) / (median(pushes) + median(pops)), 1) for pushes, pops, peer in turns]
    row = {
        "queued": queued, "flows": flows, "dist": dist, "batch": batch, "run": load.run,
        "push_ns": push.median, "push_ns_p10_p90": push[1:], "pop_ns": pop.median, "pop_ns_p10_p90": pop[1:],
        "recipients_per_call": round((load.popped - popped) / (load.calls - calls), 1),
        "pairs_per_s": round(1e9 / (push.median + pop.median)),
        "heapq_pairs_per_s": round(1e9 / heap.median),
        "ratio": median(ratios), "ratio_runs": ratios,
    }  # fmt: skip
    print(line(row), file=sys.stderr, flush=True)
    return row


def line(row: dict[str, Any]) -> str:
    """One point, for people."""
    return (
        f"{row['queued']:>11,} queued {row['flows']:>9,} flows {row['dist']:>11} {row['run']:>3} a send"
        f" {row['batch']:>5} at once: push {figure(row, 'push_ns')}  pop {figure(row, 'pop_ns')}"
        f" in calls of {row['recipients_per_call']:.0f}"
        f"  {row['pairs_per_s'] / 1e6:.2f} M pairs/s, heapq x {row['ratio']}"
        f" ({min(row['ratio_runs'])}..{max(row['ratio_runs'])})"
    )


def figure(row: dict[str, Any], name: str) -> str:
    """A median with its spread."""
    low, high = row[f"{name}_p10_p90"]
    return f"{row[name]:.0f} ({low:.0f}..{high:.0f})"


def empty_call_ns() -> dict[str, float]:
    """What a call costs that moves nothing: Python's share of an op is this over the recipients a call."""
    core, longs, ints, none = Core(), array("q"), array("I"), b""
    rows = (ints, none, ints, ints, ints, ints, none, longs, longs, longs, longs, longs, ints, array("H"), none, none)
    spent: dict[str, list[int]] = {"push": [], "pop": []}
    for _ in range(EMPTY_CALLS):
        start = perf_counter_ns()
        core.push_many(0, *rows)
        middle = perf_counter_ns()
        core.pop_batches(0, BATCH)
        spent["pop"].append(perf_counter_ns() - middle)
        spent["push"].append(middle - start)
    return {name: median(values) for name, values in spent.items()}


def measure(most: int) -> dict[str, Any]:
    """All of it, up to ``most`` queued."""
    depths = [10**power for power in range(3, 9) if 10**power <= most]
    flows = min(SAMPLE_FLOWS, depths[-1])
    result: dict[str, Any] = {"machine": stack.machine(), "memory": memory_latency(), "empty_call_ns": empty_call_ns()}
    result["ledger"] = measure_ledger(depths[-1])
    own, grown = measure_memory(depths[-1], flows)
    result |= {"bytes_per_recipient": round(own, 1), "rss_bytes_per_recipient": round(grown, 1)}
    cancels = measure_cancel(depths[-1])
    name = "cancel_us_10m" if depths[-1] == 10**7 else f"cancel_us_{depths[-1]}"
    result |= {name: round(median(cancels), 1), f"{name}_runs": [round(us, 1) for us in cancels]}
    for key, budget in (("urgent", 1), (f"urgent_{ENGINE_BUDGET}", ENGINE_BUDGET)):
        taken, interval = measure_urgent(depths, SAMPLE_FLOWS, budget)
        result[f"{key}_p99_ns"] = {str(queued): median(values) for queued, values in taken.items()}
        result[f"{key}_slope_ci"] = [round(end, 1) for end in interval]
    print(json.dumps(result, indent=2), file=sys.stderr, flush=True)
    print("heapq: filling and ageing heaps, a minute or two", file=sys.stderr, flush=True)
    heaps = {depth: Heap(depth) for depth in depths}
    gc.freeze()  # millions of tuples that stay
    for depth, heap in heaps.items():
        heap.age(depth)
    result["runs"] = sweep(depths, heaps) + variants(min(10**6, depths[-1]), heaps)
    return result


def main(argv: list[str]) -> int:
    """Measure, print, and write the JSON file asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench core", description=__doc__)
    parser.add_argument("--most", type=int, default=10**7, help="recipients queued at most, 1,000 and up (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the same as --most 100000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.most < 1000:
        parser.error(f"--most is {options.most}: 1,000 and up expected")
    result = measure(10**5 if options.quick else options.most)
    for row in result["runs"]:
        print(line(row))
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
