"""The offline optimum against every interval tried, and against the calls really leaving at that rate."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.optimum import Arrival, Work, cut, least_peak

WORK = st.builds(
    lambda release, span, calls: Work(release, release + span, calls),
    st.integers(0, 40),
    st.integers(1, 30),
    st.integers(1, 5),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(WORK, min_size=1, max_size=12))
def test_least_peak_is_that_of_the_tightest_interval(work: list[Work]) -> None:
    most = max(
        Fraction(sum(row.calls for row in work if row.release >= start and row.due <= end), end - start)
        for start in {row.release for row in work}
        for end in {row.due for row in work}
        if end > start
    )
    assert least_peak(work) == most


def fewest(arrivals: list[Arrival], cap: int) -> int:
    """Calls for a flow, over all ways to cut it in order."""
    best = [0]
    for end in range(1, len(arrivals) + 1):
        best.append(
            min(
                best[start] + 1
                for start in range(max(0, end - cap), end)
                if arrivals[end - 1].at < min(arrival.due for arrival in arrivals[start:end]) or end - start == 1
            )
        )
    return best[-1]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 5))
def test_cut_makes_the_fewest_calls_that_can_be_in_time(gaps: list[tuple[int, int]], cap: int) -> None:
    arrivals, at = [], 0
    for gap, span in gaps:
        at += gap
        arrivals.append(Arrival(at, at + span))
    calls = list(cut(arrivals, cap))
    assert all(call.release < call.due for call in calls)
    assert len(calls) == fewest(arrivals, cap)
