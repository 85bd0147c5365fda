"""What the core does beside push and pop: cancel, memory, urgent sends while others queue; and what memory costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Sequence
from itertools import pairwise
from math import log10, sqrt
from pathlib import Path
from statistics import mean, median
from time import perf_counter_ns

from bench.core_load import BASIC, DAY_NS, FILL, SLOTS, STEP_NS, Columns, Load
from ext.schedule import NEVER, Core

RUNS = 5
FLUSH_BYTES = 64 << 20  # more than any cache holds
SAMPLES = 2000  # urgent sends a run
STUDENT = {3: 3.182, 8: 2.306, 13: 2.160, 18: 2.101, 23: 2.069}  # 97.5 %, by degrees of freedom
ENGINE_BUDGET = 256  # steps of a pop, as the dispatcher asks for
LATENCY_C = Path(__file__).with_name("latency.c")


# --- cancel


def measure_cancel(queued: int, contents: int = 1000) -> list[float]:
    """us, of each run: one campaign of so many contents that is all there is, its memory in no cache."""
    return [_cancel_once(queued, contents) for _ in range(RUNS)]


def _cancel_once(queued: int, contents: int) -> float:
    core = Core()
    core.add_channel(SLOTS, 1, 200)
    core.add_account(0)
    for first in range(0, queued, FILL):
        rows = min(FILL, queued - first)
        zeros, times = array("I", bytes(4 * rows)), array("q", bytes(8 * rows))
        never, day = array("q", [NEVER]) * rows, array("q", [DAY_NS]) * rows
        content = array("I", [(first + row) % contents for row in range(rows)])
        one = (zeros, bytes([BASIC]) * rows, zeros, zeros, zeros, content, bytes(rows))
        ids = (array("I", [1]) * rows, array("H", bytes(2 * rows)), bytes([12]) * rows, bytes(12 * rows))
        core.push_many(0, *one, times, never, day, times, times, *ids)
    flush = bytearray(FLUSH_BYTES)
    flush[:] = bytes(FLUSH_BYTES)
    start = perf_counter_ns()
    cancelled = core.cancel(0, 0)
    spent = perf_counter_ns() - start
    assert cancelled == queued
    return spent / 1000


# --- memory


def measure_memory(queued: int, flows: int) -> tuple[float, float]:
    """B a queued recipient: what the core says it has, without the ids; and what the process has grown by, with ids of
    28 bytes. Both with the empty core taken off."""
    before_rss, load = _rss_bytes(), Load(flows, "uniform", id_bytes=28)
    prepared = _rss_bytes() - before_rss  # the benchmark's own ids and flows
    empty = load.core.stats()["memory_bytes"][0]
    load.fill(queued)
    own = load.core.stats()["memory_bytes"][0] - empty
    return own / queued - 28, (_rss_bytes() - before_rss - prepared) / queued


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- urgent


def urgent_p99(load: Load, budget: int) -> float:
    """ns: a system send pushed, and popped by a call with this budget, while basic ones come and go."""
    taken = []
    for number in range(SAMPLES):
        load.push(load.columns(ENGINE_BUDGET), ENGINE_BUDGET)
        load.now += STEP_NS
        columns = _urgent(load.now, number)
        start = perf_counter_ns()
        load.core.push_many(load.now, *columns)  # type: ignore[arg-type]
        popped = load.core.pop_batches(load.now, budget)
        taken.append(perf_counter_ns() - start)
        assert popped.tier[0] == 0
        for tier, tenant, (first, end) in zip(popped.tier, popped.tenant, pairwise(popped.start), strict=True):
            load.core.release(load.now, 0, tier, end - first, end - first, 0, tenant)
        load.queued -= popped.items - 1
        load.pop(ENGINE_BUDGET - popped.items + 1, ENGINE_BUDGET)
    return sorted(taken)[SAMPLES * 99 // 100]


def _urgent(now: int, number: int) -> Columns:
    zero, time = array("I", [0]), array("q", [now])
    facts = (time, array("q", [NEVER]), array("q", [now + DAY_NS]), array("q", [0]), time)
    return (
        zero,
        b"\0",
        zero,
        zero,
        zero,
        zero,
        b"\0",
        *facts,
        array("I", [1]),
        array("H", [0]),
        b"\x0c",
        b"%012d" % number,
    )


def measure_urgent(sizes: Sequence[int], flows: int, budget: int) -> tuple[dict[int, list[float]], tuple[float, float]]:
    """p99 in ns by how many are queued, of each run; and the 95 % interval of its slope, ns a decade.

    All queues stand beside each other and take turns, so that what else the machine does meets each of them."""
    loads = {}
    for queued in sizes:
        loads[queued] = Load(min(flows, queued), "uniform", seed=queued)
        loads[queued].fill(queued)
        loads[queued].age(min(queued, 10**6))
    taken: dict[int, list[float]] = {queued: [] for queued in sizes}
    for _ in range(RUNS):
        for queued, load in loads.items():
            taken[queued].append(urgent_p99(load, budget))
    return taken, slope_interval([(log10(queued), value) for queued in sizes for value in taken[queued]])


def slope_interval(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The 95 % confidence interval of the slope of y on x (least squares; Student's t)."""
    x_mean, y_mean = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread
    free = len(points) - 2
    left = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in points)
    half = STUDENT.get(free, 2.0) * sqrt(left / free / spread)
    return slope - half, slope + half


# --- the machine


def memory_latency() -> dict[str, float] | None:
    """ns an access to a random line, dependent and overlapped; None: there is no C compiler here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="surgetank-latency-") as folder:
        program = f"{folder}/latency"
        subprocess.run([compiler, "-O2", "-o", program, str(LATENCY_C)], check=True)
        rows = [subprocess.run([program], check=True, capture_output=True, text=True).stdout for _ in range(RUNS)]
    dependent, overlapped = zip(*((float(each) for each in row.split()[:2]) for row in rows), strict=True)
    return {"dependent_ns": round(median(dependent), 1), "overlapped_ns": round(median(overlapped), 1)}
