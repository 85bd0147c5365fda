"""How smoothly the engine sends, against the least peak there can be: the real core on a virtual clock, beside the
optimum with hindsight, the same core without memory (`oa`), with even shares (`even`) and without pacing (`asap`).

All run under the same ceiling, 5 R*, which is what a channel's slots can deliver; and one burst goes through the real
pipeline. ``peak_over_rstar``: the most calls in any second, or any stretch in which R* lets a hundred go, over R*.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, NamedTuple

from bench import smooth_page, smooth_real, stack
from bench.optimum import least_peak
from bench.smooth_cases import CASES, DUE_NS, S
from bench.smooth_figures import Figures, binned, figures
from bench.smooth_run import MODES, TAU_NS, Clock

CEILING = 5  # times R*
CALL_S = 0.05
BY_SEED = {"equal": 1, "lognormal": 10}  # of the seeds asked for, one in so many
OTHERS = 40
COMPARED = 10  # the other modes run for one seed in so many


class Outcome(NamedTuple):
    """Of one case and seed, by mode; ``bins`` (calls by second) for the page, of the first seed alone."""

    case: str
    rstar_per_s: float
    figures: dict[str, Figures]
    bins: dict[str, list[int]]


def run(case: str, seed: int) -> Outcome:
    """One case drawn from one seed, in all modes or in `paced` alone."""
    drawn = CASES[case](Random(f"{case} {seed}"))
    work = drawn.work()
    rstar_per_s = least_peak(work) * S
    slots = max(4, round(CEILING * rstar_per_s * CALL_S))
    call_ns = int(slots * S / (CEILING * rstar_per_s))
    of, bins = {}, {}
    for mode in MODES if seed % COMPARED == 0 else ("paced",):
        left, late = Clock(drawn, mode, slots, call_ns).run()
        of[mode] = figures(left, work, rstar_per_s, late)
        if seed == 0:
            bins[mode] = binned(left, left[-1] // S)
    return Outcome(case, float(rstar_per_s), of, bins)


def jobs_of(cases: list[str], seeds: int) -> list[tuple[str, int]]:
    """Cases and seeds, the long ones first."""
    counts = {case: -(-seeds // BY_SEED.get(case, OTHERS)) for case in cases}
    return [(case, seed) for case in reversed(cases) for seed in range(counts[case])]


def run_all(cases: list[str], seeds: int, workers: int) -> dict[str, list[Outcome]]:
    """By case, a line on stderr for each seed."""
    done: dict[str, list[Outcome]] = {case: [] for case in cases}
    jobs = jobs_of(cases, seeds)
    if not jobs:
        return done
    with ProcessPoolExecutor(workers) as pool:
        for number, outcome in enumerate(pool.map(run, *zip(*jobs, strict=True)), 1):
            done[outcome.case].append(outcome)
            ratios = "  ".join(f"{mode} {of.peak_over_rstar:.3f}" for mode, of in outcome.figures.items())
            print(f"{number}/{len(jobs)} {outcome.case}: peak/R* {ratios}", file=sys.stderr, flush=True)
    return done


def mode_figures(outcomes: list[Outcome], mode: str) -> dict[str, Any]:
    """Means over the seeds; the percentile is the nearest rank's."""
    of = [outcome.figures[mode] for outcome in outcomes if mode in outcome.figures]
    peaks = sorted(each.peak_over_rstar for each in of)
    return {
        "peak_over_rstar": round(mean(peaks), 4),
        "peak_over_rstar_p95": round(peaks[min(len(peaks) - 1, len(peaks) * 95 // 100)], 4),
        "fluctuation_pct": percent([each.fluctuation for each in of]),
        "fluctuation_pct_all": percent([each.fluctuation_all for each in of]),
        "par": round(mean(each.par for each in of), 3),
        "cv": round(mean(each.cv for each in of), 3),
        "late_avoidable": sum(each.late for each in of),
        "seeds": len(of),
    }


def percent(shares: list[float | None]) -> float | None:
    """Of the seeds that have any."""
    known = [share for share in shares if share is not None]
    return round(100 * mean(known), 2) if known else None


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """A case's figures: those of `paced`, and the others' beside them."""
    modes = {mode: mode_figures(outcomes, mode) for mode in outcomes[0].figures}
    own = modes.pop("paced")
    rates = {"rstar_per_s": round(mean(outcome.rstar_per_s for outcome in outcomes), 3)}
    return own | {"fluctuation_pct_asap": modes["asap"]["fluctuation_pct"]} | rates | {"modes": modes}


def real_summary(bursts: dict[str, smooth_real.Burst]) -> dict[str, Any]:
    """The real burst, as a case."""
    outcomes = [
        Outcome("real", bursts["paced"].rstar_per_s, {mode: burst.figures for mode, burst in bursts.items()}, {})
    ]
    return summary(outcomes)


def table(cases: dict[str, dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'case':>14}  {'mode':>5}  peak/R*    p95     F %    PAR    CV  late"]
    for name, case in cases.items():
        for mode, of in {"paced": case, **case["modes"]}.items():
            share = "-" if of["fluctuation_pct"] is None else f"{of['fluctuation_pct']:.1f}"
            numbers = f"{of['peak_over_rstar']:>7.3f} {of['peak_over_rstar_p95']:>7.3f} {share:>7}"
            lines.append(
                f"{name:>14}  {mode:>5}  {numbers} {of['par']:>6.2f} {of['cv']:>5.2f} {of['late_avoidable']:>5}"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print, and write the files asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench smooth", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page with the plots")
    parser.add_argument(
        "--seeds", type=int, default=200, help="of the equal campaigns; fewer of the others (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--case", action="append", choices=[*CASES, "real"], help="this one alone; may be repeated")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs are 1 or more")
    asked = options.case or [*CASES, "real"]
    cases = [case for case in asked if case != "real"]
    done = run_all(cases, options.seeds, options.jobs)
    bursts = asyncio.run(smooth_real.measure(CEILING)) if "real" in asked else None
    result: dict[str, Any] = {
        "machine": stack.machine(),
        "tau_s": TAU_NS // S,
        "due_s": DUE_NS // S,
        "ceiling_over_rstar": CEILING,
        "cases": {case: summary(outcomes) for case, outcomes in done.items()},
        "real": real_summary(bursts) if bursts else None,
    }
    print(table(result["cases"] | ({"real": result["real"]} if bursts else {})))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.html:
        bins = {case: outcomes[0].bins for case, outcomes in done.items()}
        if bursts:
            bins["real"] = {mode: burst.bins for mode, burst in bursts.items()}
        options.html.write_text(smooth_page.page(result, bins))
    return 0
