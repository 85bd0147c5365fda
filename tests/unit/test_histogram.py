"""The histogram that C fills."""

from __future__ import annotations

from array import array

import pytest

from ext.histogram import Histogram


def test_a_value_equal_to_an_edge_is_within_it() -> None:
    histogram = Histogram([1, 10, 100])
    for value in (0, 1, 2, 10, 11, 100, 101):
        histogram.observe(value)
    assert histogram.snapshot() == ([2, 4, 6, 7], 225)
    assert histogram.edges == [1, 10, 100]


def test_weights_and_many_at_once() -> None:
    histogram = Histogram([5])
    histogram.observe(3, 4)
    histogram.observe(-7, 0)
    histogram.observe_many(array("q", [6, -1, 5]))
    histogram.observe_many(array("q"))
    assert histogram.snapshot() == ([6, 7], 22)


def test_the_sum_is_exact_beyond_64_bits_and_below_zero() -> None:
    histogram = Histogram([0])
    histogram.observe(2**63 - 1, 2**62)
    assert histogram.snapshot() == ([0, 2**62], (2**63 - 1) * 2**62)
    histogram = Histogram([0])
    histogram.observe(-(2**63), 3)
    assert histogram.snapshot() == ([3, 3], -3 * 2**63)


def test_every_edge_is_found() -> None:
    edges = list(range(-50, 50, 3))
    histogram = Histogram(edges)
    values = range(-60, 60)
    for value in values:
        histogram.observe(value)
    expected = [sum(value <= edge for value in values) for edge in edges]
    assert histogram.snapshot() == ([*expected, len(values)], sum(values))


@pytest.mark.parametrize(
    ("edges", "message"),
    [([], r"edges: 0 of them, 1\.\.65536 expected"), ([1, 1], r"edges\[1\] is 1"), ([2, 1], r"more than 2")],
)
def test_edges_must_ascend(edges: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram(edges)


def test_what_is_no_int64_is_refused_and_counts_nothing() -> None:
    histogram = Histogram([1])
    with pytest.raises(OverflowError):
        Histogram([2**63])
    with pytest.raises(OverflowError):
        histogram.observe(2**63)
    with pytest.raises(ValueError, match="n is -1: 0 or more expected"):
        histogram.observe(1, -1)
    with pytest.raises(ValueError, match="Buffer dtype mismatch"):
        histogram.observe_many(array("I", [1]))
    assert histogram.snapshot() == ([0, 0], 0)
