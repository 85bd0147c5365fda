"""How the crash benchmark counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.crash_feed import FREED, KINDS, LATE, REFUSED, TWICE, Feed
from bench.crash_judge import Quota, agrees, ended, over, over_quota, repeats
from bench.judge import Verdict
from engine.decode import decode
from engine.logs import Record
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


def test_ends_of_ids_that_came_again_are_told_apart_by_name() -> None:
    ends = {
        (ORIGIN, "twice-a"): ["duplicate", "duplicate"],
        (ORIGIN, "freed-b"): ["accepted", "duplicate"],
        (ORIGIN, "c"): ["failed"],
    }
    assert ended(ends, TWICE) == Counter(duplicate=1)
    assert ended(ends, FREED) == Counter(accepted=1, duplicate=1)
    assert ended(ends, LATE) == Counter()


def test_an_id_comes_again_for_others_and_where_it_came_first() -> None:
    records = [record for feed in [Feed("p", 1)] for _ in range(300) for record in feed.burst(0.0)]
    by_id: dict[str, list[tuple[str, Record]]] = {}
    for record in records:
        send = decode(record.value or b"")
        by_id.setdefault(send.id, []).append((str(send.to[0]), record))
    names = [str(who) for record in records for who in decode(record.value or b"").to]
    assert len(names) == len(set(names)), "ledgers are joined on them"
    again = [sends for sends in by_id.values() if len(sends) > 1]
    for (first, where), (name, place) in again:
        assert (where.topic, where.key) == (place.topic, place.key), "the same worker has them"
        assert first.startswith(REFUSED) == name.startswith(FREED)
    assert {kind for _, (name, _) in again for kind in KINDS if name.startswith(kind)} == set(KINDS)


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
