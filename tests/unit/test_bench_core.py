"""What ``bench core`` measures is what it says: so many queued, pushed and popped in turns; a slope with its doubt."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from bench.core_cases import slope_interval, urgent_p99
from bench.core_ledger import measure_ledger
from bench.core_load import CAP, DISTRIBUTIONS, Heap, Load, Spread, flows_of

BASIC = 2


@pytest.mark.parametrize("dist", DISTRIBUTIONS)
@pytest.mark.parametrize("run", [1, 7])
def test_a_load_keeps_what_is_queued(dist: str, run: int) -> None:
    load = Load(50, dist, run=run)
    load.fill(3000)
    load.age(90_000)
    load.round(128)
    stats = load.core.stats()
    assert stats["queued"][BASIC] == load.queued
    assert 3000 - 200 - run <= load.queued <= 3000 + run
    assert stats["popped"][BASIC] >= 90_000
    load.core.check()


def test_a_load_counts_recipients_and_the_calls_they_came_in() -> None:
    whole, single = Load(1, "uniform"), Load(50, "adversarial")
    for load, per_call in ((whole, CAP), (single, 1)):
        load.fill(3000)
        assert all(ns > 0 for each in load.measure(400) for ns in each)
        assert load.popped == per_call * load.calls == load.core.stats()["popped"][BASIC] > 0


def test_flows_are_drawn_as_the_distribution_says() -> None:
    uniform, zipf, adversarial = (list(islice(flows_of(dist, 10, Random(1)), 10_000)) for dist in DISTRIBUTIONS)
    assert {*uniform} == {*zipf} == {*adversarial} == {*range(10)}
    assert max(map(uniform.count, range(10))) < 1200
    assert max(map(zipf.count, range(10))) > 2000
    assert adversarial[:10] == adversarial[10:20] == adversarial[-10:]
    assert len({*adversarial[:10]}) == 10


def test_an_urgent_send_is_popped_first_and_the_queue_stays() -> None:
    load = Load(50, "uniform")
    load.fill(3000)
    assert urgent_p99(load, budget=1) > 0
    assert load.core.stats()["popped"][0] == load.core.stats()["pushed"][0] > 0
    assert load.core.stats()["queued"][BASIC] == load.queued


def test_the_ledgers_figures_have_their_keys() -> None:
    figures = measure_ledger(1200)
    assert set(figures) == {"open_ns", "complete_ns", "encode_us", "all_maps"}
    assert set(figures["encode_us"]) == {"1000", "10000", "100000"}
    assert figures["all_maps"]["open_sends"] == 1200
    assert figures["all_maps"]["bytes"] > 12 * 12


def test_a_heap_keeps_what_is_queued() -> None:
    heap = Heap(100)
    filled = {*heap._heap}
    heap.age(10_000)
    assert filled.isdisjoint(heap._heap)
    assert all(ns > 0 for ns in heap.measure(3))
    assert len(heap._heap) == 100
    assert min(heap._heap) == heap._heap[0]


def test_a_spread_is_of_the_values_in_order() -> None:
    assert Spread.of([float(n) for n in range(11)]) == (5.0, 1.0, 9.0)


def test_a_slope_comes_with_its_interval() -> None:
    low, high = slope_interval([(x, 3.0 * x + 1) for x in range(10)])
    assert low == pytest.approx(3.0)
    assert high == pytest.approx(3.0)
    low, high = slope_interval([(x, 3.0 * x + (-1) ** x) for x in range(10)])
    assert low < 3.0 < high
