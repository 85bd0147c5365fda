"""Retries a channel may make: a share of first calls, and a floor; more while they get answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.retry_budget import FADE_NS, NS_PER_S, RetryBudget

MINUTES = st.integers(0, 120 * NS_PER_S)


def spent(budget: RetryBudget, now_ns: int, most: int = 100_000) -> int:
    """How many go one by one before the first may not."""
    return next((n for n in range(most) if not budget.spend(now_ns, 1)), most)


def test_a_floor_for_a_quiet_channel() -> None:
    budget = RetryBudget(20, 10, 0)
    assert spent(budget, 0) == 100, "what ten seconds earn"
    assert spent(budget, NS_PER_S) == 10
    assert spent(budget, 1_000 * NS_PER_S) == 100


def test_a_share_of_first_calls() -> None:
    budget = RetryBudget(20, 10, 0)
    spent(budget, 0)
    budget.earn(1_000, 0)
    assert spent(budget, 0) == 200


def test_an_answer_earns_more_than_it_cost() -> None:
    budget = RetryBudget(20, 1, 0)
    waiting, rounds = 100_000, 0
    while waiting:
        going = min(spent(budget, 0, waiting), waiting)
        assert going
        waiting, rounds = waiting - going, rounds + 1
        budget.earn(0, going)
    assert rounds < 20, "twice as many each time"


def test_a_group_larger_than_the_budget_goes_on_credit() -> None:
    budget = RetryBudget(20, 10, 0)
    assert budget.spend(0, 10_000)
    assert not budget.spend(0, 1)
    assert not budget.spend(989 * NS_PER_S, 1)
    assert budget.spend(991 * NS_PER_S, 1)


def test_what_is_not_spent_fades() -> None:
    budget = RetryBudget(20, 10, 0)
    budget.earn(1_000_000, 0)
    assert budget.tokens(0) == 200_100
    assert 73_000 < budget.tokens(FADE_NS) < 74_000
    assert budget.tokens(100 * FADE_NS) == 100


def test_what_calls_earn_fades_though_nobody_asks_meanwhile() -> None:
    """Hours of calls without a failure are no leave to storm."""
    asked, unasked = RetryBudget(20, 10, 0), RetryBudget(20, 10, 0)
    for step in range(1, 10_001):
        asked.earn(1_000, 0)
        asked.tokens(step * FADE_NS // 1_000)
        unasked.earn(1_000, 0)
    assert unasked.tokens(10 * FADE_NS) == pytest.approx(asked.tokens(10 * FADE_NS), rel=0.01)


def test_a_time_before_the_last_one_counts_as_that() -> None:
    budget = RetryBudget(20, 10, NS_PER_S)
    spent(budget, NS_PER_S)
    assert not budget.spend(0, 1)
    assert spent(budget, 2 * NS_PER_S) == 10


@given(st.lists(st.tuples(MINUTES, st.integers(0, 500), st.integers(0, 50))), st.integers(0, 100), st.integers(1, 50))
def test_never_more_than_was_earned_and_one_group(rounds: list[tuple[int, int, int]], percent: int, per_s: int) -> None:
    budget, now_ns, earned, gone, largest = RetryBudget(percent, per_s, 0), 0, per_s * 10.0, 0, 0
    for passed_ns, first, wanted in rounds:
        now_ns += passed_ns
        earned += per_s * passed_ns / NS_PER_S + first * percent / 100
        budget.earn(first, 0)
        if wanted and budget.spend(now_ns, wanted):
            gone += wanted
            largest = max(largest, wanted)
        assert gone <= earned + largest + 1e-6
