"""Limits against a platform that counts at arrival, a plain model, and the share of a limit that can be used."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.limits import BLOCKED, FREE, FULL, GRANT, NEVER, Limits
from tests.property.windows import most_in_a_window

MS = 1_000_000
S = 1_000 * MS
CALLS, RECIPIENTS = 0, 1


class Rule(NamedTuple):
    """A limit as the tests draw it."""

    scope: int
    unit: int
    number: int
    per: int
    reserved: int


class Call(NamedTuple):
    """One call: what it carries and how it fares."""

    wait: int  # after the one before, at least
    n: int
    system: bool
    way: int  # from charge to answer
    arrives: float  # where on the way the platform counts it; negative: it never leaves


rules = st.builds(
    Rule,
    st.integers(0, 5),
    st.sampled_from([CALLS, RECIPIENTS]),
    st.integers(1, 40),
    st.integers(1, 20_000),
    st.just(0),
).flatmap(lambda rule: st.builds(rule.__class__, *map(st.just, rule[:4]), st.integers(0, rule.number - 1)))
calls = st.builds(
    Call,
    st.one_of(st.integers(0, 30), st.integers(0, 3_000)),
    st.integers(1, 60),
    st.booleans(),
    st.integers(0, 6_000),
    st.one_of(st.just(-1.0), st.floats(0, 1)),
)


class World:
    """Limits, and the calls under way; time moves from event to event."""

    def __init__(self, drawn: list[Rule]) -> None:
        self.limits = Limits()
        for rule in drawn:
            self.limits.add_limit(rule.scope, 0, rule.unit, rule.number, rule.per, rule.reserved)
        self.now = 0
        self.under_way: list[tuple[int, int, int]] = []  # (answered at, n, left)
        self.arrived: list[tuple[int, int, bool]] = []

    def until(self, at: int) -> None:
        """Answers that come before."""
        while self.under_way and self.under_way[0][0] <= at:
            self.now, n, left = heapq.heappop(self.under_way)
            self.limits.settle(self.now, n, left)
        self.now = max(self.now, at)

    def send(self, call: Call) -> None:
        """As soon as the limits allow."""
        self.until(self.now + call.wait)
        n = self.limits.most(self.now, call.n, call.system)
        while True:
            why, _, _, until = self.limits.refuse(self.now, n, call.system)
            if why == FREE:
                break
            assert why == FULL
            if until == NEVER:
                assert self.under_way, "waits for an answer, and none is to come"
                until = self.under_way[0][0]
            assert until >= self.now
            self.until(until)
        self.limits.hold(n)
        left = n if call.arrives >= 0 else 0
        if left:
            self.arrived.append((self.now + int(call.way * call.arrives), n, call.system))
        heapq.heappush(self.under_way, (self.now + call.way, n, left))


@settings(max_examples=400, deadline=None, print_blob=True)
@given(st.lists(rules, min_size=1, max_size=5), st.lists(calls, min_size=1, max_size=60))
def test_no_window_at_the_platform_is_ever_over(drawn: list[Rule], sent: list[Call]) -> None:
    world = World(drawn)
    for call in sent:
        world.send(call)
    for rule in drawn:
        counts = [(at, n if rule.unit == RECIPIENTS else 1) for at, n, _ in world.arrived]
        assert most_in_a_window(counts, rule.per) <= rule.number
        # What the others sent alone stays below what is kept for system, whatever system sent.
        others = [(at, n if rule.unit == RECIPIENTS else 1) for at, n, system in world.arrived if not system]
        assert most_in_a_window(others, rule.per) <= rule.number - rule.reserved


class Model:
    """One rolling limit, plainly: entries [begun, at, n], of which each takes in what follows within a grain."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.held = 0
        self.entries: list[list[int]] = []

    def uses(self, n: int) -> int:
        """What a call of n is for this limit."""
        return n if self.rule.unit == RECIPIENTS else min(n, 1)

    def count(self, at: int, n: int) -> None:
        """An answer."""
        if self.entries and at < self.entries[-1][0] + -(-self.rule.per // 1000):
            self.entries[-1][1:] = [at, self.entries[-1][2] + n]
        elif n:
            self.entries.append([at, at, n])

    def most(self, now: int, n: int, system: bool) -> int:
        """Of n recipients in one call: half of the number, or what there is room for now."""
        if self.rule.unit != RECIPIENTS:
            return n
        if not system:
            return min(n, max((self.rule.number - self.rule.reserved) // 2, 1))
        counted = sum(entry[2] for entry in self.entries if entry[1] + self.rule.per > now)
        return min(n, max(self.rule.number - counted - self.held, 1))

    def when(self, now: int, n: int, system: bool) -> int:
        """As ``limit_when``, by walking."""
        ceiling = self.rule.number - (0 if system else self.rule.reserved)
        self.entries = [entry for entry in self.entries if entry[1] + self.rule.per > now]
        over = self.held + sum(entry[2] for entry in self.entries) + self.uses(n) - ceiling
        if over <= 0:
            return 0
        for _, at, used in self.entries:
            over -= used
            if over <= 0:
                return at + self.rule.per
        return NEVER


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(rules, min_size=1, max_size=4), st.lists(calls, min_size=1, max_size=80))
def test_every_answer_is_that_of_a_plain_model(drawn: list[Rule], sent: list[Call]) -> None:
    limits, models = Limits(), [Model(rule) for rule in drawn]
    handles = [limits.add_limit(rule.scope, 0, rule.unit, rule.number, rule.per, rule.reserved) for rule in drawn]
    # By scope, and in a scope in the order they were added.
    order = sorted(handles, key=lambda handle: drawn[handle].scope)
    now, under_way = 0, list[tuple[int, int, int]]()
    for call in sent:
        now += call.wait
        while under_way and under_way[0][0] <= now:
            _, n, left = heapq.heappop(under_way)
            limits.settle(now, n, left)
            for model in models:
                model.held -= model.uses(n)
                model.count(now, model.uses(left)) if left else None
        n = limits.most(now, call.n, call.system)
        assert n == min(call.n, *(model.most(now, call.n, call.system) for model in models))
        said = limits.refuse(now, n, call.system)
        expected: tuple[int, int, int | None, int] = (FREE, 0, None, 0)
        for handle in reversed(order):
            until = models[handle].when(now, n, call.system)
            expected = (FULL, drawn[handle].scope, handle, until) if until else expected
        assert said == expected
        if said[0] == FREE:
            limits.hold(n)
            for model in models:
                model.held += model.uses(n)
            heapq.heappush(under_way, (now + call.way, n, n if call.arrives >= 0 else 0))
        for handle, model in enumerate(models):
            assert limits.use(handle, now)[1] == sum(
                entry[2] for entry in model.entries if entry[1] + model.rule.per > now
            )


def backlog(number: int, batch: int, per: int, way: int, windows: int, seed: int) -> Iterator[tuple[int, int]]:
    """(arrival, n) of a tier that always has more, each call up to ``way`` from charge to answer."""
    chance = random.Random(seed)
    limits = Limits()
    limits.add_limit(2, 0, RECIPIENTS, number, per)
    n = limits.most(0, batch)
    now, under_way = 0, list[tuple[int, int]]()
    while now < windows * per:
        why, _, _, until = limits.refuse(now, n)
        if why == FREE:
            limits.hold(n)
            took = chance.randint(0, way)
            heapq.heappush(under_way, (now + took, n))
            yield now + chance.randint(0, took), n
        else:
            now = max(min(until, under_way[0][0] if under_way else NEVER), now)
        while under_way and under_way[0][0] <= now:
            at, left = heapq.heappop(under_way)
            limits.settle(at, left, left)


@pytest.mark.parametrize("number", [10, 30, 34, 100, 1_000, 30_000])
@pytest.mark.parametrize("batch", [1, 7, 200, 1_000])
def test_a_backlogged_tier_uses_its_limit(number: int, batch: int) -> None:
    per, way, first, windows = 1 * S, 50 * MS, 5, 45  # the first ones begin empty
    log = list(backlog(number, batch, per, way, windows, seed=number + batch))
    assert most_in_a_window(log, per) <= number
    could = (windows - first) * number * per / (per + way / 2)  # on its way for a time that is drawn evenly
    used = sum(n for at, n in log if first * per <= at < windows * per) / could
    if number >= 34 * batch:
        assert used >= 0.97
    else:  # whole batches waste more, never more than one of them
        assert used >= 0.97 * (number - min(batch, max(number // 2, 1)) + 1) / number


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    st.integers(1, 30),
    st.integers(-40, 40),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 10), st.integers(0, 200), st.floats(0, 1)), max_size=80),
)
def test_no_calendar_period_is_over_by_a_platform_whose_clock_differs(
    number: int, skew: int, sent: list[tuple[int, int, int, float]]
) -> None:
    length, guard = 1_000, 40
    limits = Limits()
    handle = limits.add_limit(0, 0, RECIPIENTS, number, length, calendar=True)
    now, under_way, arrived = 0, list[tuple[int, int]](), list[tuple[int, int]]()
    for wait, wanted, way, share in sent:
        now += wait
        n = limits.most(now, wanted)
        while True:
            while under_way and under_way[0][0] <= now:
                at, left = heapq.heappop(under_way)
                limits.settle(at, left, left)
            period = (now - guard) // length
            ends = (period + 1) * length + guard
            limits.set_period(handle, now, period + 1, ends, ends + length, guard)
            why, _, _, until = limits.refuse(now, n)
            if why == FREE:
                break
            now = max(now, under_way[0][0] if until == NEVER else until)
        limits.hold(n)
        heapq.heappush(under_way, (now + way, n))
        arrived.append((now + int(way * share), n))
    seen: dict[int, int] = {}
    for at, n in arrived:
        seen[(at + skew) // length] = seen.get((at + skew) // length, 0) + n
    assert max(seen.values(), default=0) <= number


def test_a_calendar_period_gives_its_whole_number_again() -> None:
    limits = Limits()
    handle = limits.add_limit(0, 0, CALLS, 2, 1_000, calendar=True)
    limits.set_period(handle, 0, 1, 1_040, 2_040, 40)
    for _ in range(2):
        assert limits.refuse(500, 1)[0] == FREE
        limits.hold(1)
        limits.settle(500, 1, 1)
    assert limits.refuse(900, 1) == (FULL, 0, handle, 1_040)
    assert limits.refuse(1_040, 1)[0] == FREE
    assert limits.use(handle, 1_040)[1] == 0


def test_a_clock_set_back_over_a_period_keeps_what_is_counted() -> None:
    limits = Limits()
    handle = limits.add_limit(0, 0, CALLS, 1, 1_000, calendar=True)
    limits.set_period(handle, 0, 5, 1_000, 2_000)
    limits.hold(1)
    limits.settle(10, 1, 1)
    limits.set_period(handle, 20, 4, 600, 1_600)
    assert limits.refuse(30, 1) == (FULL, 0, handle, 600)


def test_a_blocked_scope_lets_nothing_leave_until_then() -> None:
    limits = Limits()
    limits.block(3, 700)
    assert limits.refuse(699, 5) == (BLOCKED, 3, None, 700)
    assert limits.refuse(700, 5)[0] == FREE


def test_a_number_changed_live_keeps_what_was_used() -> None:
    limits = Limits()
    handle = limits.add_limit(1, 0, RECIPIENTS, 10, 1_000)
    limits.hold(8)
    limits.settle(5, 8, 8)
    assert limits.set_limit(1, 0, RECIPIENTS, 4, 1_000) == handle
    assert limits.refuse(6, 1) == (FULL, 1, handle, 1_005)
    assert limits.set_limit(1, 0, RECIPIENTS, 20, 1_000) == handle
    assert limits.refuse(6, 12)[0] == FREE
    assert limits.refuse(6, 13)[0] == FULL


def test_a_limit_added_live_counts_what_is_on_its_way() -> None:
    limits = Limits()
    limits.hold(8)
    handle = limits.add_limit(1, 0, RECIPIENTS, 10, 1_000)
    assert limits.refuse(6, 3) == (FULL, 1, handle, NEVER)
    limits.settle(7, 8, 8)
    assert limits.refuse(8, 3) == (FULL, 1, handle, 1_007)


def test_only_what_is_granted_is_used_and_half_a_portion_left_asks_for_more() -> None:
    limits = Limits()
    handle = limits.add_limit(1, 0, CALLS, 1_000, 60 * S)
    limits.ration(handle, 4)
    assert limits.refuse(0, 9) == (GRANT, 1, handle, NEVER)
    assert limits.asked() == [(handle, 4)]
    assert limits.asked() == []
    limits.grant(handle, 4)
    for left in (3, 2):
        limits.hold(9)
        assert limits.asked() == [], left
    limits.hold(9)
    assert limits.asked() == [(handle, 3)]
    assert limits.refuse(0, 1)[0] == FREE, "what is granted may be used while more is asked for"
    limits.hold(9)
    assert limits.refuse(0, 1)[0] == GRANT
    limits.settle(1, 9, 0)
    assert limits.refuse(1, 1)[0] == FREE, "what never left is granted still"


def test_a_call_of_more_than_a_portion_asks_for_what_it_needs() -> None:
    limits = Limits()
    handle = limits.add_limit(1, 0, RECIPIENTS, 30_000, 86_400 * S, calendar=True)
    limits.ration(handle, 30)
    assert limits.refuse(0, 200) == (GRANT, 1, handle, NEVER)
    assert limits.asked() == [(handle, 200)]
    limits.grant(handle, 200)
    assert limits.refuse(0, 200)[0] == FREE


def test_a_restored_use_counts_from_then() -> None:
    limits = Limits()
    handle = limits.add_limit(1, 0, CALLS, 10, 1_000)
    limits.restore(handle, -400, 6)
    limits.restore(handle, 0, 4)
    assert limits.refuse(0, 1) == (FULL, 1, handle, 600)
    assert limits.use(handle, 600)[1] == 4
