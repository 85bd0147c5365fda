"""What pacing promises, by example, on a virtual clock; tests/property holds it against a model."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from ext.schedule import (
    ACCOUNT,
    ASAP,
    CALLS,
    CHANNEL,
    EVEN,
    HELD_LIMIT,
    HELD_PACING,
    NEVER,
    OF_CAMPAIGN,
    OF_TENANT,
    PACED,
    RECIPIENTS,
    TICK_NS,
    WHOLE_TIER,
)
from tests.property.model import BASIC, SYSTEM, TEMPLATE, Batch
from tests.unit.test_schedule import Channel

S = 10**9


def channel(**other: Any) -> Channel:
    return Channel(pacing=(ASAP, ASAP, PACED), **{"slots": 100, "cap": 10, **other})


def run(at: Channel, start: int, until: int, takes: int = 10**7, looks: int = 1) -> list[tuple[int, Batch]]:
    """What leaves, and when; each call is answered a little later. ``looks``: at multiples of this time only."""
    left: list[tuple[int, Batch]] = []
    now, flying = start, list[tuple[int, Batch]]()
    while now < until:
        while flying and flying[0][0] <= now:
            at.answer(now, [flying.pop(0)[1]])
        for batch in at.pop(now):
            left.append((now, batch))
            flying.append((now + takes, batch))
        due = at.core.next_due(now)
        now = min([due if due > now else now + 1, until, *(ends for ends, _ in flying)])
        now = -(-now // looks) * looks
    at.answer(now, [batch for _, batch in flying])
    at.core.check()
    return left


def test_a_burst_of_many_leaves_at_the_least_rate_and_in_time() -> None:
    at = channel()
    for tenant in range(60):
        at.push(0, 100, tenant=tenant, due=60 * S)
    left = run(at, 0, 61 * S)
    seconds = Counter(now // S for now, _ in left)
    assert len(left) == 600
    assert max(seconds.values()) <= 12, "ten a second are needed"
    assert all(now <= batch.due for now, batch in left)
    assert {batch.key[0] for now, batch in left if now < 10 * S} == set(range(60)), "all came anew"
    assert at.stat("pacing_calls") == 0


@pytest.mark.parametrize("queued", [1, 1_000_000])
@pytest.mark.parametrize("comes", [1, 37, 500])
def test_whatever_another_has_queued_a_tenants_first_send_leaves_within_ten_seconds(queued: int, comes: int) -> None:
    at = channel(cap=1000)
    at.push_all(0, queued, tenant=1, due=600 * S)
    run(at, 0, comes * S)
    first = at.push(comes * S, 1, tenant=2, due=(comes + 600) * S)
    (left,) = [now for now, batch in run(at, comes * S, (comes + 11) * S) if batch.items[0][0] == first]
    assert left <= (comes + 10) * S


@pytest.mark.parametrize("queued", [2_000, 1_000_000])
def test_at_the_ceiling_a_tenants_first_send_waits_for_a_turn_of_another_at_most(queued: int) -> None:
    at = channel(cap=10, slots=1)
    at.push_all(0, queued, tenant=1, due=S)
    run(at, 0, 5 * S, takes=S // 10)
    assert at.core.pace(BASIC, 0)[4] == 2  # type: ignore[index]
    at.push(5 * S, 1, tenant=2, due=605 * S)
    tenants = [batch.key[0] for _, batch in run(at, 5 * S, 6 * S, takes=S // 10)]
    assert tenants.index(2) <= 2, "one call is under way, and one turn is a call"


@pytest.mark.parametrize("mode", [PACED, EVEN])
@pytest.mark.parametrize("rates", [[100], [12, 8, 5]])
def test_who_looks_seldom_and_who_shares_a_rate_keeps_it(mode: int, rates: list[int]) -> None:
    """A look each 20 ms, as when the process has other work to do; and several channels, whose rates are not the
    same."""
    at = Channel(slots=10_000, cap=1, pacing=(ASAP, ASAP, mode))
    for number, rate in enumerate(rates):
        if number:
            at.core.add_channel(10_000, 0, 1)
            at.core.add_account(number)
        at.push(0, rate * 100, tenant=number, account=number, due=100 * S)
    left = run(at, 0, 101 * S, looks=S // 50)
    assert len(left) == sum(rates) * 100
    assert max(Counter(now // S for now, _ in left).values()) <= 1.12 * sum(rates)
    assert all(now <= batch.due for now, batch in left)


def test_sends_that_merge_are_one_call() -> None:
    at = channel(cap=1000)
    for _ in range(500):
        at.push(0, 1, due=600 * S)
    assert at.stat("pacing_calls") == 1
    at.push(0, 501, due=600 * S)
    assert at.stat("pacing_calls") == 2


@pytest.mark.parametrize(("people", "limit"), [(1, None), (20, None), (10_000, 100), (20, 20)])
def test_calls_are_counted_as_they_will_be_cut(people: int, limit: int | None) -> None:
    """A call ends before one who is in it already, and takes half of a limit of recipients at most."""
    at = channel(cap=1000)
    if limit:
        at.core.add_limit(ACCOUNT, 0, RECIPIENTS, limit, S)
    draw = random.Random(people)
    for _ in range(500):
        at.push(0, chr(0x4E00 + draw.randrange(people)), due=60 * S)
    counted = at.stat("pacing_calls")
    left = run(at, 0, 60 * S)
    assert counted == len(left)
    assert sum(len(batch.items) for _, batch in left) == 500
    assert max(Counter(now // S for now, _ in left).values()) <= counted / 60 * 1.05 + 2


def test_who_came_long_ago_among_many_others_is_still_known() -> None:
    at = channel(cap=1000)
    at.push(0, "a", due=60 * S)
    for other in range(20_000):
        at.push(0, 1, tenant=1 + other % 3, due=60 * S)
    counted = at.stat("pacing_calls")
    at.push(0, "b", due=60 * S)
    assert at.stat("pacing_calls") == counted, "it joins the first"
    at.push(0, "a", due=60 * S)
    assert at.stat("pacing_calls") == counted + 1


@pytest.mark.parametrize("together", [1, 2])
def test_what_wakes_later_is_counted_as_it_will_be_cut(together: int) -> None:
    at = channel(cap=1000)
    for wakes in range(60):
        for _ in range(together):
            at.push(0, "ab", not_before=S + wakes * S // 20, due=60 * S)
    run(at, 0, 5 * S)
    assert at.stat("pacing_calls") + at.stat("popped") // 2 == 60 * together


@pytest.mark.parametrize("many", [10, 60, 200])
def test_what_is_urgent_does_not_wait_behind_many_that_come_anew(many: int) -> None:
    at = channel(cap=1)
    at.push(0, 2, tenant=1, due=7200 * S)
    for tenant in range(many):
        at.push(S, 10, tenant=100 + tenant, due=3601 * S)
    run(at, S, 11 * S)
    at.push(11 * S, 1, tenant=1, campaign=5, due=16 * S)
    left = run(at, 11 * S, 60 * S)
    assert [now <= 16 * S for now, batch in left if batch.due == 16 * S] == [True]
    assert len(left) <= 60


def test_ever_new_tenants_do_not_leave_the_others_to_the_end() -> None:
    """Twenty come each second, due long after what was there: a rate of twenty and a little more would do."""
    at = channel(cap=1)
    at.push(0, 4000, tenant=1, due=200 * S)
    left = []
    for second in range(200):
        for n in range(20):
            at.push(second * S, 1, tenant=100 + 20 * second + n, due=(second + 200) * S)
        left += run(at, second * S, (second + 1) * S)
    assert max(Counter(now // S for now, _ in left).values()) <= 35
    assert all(now <= batch.due for now, batch in left)


def test_what_lingers_until_it_is_due_hurries_nobody() -> None:
    at = channel(cap=10)
    at.push_all(0, 12_000, tenant=1, due=1200 * S)
    left = []
    for tick in range(60 * 20):
        now = tick * S // 20
        at.push(now, 1, tenant=2, campaign=tick % 50, due=now + 2 * S, linger=NEVER)
        left += run(at, now, now + S // 20)
    assert all(now <= batch.due for now, batch in left)
    assert sum(batch.key[0] == 1 for _, batch in left) <= 120, "one a second would do"


def test_what_is_urgent_does_not_wait_behind_what_is_not() -> None:
    at = channel(cap=1, floor=1)
    at.push(0, 100, due=1000 * S)
    run(at, 0, S)
    urgent = at.push(S, 1, due=2 * S)
    (leaves,) = [now for now, batch in run(at, S, 3 * S) if batch.items[0][0] == urgent]
    assert leaves <= 2 * S
    again = at.push(3 * S, 1, due=4 * S, attempt=1, content=7)
    assert again in {batch.items[0][0] for _, batch in run(at, 3 * S, 4 * S)}, "nor does a retry"


def test_what_is_due_sooner_goes_past_its_own_flow_and_hurries_nobody() -> None:
    at = channel()
    at.push(0, 10_000, due=600 * S)
    sooner = [at.push(n * S, 10, due=due * S) for n, due in enumerate((300, 200, 400, 250))]
    left = run(at, 4 * S, 601 * S)
    assert all(now <= batch.due for now, batch in left)
    assert len(left) == 1004
    order = [batch.items[0][0] for _, batch in left if batch.items[0][0] in sooner]
    assert order == [sooner[at] for at in (1, 3, 0, 2)]
    assert max(Counter(now // S for now, _ in left).values()) <= 4, "1.7 a second are needed"


def test_system_leaves_at_once_beside_what_is_held_back() -> None:
    at = channel(cap=1)
    at.push(0, 100, due=1000 * S)
    run(at, 0, S)
    assert at.stat("paced") > 90
    at.push(S, 1, tier=SYSTEM)
    assert [batch.tier for batch in at.pop(S)][:1] == [SYSTEM]


def test_what_is_held_back_is_explained_and_the_forecast_comes_true() -> None:
    """Sixty calls due in a minute, and one that is due later: it goes when they have gone."""
    at = channel(cap=1)
    at.push(0, 60, due=60 * S)
    last = at.push(0, 1, campaign=1, due=100 * S)
    run(at, 0, 5 * S)
    work = at.core.pace(BASIC, 0)
    ((tier, account, ready, held, scope, limit, until, rate),) = at.core.explain(5 * S, 0, 1)
    assert (tier, account, ready, held, scope, limit) == (BASIC, 0, 1, HELD_PACING, CHANNEL, None)
    assert work is not None
    assert rate == work[2]
    assert until <= 100 * S
    (left,) = [now for now, batch in run(at, 5 * S, 100 * S) if batch.items[0][0] == last]
    assert abs(left - until) < 6 * S
    assert at.core.explain(100 * S, 0, 1) == []


def test_the_tiers_rate_is_named_where_it_holds_longer() -> None:
    at = channel(cap=1)
    at.core.add_channel(100, 0, 1)
    at.core.add_account(1)
    at.push(0, 300, due=60 * S)
    at.push(0, 1, tenant=1, account=1, due=59 * S)
    at.push(0, 1, tenant=1, account=1, due=100 * S)
    run(at, 0, 30 * S)
    ((*_, held, scope, _, until, _),) = at.core.explain(30 * S, 1, 0)
    assert (held, scope) == (HELD_PACING, WHOLE_TIER)
    assert 55 * S < until < 65 * S


def test_a_limit_that_lasts_longer_than_pacing_is_what_holds() -> None:
    at = channel(cap=1)
    limit = at.core.add_limit(ACCOUNT, 0, CALLS, 2, 1000 * S)
    at.push(0, 10, due=60 * S)
    assert len(run(at, 0, 2 * S)) == 2
    ((*_, held, scope, of, until, rate),) = at.core.explain(2 * S, 0, 0)
    assert (held, scope, of, rate) == (HELD_LIMIT, ACCOUNT, limit, 0)
    assert 1000 * S <= until <= 1002 * S


def near(**other: Any) -> Channel:
    """A template tier that paces only what is due later than 5 s after its start."""
    return Channel(
        pacing=(ASAP, PACED, PACED),
        near_ns=(0, 5 * S, 0),
        **{"slots": 100, "cap": 1, "floor": 1, "own_queues": 4, **other},
    )


@pytest.mark.parametrize("contents", [1, 30])
def test_what_is_due_as_usual_leaves_at_once_and_hurries_nobody_who_has_time(contents: int) -> None:
    """Of one campaign, with queues of their own or in one: a hundred due in 1000 s, and ten a second besides."""
    at = near()
    for send in range(100):
        at.push(0, 1, tier=TEMPLATE, content=send % contents, due=1000 * S)
    late = set()
    for tenth in range(200):
        now = tenth * S // 10
        sent = at.push(now, 1, tier=TEMPLATE, content=tenth % contents, due=now + 5 * S)
        left = run(at, now, now + S // 10)
        if sent not in {batch.items[0][0] for when, batch in left if when == now}:
            late.add(sent)
    assert not late
    assert at.stat("popped", TEMPLATE) - 200 <= 8, "of the others one has come anew, and one leaves every ten seconds"
    assert at.stat("paced", TEMPLATE) >= 92


def test_what_is_due_as_usual_shares_fairly_when_it_cannot_leave() -> None:
    at = near(slots=1)
    for campaign in range(50):
        at.push(0, 20, tier=TEMPLATE, tenant=1, campaign=campaign, due=5 * S)
    run(at, 0, 3 * S, takes=S // 20)
    at.push(3 * S, 40, tier=TEMPLATE, tenant=2, due=8 * S)
    tenants = Counter(batch.key[0] for _, batch in run(at, 3 * S, 5 * S, takes=S // 20))
    assert abs(tenants[1] - tenants[2]) <= 4


def test_a_held_account_does_not_open_the_gates_for_those_that_have_time() -> None:
    at = near(accounts=2)
    at.core.block(ACCOUNT, 0, 10_000 * S)
    at.push(0, 5, tier=TEMPLATE, account=0, due=5 * S)
    at.push(0, 100, tier=TEMPLATE, account=1, due=1000 * S)
    left = run(at, 0, 100 * S)
    assert len(left) < 20


@pytest.mark.parametrize("slots", [4096, 4097, 4128, 4159, 4160, 10_000])
def test_a_tier_that_was_not_looked_at_for_long_knows_where_its_lanes_stand(slots: int) -> None:
    """What leaves at once asks its lane only; the slots of its tier end 2^12 slots after that at its last look."""
    at = near()
    now = slots << 28
    for _ in range(2):
        for content in range(3):
            at.push(now, 1, tier=TEMPLATE, content=content, due=now + S)
        assert at.answer(now, at.pop(now)) == 3
        at.core.check()


@pytest.mark.parametrize("how", ["block", "pause"])
def test_what_was_held_for_a_moment_leaves_then_though_its_lane_waits_for_others(how: str) -> None:
    at = near(accounts=2)
    at.push(0, 200, tier=TEMPLATE, account=1, due=100_000 * S)
    run(at, 0, S)
    if how == "block":
        at.core.block(ACCOUNT, 0, S + S // 20)
    else:
        at.core.pause(ACCOUNT, 0)
    urgent = at.push(S, 1, tier=TEMPLATE, account=0, due=6 * S)
    left = run(at, S, S + S // 20)
    if how == "pause":
        at.core.resume(ACCOUNT, 0)
    left += run(at, S + S // 20, 2 * S)
    (when,) = [now for now, batch in left if batch.items[0][0] == urgent]
    assert when <= S + S // 20 + TICK_NS


def mass(at: Channel, now: int) -> None:
    """3,600 calls of twenty campaigns, which have an hour: one a second."""
    for campaign in range(20):
        at.push(now, 180, tenant=1, campaign=campaign, account=1, due=now + 3600 * S)


def of_mass(left: list[tuple[int, Batch]]) -> int:
    return sum(batch.key[0] == 1 for _, batch in left)


def test_a_stream_of_what_is_due_when_it_comes_opens_no_gates() -> None:
    at = channel(cap=1, accounts=2)
    mass(at, 0)
    left, late = list[tuple[int, Batch]](), 0
    for number in range(400):
        now = number * S // 20
        at.push(now, 1, tenant=2, due=now)
        left += run(at, now, now + S // 20)
    late = max(now - batch.due for now, batch in left if batch.key[0] == 2)
    assert of_mass(left) <= 30
    assert late <= S // 4


@pytest.mark.parametrize("after", [0, 5, 25])
@pytest.mark.parametrize("how", ["campaign", "account", "rest"])
def test_late_work_that_is_held_hurries_nobody(how: str, after: int) -> None:
    """Held before it is late, when there is too much of it, or when it is late."""
    at = channel(cap=1, slots=20, accounts=2)
    at.push_all(0, 40_000, tenant=7, campaign=7, due=20 * S)
    run(at, 0, after * S, takes=S // 50)
    if how == "campaign":
        at.core.pause(OF_CAMPAIGN, 7, 7)
    elif how == "account":
        at.core.pause(ACCOUNT, 0)
    else:
        at.core.block(ACCOUNT, 0, 3600 * S)
    run(at, after * S, 60 * S)
    mass(at, 60 * S)
    at.push(60 * S, 1, tenant=2, account=1, due=61 * S)
    assert of_mass(run(at, 60 * S, 160 * S)) <= 250, "a hundred, or twice as many after such a peak"


def test_a_tenant_that_is_late_by_a_limit_of_its_own_hurries_nobody() -> None:
    at = channel(cap=1, accounts=2)
    at.core.add_limit(OF_TENANT, 7, CALLS, 1, S)
    for campaign in range(50):
        at.push(0, 20, tenant=7, campaign=campaign, account=1, due=S)
    run(at, 0, 10 * S)
    mass(at, 10 * S)
    left = run(at, 10 * S, 70 * S)
    assert of_mass(left) <= 125
    assert 55 <= len(left) - of_mass(left) <= 65


def test_near_the_ceiling_of_a_window_it_is_used_evenly() -> None:
    """A limit a minute, four fifths of which are needed: who comes later and has little time is in time."""
    at = channel(cap=1)
    at.core.add_limit(CHANNEL, 0, CALLS, 600, 60 * S)
    at.push(0, 4000, tenant=1, due=600 * S)
    left = list[tuple[int, Batch]]()
    for minute in range(5):
        left += run(at, minute * 60 * S, (minute * 60 + 5) * S)
        at.push((minute * 60 + 5) * S, 20, tenant=2, due=(minute * 60 + 15) * S)
        left += run(at, (minute * 60 + 5) * S, (minute + 1) * 60 * S)
    assert max(Counter(now // S for now, _ in left).values()) <= 12
    assert all(now <= batch.due for now, batch in left)


def test_a_burst_just_below_the_ceiling_is_in_time() -> None:
    at = channel(cap=1, slots=20)
    at.push(0, 20_000, tenant=1, due=600 * S)
    run(at, 0, 10 * S, takes=S // 7)
    at.push(10 * S, 1000, tenant=2, due=18 * S)
    left = run(at, 10 * S, 20 * S, takes=S // 7)
    assert sum(batch.key[0] == 2 for _, batch in left) == 1000
    assert all(now <= batch.due for now, batch in left if batch.key[0] == 2)


def test_channels_that_are_late_share_a_limit_of_their_tier() -> None:
    at = channel(cap=1)
    at.core.add_channel(100, 0, 1)
    at.core.add_account(1)
    at.core.add_limit(WHOLE_TIER, BASIC, CALLS, 10, S)
    at.push(0, 1000, tenant=1, due=S)
    at.push(S, 1000, tenant=2, account=1, due=2 * S)
    channels = Counter(batch.channel for now, batch in run(at, S, 60 * S))
    assert abs(channels[0] - channels[1]) <= 30


def test_what_is_cancelled_hurries_nobody() -> None:
    at = channel()
    for content in range(50):
        at.push(0, 10, tenant=1, campaign=1, content=content, due=20 * S)
    at.push(0, 10, due=20 * S)
    assert at.stat("pacing_calls") == 51
    at.core.cancel(1, 1)
    assert at.stat("pacing_calls") == 1


def test_an_account_that_may_not_send_does_not_make_the_others_hurry() -> None:
    at = channel(cap=1, accounts=2, floor=1)
    at.core.block(ACCOUNT, 0, 10_000 * S)
    at.push(0, 1000, account=0, due=10 * S)
    run(at, 0, 20 * S)
    at.push(20 * S, 100, account=1, due=1000 * S)
    left = run(at, 20 * S, 500 * S)
    assert 30 < len(left) < 80, "in its own time, though the others are late"


def test_when_too_much_is_late_tenants_share() -> None:
    at = channel(cap=1, slots=1)
    at.push(0, 1000, tenant=1, due=S)
    run(at, 0, 4 * S, takes=S // 10)
    assert at.core.pace(BASIC, 0) is not None
    assert at.core.pace(BASIC, 0)[4] == 2  # type: ignore[index]
    at.push(4 * S, 100, tenant=2, due=100 * S)
    tenants = Counter(batch.key[0] for _, batch in run(at, 4 * S, 10 * S, takes=S // 10))
    assert abs(tenants[1] - tenants[2]) <= 10


def test_when_too_much_is_late_a_campaign_goes_on_by_due_times() -> None:
    at = channel(cap=1, slots=1)
    late = [at.push(0, 50, due=S, content=content) for content in (1, 2)]
    has_time = at.push(0, 100, due=500 * S, content=3)
    left = [batch.items[0][0] for _, batch in run(at, 0, 30 * S, takes=S // 10)]
    assert at.core.pace(BASIC, 0)[4] != 2  # type: ignore[index]
    assert set(left[:100]) == set(late)
    assert set(left[100:]) == {has_time}


def test_a_tier_that_is_not_paced_has_no_rates() -> None:
    at = Channel()
    at.push(0, 5, due=NEVER)
    assert at.core.pace(BASIC, 0) is None
    assert (at.stat("pacing_rate"), at.stat("pacing_need"), at.stat("pacing_calls"), at.stat("paced")) == (0, 0, 0, 0)
