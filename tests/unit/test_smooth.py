"""The figures of ``bench smooth`` on schedules counted by hand, and the real core on its virtual clock."""

from __future__ import annotations

from array import array
from fractions import Fraction
from random import Random
from xml.etree import ElementTree

import pytest

from bench.optimum import Work, least_peak
from bench.smooth_cases import DUE_NS, Case, Sends, bursts
from bench.smooth_figures import Burst, binned, bursts_of, figures, fluctuation, peak_per_s
from bench.smooth_page import plot
from bench.smooth_run import MODES, Clock, in_parts

S = 10**9


def at(*seconds: float) -> array[int]:
    return array("q", [int(second * S) for second in seconds])


def test_the_peak_is_that_of_any_second_not_of_the_clock_s() -> None:
    left = at(0.9, 0.95, 1.0, 1.05, 1.95)
    assert binned(left, 2) == [2, 3, 0]
    assert peak_per_s(left, Fraction(1000)) == 4


def test_a_low_rate_is_measured_over_a_hundred_calls() -> None:
    steady = array("q", range(0, 100 * S, S // 2))
    assert peak_per_s(steady, Fraction(2)) == 2


def test_bursts_are_starts_close_together() -> None:
    def due(release: int, calls: int) -> Work:
        return Work(release * S, (release + 600) * S, calls)

    work = [due(0, 60_000), due(20, 30_000), due(50, 30_000), due(3600, 600)]
    assert bursts_of(work) == [Burst(0, 650, 120_000, 200.0), Burst(3600, 4200, 600, 1.0)]


def test_fluctuation_is_the_most_over_the_mean_by_calls() -> None:
    large, small = Burst(0, 4, 800, 300.0), Burst(4, 6, 200, 100.0)
    bins = [100, 200, 300, 200, 50, 150]
    assert fluctuation(bins, [large, small], 200) == pytest.approx(0.5)
    assert fluctuation(bins, [large, small], 50) == pytest.approx((800 * 0.5 + 200 * 0.5) / 1000)
    assert fluctuation(bins, [small], 200) is None


SMALL = Case(
    [
        Sends(0, 0, 0, 300),
        Sends(100 * S, 1, 1, 500),
        Sends(100 * S, 2, 2, 20),
        Sends(400 * S, 1, 3, 900),
        Sends(2000 * S, 0, 4, 50),
    ]
)


@pytest.mark.parametrize("mode", MODES)
def test_the_core_sends_every_call_in_time_and_never_below_the_optimum(mode: str) -> None:
    work = SMALL.work()
    rstar_per_s = least_peak(work) * S
    schedule = Clock(SMALL, mode, slots=8, call_ns=int(8 * S / (5 * rstar_per_s))).run()
    of = figures(schedule.left, work, rstar_per_s, schedule.late)
    assert len(schedule.left) == sum(each.recipients for each in SMALL.sends)
    assert schedule.late == 0
    assert list(schedule.left) == sorted(schedule.left)
    assert of.peak_over_rstar >= 1.0
    assert of.peak_over_rstar > 3 if mode == "asap" else of.peak_over_rstar < 2


def test_sends_that_merge_are_counted_as_calls() -> None:
    case = Case([Sends(n * S // 10, 0, 0, 1) for n in range(250)], cap=100)
    assert [work.calls for work in case.work()] == [1, 1, 1]
    schedule = Clock(case, "paced", slots=4, call_ns=S // 100).run()
    assert 3 <= len(schedule.left) <= 250
    assert schedule.late == 0


def test_a_campaign_comes_in_sends_as_large_as_a_record_holds() -> None:
    most = 10_000
    campaign = Sends(5, 1, 2, 2 * most + 1)
    assert in_parts(campaign) == [campaign._replace(recipients=n) for n in (most, most, 1)]
    assert in_parts(Sends(5, 1, 2, most)) == [Sends(5, 1, 2, most)]


def test_a_burst_draws_what_it_says() -> None:
    case = bursts(Random(1), 30, (0.0, 0.24))
    assert sum(each.recipients for each in case.sends) == 10_000
    assert 3600 * S <= case.sends[0].at <= case.sends[-1].at < 3630 * S
    assert all(work.due == work.release + DUE_NS for work in case.work())


def test_a_plot_is_well_formed_and_has_a_line_a_mode() -> None:
    svg = ElementTree.fromstring(plot({"paced": [1, 2, 3], "asap": [3, 3, 0, 0]}, 0, 4, 1.5, 3))  # noqa: S314 - our own
    strokes = [path.get("stroke") for path in svg.iter("path")]
    assert strokes.count("#2458c6") == strokes.count("#c9a227") == 1
