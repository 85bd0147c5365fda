"""How the crash benchmark counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.crash_judge import Quota, agrees, over, over_quota, repeats
from bench.judge import Verdict
from tests.property.windows import most_in_a_window

ORIGIN = ("t", 0, 0)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), max_size=30), st.integers(1, 12), st.integers(1, 30))
def test_a_window_is_over_where_the_model_says_so(arrivals: list[tuple[int, int]], number: int, per: int) -> None:
    assert bool(over(arrivals, number, per)) == (most_in_a_window(arrivals, per) > number)


async def test_quotas_count_what_they_are_of() -> None:
    async def calls() -> AsyncIterator[dict[str, object]]:
        for at, recipients in ((0, 3), (5, 3), (6, 0), (10, 3)):
            yield {"endpoint": "webhook", "account": "p", "arrived_ns": at, "recipients": recipients}

    assert await over_quota(calls(), [Quota("webhook", "p", "calls", 2, 10)]) == 0
    assert await over_quota(calls(), [Quota("webhook", "p", "calls", 1, 10)]) == 2
    assert await over_quota(calls(), [Quota("webhook", "p", "recipients", 5, 10)]) == 2
    with pytest.raises(KeyError):
        await over_quota(calls(), [Quota("webhook", "nobody", "calls", 2, 10)])


def test_repeats_are_told_apart_by_channel() -> None:
    assert repeats(Counter(a=3, b=2, c=1), {"b", "c"}) == (1, 2)


def test_the_audit_must_come_to_the_same() -> None:
    verdict = Verdict(taken_in=4)
    verdict.ends = {(ORIGIN, name): ["accepted"] for name in "ab"}
    verdict.ends[ORIGIN, "c"] = ["accepted", "expired"]
    audit = {"recipients": 4, "missing": 1, "unexplained": 0, "outcomes": {"accepted": 2, "expired": 1}}
    assert agrees(verdict, 1, audit)
    assert agrees(verdict, 1, audit | {"outcomes": {"accepted": 3}})
    assert not agrees(verdict, 1, audit | {"outcomes": {"accepted": 1, "expired": 2}})
    assert not agrees(verdict, 1, audit | {"unexplained": 1})
    assert not agrees(verdict, 0, audit)
