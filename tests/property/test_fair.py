"""Fair shares, judged by what left alone: no model, and every interval in which both had something to send.

Shreedhar & Varghese (1996): with deficit round robin two such flows differ by less than a quantum and two of the
largest batches, each by its weight. The quantum of weight 1 is a batch of the cap, so the bound is three times the cap.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from ext.schedule import ACCOUNT, ASAP, OF_CAMPAIGN, OF_TENANT, PACED, RECIPIENTS, WHOLE_TIER
from tests.property.model import BASIC, TEMPLATE, Batch
from tests.unit.test_schedule import Channel

S = 10**9
OVER = 2
LEAST = 16  # a batch counts as a sixteenth of the cap at least
Flow = tuple[int, ...]  # a tenant, or its campaign

CAMPAIGNS = st.tuples(st.integers(0, 2), st.integers(0, 1))
# (tenant, campaign), how many sends of a content each, recipients of each
SLOTS = st.sampled_from([1, 2, 7, 10**6])
PUSHES = st.tuples(CAMPAIGNS, st.integers(1, 30), st.integers(1, 60))


class Judge:
    """How far apart each pair of flows is, over the intervals in which both have something to send."""

    def __init__(self, weights: dict[Flow, int]) -> None:
        self.weights = weights
        self.waiting: Counter[Flow] = Counter()
        self.apart: defaultdict[tuple[Flow, Flow], list[Fraction]] = defaultdict(lambda: [Fraction(0)])

    def pushed(self, of: tuple[int, int], recipients: int) -> None:
        self.waiting.update({of: recipients, of[:1]: recipients})

    def left(self, batch: Batch, cap: int, by_shares: bool) -> None:
        n = len(batch.items)
        cost = Fraction(max(n, -(-cap // LEAST)))
        for flow in (batch.key[:1], batch.key[:2]):
            share = cost / self.weights[flow]
            for other in self.waiting:
                if other != flow and len(other) == len(flow) and other[:-1] == flow[:-1]:
                    first, second = sorted((flow, other))
                    line = self.apart[first, second]
                    line.append(line[-1] + (share if first == flow else -share))
                    assert max(line) - min(line) <= 3 * cap or not by_shares
            self.waiting[flow] -= n
            if not self.waiting[flow]:
                del self.waiting[flow]
            for pair in [pair for pair in self.apart if not by_shares or (not self.waiting[flow] and flow in pair)]:
                del self.apart[pair]


@settings(max_examples=200)
@given(
    paced=st.booleans(),
    slots=SLOTS,
    limited=st.booleans(),
    cap=st.sampled_from([1, 3, 16, 40]),
    weights=st.lists(st.integers(1, 5), min_size=9, max_size=9),
    first=st.lists(PUSHES, min_size=2, max_size=8),
    steps=st.lists(st.one_of(PUSHES, st.integers(1, 400)), max_size=40),
)
def test_two_that_have_something_to_send_differ_by_a_quantum_and_two_batches_at_most(
    paced: bool,
    slots: int,
    limited: bool,
    cap: int,
    weights: list[int],
    first: list[tuple[tuple[int, int], int, int]],
    steps: list[tuple[tuple[int, int], int, int] | int],
) -> None:
    """Of tenants, and of one tenant's campaigns; where nothing is paced, and at the ceiling of a lane that is; with
    slots for all calls, or with few; and under a limit."""
    at = Channel(slots=slots, cap=cap, pacing=(ASAP, ASAP, PACED if paced else ASAP))
    parts: list[Flow] = [(tenant, *campaign) for tenant in range(3) for campaign in ((), (0,), (1,))]
    judge = Judge(dict(zip(parts, weights, strict=True)))
    for flow, weight in judge.weights.items():
        at.core.reweight(OF_CAMPAIGN if len(flow) > 1 else OF_TENANT, flow[0], weight, *flow[1:])
    if limited:
        at.core.add_limit(ACCOUNT, 0, RECIPIENTS, 3 * cap, S)
    now = contents = 0
    for step in [*first, *([1] * 4 if paced else []), *steps]:
        if isinstance(step, int):
            now += S if now < 4 * S else S // 7  # what has been late for two seconds is shared fairly
            batches = at.pop(now, step)
            pace = at.core.pace(BASIC, 0)
            for batch in batches:
                judge.left(batch, cap, pace is None or pace[4] == OVER)
            at.answer(now, batches)
            continue
        (tenant, campaign), sends, recipients = step
        for _ in range(sends):
            contents += 1
            at.push(now, recipients, tenant=tenant, campaign=campaign, content=contents, due=0)
            judge.pushed((tenant, campaign), recipients)


@settings(max_examples=100)
@given(
    slots=SLOTS,
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    steps=st.lists(st.tuples(st.sampled_from([0, TEMPLATE, BASIC]), st.integers(1, 40)), max_size=40),
)
def test_template_and_basic_differ_by_one_call_each_at_most(
    slots: int, weights: tuple[int, int], steps: list[tuple[int, int]]
) -> None:
    """By weight, in calls; and the one that was away may have one more. Tier 0 stands for a pop."""
    at = Channel(slots=slots, cap=1)
    of = dict(zip((TEMPLATE, BASIC), weights, strict=True))
    for tier, weight in of.items():
        at.core.reweight(WHOLE_TIER, tier, weight)
    waiting: Counter[int] = Counter()
    line = [Fraction(0)]
    for tier, n in steps:
        if tier:
            at.push(0, n, tier=tier)
            waiting[tier] += n
            continue
        batches = at.pop(0, 2 * n)
        for batch in batches:
            line.append(line[-1] + Fraction(1 if batch.tier == BASIC else -1, of[batch.tier]))
            if all(waiting[tier] for tier in of):
                assert max(line) - min(line) <= sum(Fraction(1, weight) for weight in weights) + Fraction(1, 1000)
            waiting[batch.tier] -= 1
            if not all(waiting[tier] for tier in of):
                line = [Fraction(0)]
        at.answer(0, batches)


def test_what_two_campaigns_get_in_calls_is_within_a_sixteenth_of_the_cap() -> None:
    """One that sends to single recipients beside one whose calls are full: its calls are no more than sixteen times the
    other's."""
    at = Channel(slots=10**6, cap=160)
    for content in range(2000):
        at.push(0, 1, campaign=0, content=content)
    at.push(0, 160 * 100, campaign=1)
    calls = Counter(batch.key[1] for batch in at.pop(0, 160 * 100))
    assert calls[1] >= 60
    assert 14 * calls[1] <= calls[0] <= 18 * calls[1]


def test_the_state_over_is_reached() -> None:
    """What the property says of a ceiling would say nothing otherwise."""
    at = Channel(slots=10**6, cap=1, pacing=(ASAP, ASAP, PACED))
    at.push(0, 1000, due=0)
    for second in range(1, 5):
        at.pop(second * S, 1)
    pace = at.core.pace(BASIC, 0)
    assert pace is not None
    assert pace[4] == OVER
