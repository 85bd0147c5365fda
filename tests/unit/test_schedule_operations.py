"""What an operator changes in a running core, and asks it: pauses, weights, limits of tenants, why something waits."""

from __future__ import annotations

from collections import Counter

import pytest

from ext.schedule import (
    ACCOUNT,
    CALLS,
    CHANNEL,
    EACH_TENANT,
    GLOBAL,
    HELD_BLOCK,
    HELD_GRANT,
    HELD_LIMIT,
    HELD_LINGER,
    HELD_PAUSE,
    HELD_SLOT,
    HELD_TIME,
    HELD_TURN,
    NEVER,
    OF_CAMPAIGN,
    OF_TENANT,
    RECIPIENTS,
    TICK_NS,
    WHOLE_TIER,
)
from tests.property.model import BASIC, SYSTEM, TEMPLATE
from tests.unit.test_schedule import MS, Channel, S

KEPT = [(CHANNEL, 0, 0), (ACCOUNT, 0, 0), (WHOLE_TIER, BASIC, 0), (OF_TENANT, 7, 0), (OF_CAMPAIGN, 7, 5)]


@pytest.mark.parametrize(("scope", "handle", "campaign"), KEPT)
@pytest.mark.parametrize("before", [True, False])
def test_what_is_paused_stays_until_it_is_resumed(scope: int, handle: int, campaign: int, *, before: bool) -> None:
    """Whatever came before the pause or after it; others go on."""
    channel = Channel(accounts=2)
    channel.core.add_channel(10, 0, 3)
    channel.core.add_account(1)
    if not before:
        channel.core.pause(scope, handle, campaign)
    channel.push(0, 2, tenant=7, campaign=5)
    if before:
        channel.core.pause(scope, handle, campaign)
    channel.push(0, 3, tenant=7, campaign=5)
    other = channel.push(0, 1, tenant=8, account=2, tier=TEMPLATE)
    (batch,) = channel.pop(0)
    assert batch.items[0][0] == other
    assert (channel.stat("paused"), channel.stat("ready"), channel.stat("queued")) == (5, 0, 5)
    assert channel.core.next_due(S) == NEVER
    channel.core.check()
    channel.core.resume(scope, handle, campaign)
    assert channel.sizes(S) == [3, 2]
    assert channel.stat("paused") == 0
    channel.core.check()


def test_a_deadline_ends_what_is_paused() -> None:
    channel = Channel()
    channel.core.pause(OF_TENANT, 0)
    channel.push(0, 2, deadline=S)
    channel.push(0, 1)
    ended = channel.core.reap(2 * S, 100)
    assert (ended.items, channel.stat("paused")) == (2, 1)
    channel.core.check()


def test_a_cancel_ends_what_is_paused_and_the_pause_stays() -> None:
    channel = Channel()
    channel.core.pause(OF_CAMPAIGN, 0, 0)
    channel.push(0, 2)
    assert channel.core.cancel(0, 0) == 2
    channel.push(0, 1)
    assert channel.sizes(0) == []
    channel.core.resume(OF_CAMPAIGN, 0, 0)
    assert channel.sizes(0) == [1]


def test_two_pauses_need_two_resumes() -> None:
    channel = Channel()
    channel.push(0, 1)
    channel.core.pause(OF_TENANT, 0)
    channel.core.pause(CHANNEL, 0)
    channel.core.pause(CHANNEL, 0)
    channel.core.resume(OF_TENANT, 0)
    assert (channel.sizes(0), channel.stat("paused")) == ([], 1)
    channel.core.resume(CHANNEL, 0)
    channel.core.resume(CHANNEL, 0)
    assert channel.sizes(0) == [1]


def test_what_is_paused_and_throttled_is_counted_once() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 1, 100 * S)
    channel.push(0, 4, campaign=1)
    channel.push(0, 3, campaign=2)
    assert channel.sizes(0) == [1]
    assert (channel.stat("throttled"), channel.stat("paused")) == (6, 0)
    channel.core.pause(OF_CAMPAIGN, 0, 2)
    assert channel.sizes(0) == []
    assert (channel.stat("throttled"), channel.stat("paused")) == (3, 3)
    channel.core.resume(OF_CAMPAIGN, 0, 2)
    assert channel.stat("throttled") == 6


def test_a_paused_name_is_forgotten_when_it_is_resumed() -> None:
    channel = Channel()
    channel.core.check()
    for tenant in range(1000):
        channel.core.pause(OF_TENANT, tenant)
        channel.core.pause(OF_CAMPAIGN, tenant, 3)
        channel.core.reweight(OF_TENANT, tenant, 2)
    channel.core.check()
    for tenant in range(1000):
        channel.core.resume(OF_TENANT, tenant)
        channel.core.resume(OF_CAMPAIGN, tenant, 3)
        channel.core.reweight(OF_TENANT, tenant, 1)
    channel.core.check()  # no group without a reason to be there


def test_one_who_was_paused_claims_no_turns() -> None:
    channel = Channel(cap=1)
    channel.push(0, 50, tenant=1)
    channel.push(0, 50, tenant=2)
    channel.core.pause(OF_TENANT, 1)
    assert len(channel.pop(0, 40)) == 20
    channel.core.resume(OF_TENANT, 1)
    tenants = [batch.key[0] for batch in channel.pop(0, 40)]
    assert tenants.count(1) == tenants.count(2) == 10


@pytest.mark.parametrize(("scope", "tenant", "campaign"), [(OF_TENANT, 0, 1), (OF_CAMPAIGN, 1, 0)])
def test_shares_follow_the_weights_from_the_next_turn_on(scope: int, tenant: int, campaign: int) -> None:
    channel = Channel(cap=2)
    heavy = (1, 1)
    channel.core.reweight(scope, 1, 3, 1 if scope == OF_CAMPAIGN else 0)
    channel.push(0, 400, tenant=heavy[0], campaign=heavy[1])
    channel.push(0, 400, tenant=tenant, campaign=campaign)
    keys = [batch.key[:2] for batch in channel.pop(0, 240)]
    assert keys.count(heavy) == 3 * keys.count((tenant, campaign))
    channel.core.reweight(scope, 1, 1, 1 if scope == OF_CAMPAIGN else 0)
    keys = [batch.key[:2] for batch in channel.pop(0, 240)]
    assert abs(keys.count(heavy) - keys.count((tenant, campaign))) <= 3


def test_tiers_share_by_their_new_weights_and_keep_what_they_had() -> None:
    channel = Channel(cap=1)
    channel.push(0, 400, BASIC)
    channel.push(0, 400, TEMPLATE)
    assert len(channel.pop(0, 100)) == 50
    channel.core.reweight(WHOLE_TIER, TEMPLATE, 4)
    tiers = [batch.tier for batch in channel.pop(0, 200)]
    assert tiers.count(TEMPLATE) == 4 * tiers.count(BASIC)


def test_system_can_be_paused_and_has_no_weight() -> None:
    channel = Channel()
    channel.core.pause(WHOLE_TIER, SYSTEM)
    channel.push(0, 1, SYSTEM)
    channel.push(0, 1, BASIC)
    assert [batch.tier for batch in channel.pop(5 * MS)] == [BASIC]
    with pytest.raises(ValueError, match=r"tier is 0: 1\.\.2 expected"):
        channel.core.reweight(WHOLE_TIER, SYSTEM, 2)


# --- limits of tenants ---


def test_a_tenants_limit_parks_the_tenant_and_no_other() -> None:
    channel = Channel(cap=2)
    channel.core.add_limit(OF_TENANT, 1, RECIPIENTS, 4, 10 * S)
    channel.push(0, 8, tenant=1)
    channel.push(0, 8, tenant=2)
    batches = channel.pop(0)
    assert sum(len(batch.items) for batch in batches if batch.key[0] == 1) == 4
    assert sum(len(batch.items) for batch in batches if batch.key[0] == 2) == 8
    assert (channel.stat("throttled"), channel.stat("ready")) == (4, 0)
    channel.answer(S, batches)
    assert channel.sizes(10 * S) == []
    assert channel.sizes(12 * S) == [2, 2]
    channel.core.check()


def test_a_tenants_limit_holds_over_accounts_and_channels_and_while_it_has_nothing() -> None:
    channel = Channel(cap=1, accounts=2)
    channel.core.add_channel(10, 0, 1)
    channel.core.add_account(1)
    limit = channel.core.add_limit(OF_TENANT, 1, CALLS, 2, 10 * S)
    for account in (0, 1, 2):
        channel.push(0, 1, tenant=1, account=account)
    batches = channel.pop(0)
    assert len(batches) == 2
    assert channel.core.cancel(1, 0) == 1
    channel.answer(0, batches)
    channel.core.reap(0, 10)
    assert channel.core.use(limit, S)[1:3] == (2, 0)
    channel.push(S, 1, tenant=1)
    assert channel.sizes(S) == []
    channel.core.set_limit(OF_TENANT, 1, CALLS, 3, 10 * S)
    assert channel.sizes(S) == [1]


def test_one_limit_that_refuses_charges_no_tenant() -> None:
    channel = Channel(cap=1)
    theirs = channel.core.add_limit(OF_TENANT, 1, CALLS, 5, 10 * S)
    channel.core.add_limit(CHANNEL, 0, CALLS, 1, 10 * S)
    channel.push(0, 3, tenant=1)
    assert channel.sizes(0) == [1]
    assert channel.core.use(theirs, 0)[2] == 1


def test_a_tenant_that_was_parked_has_no_turns_saved_up() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(OF_TENANT, 1, CALLS, 1, S)
    channel.push(0, 30, tenant=1)
    for second in range(20):
        assert channel.answer(2 * second * S, channel.pop(2 * second * S)) == 1
    channel.core.set_limit(OF_TENANT, 1, CALLS, 100, S)
    channel.push(100 * S, 10, tenant=2)
    tenants = [batch.key[0] for batch in channel.pop(100 * S, 16)]
    assert tenants.count(2) == 4


def test_every_tenant_has_a_limit_of_its_own_on_a_channel_and_none_is_kept_longer_than_it_counts() -> None:
    channel = Channel(cap=1, accounts=2)
    channel.core.add_channel(100, 0, 1)
    channel.core.add_account(1)
    limit = channel.core.add_limit(EACH_TENANT, 0, CALLS, 2, 10 * S)
    for tenant in (1, 2):
        for account in (0, 1, 2):
            channel.push(0, 2, tenant=tenant, account=account)
    batches = channel.pop(0)
    left = Counter((batch.key[0], batch.channel) for batch in batches)
    assert left == {(1, 0): 2, (2, 0): 2, (1, 1): 2, (2, 1): 2}, "two on the one channel, all on the other"
    assert channel.stat("throttled") == 4
    rows = channel.core.explain(S, 1, 0)
    assert {row[3:6] for row in rows} == {(HELD_LIMIT, EACH_TENANT, limit)}
    channel.answer(S, batches)
    assert len(channel.pop(12 * S)) == 4
    with pytest.raises(ValueError, match="before anything is pushed"):
        channel.core.add_limit(EACH_TENANT, 1, CALLS, 2, 10 * S)
    channel.core.check()


def test_tenants_that_came_and_went_are_forgotten() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(EACH_TENANT, 0, CALLS, 2, S)
    for tenant in range(20_000):
        now = tenant * S // 100
        channel.push(now, 1, tenant=tenant)
        channel.answer(now, channel.pop(now))
        if tenant == 2_000:
            memory = channel.core.stats()["memory_bytes"][0]
    assert channel.core.stats()["memory_bytes"][0] < 2 * memory
    channel.core.check()


def test_a_call_of_another_tenant_cannot_be_released() -> None:
    channel = Channel()
    channel.push(0, 1, tenant=1)
    (batch,) = channel.pop(0)
    with pytest.raises(ValueError, match="tenant 2 has no call in flight"):
        channel.core.release(0, 0, BASIC, 1, 1, 0, 2)
    channel.answer(0, [batch])
    channel.core.check()


# --- why something waits ---


def why(channel: Channel, now: int, tenant: int = 0, campaign: int = 0) -> tuple[int, ...]:
    """What explains the only account it is queued for: HELD_*, scope, limit, until."""
    ((_, _, _, held, scope, limit, until, _),) = channel.core.explain(now, tenant, campaign)
    return held, scope, -1 if limit is None else limit, until


def test_what_is_not_there_is_not_explained() -> None:
    channel = Channel()
    assert channel.core.explain(0, 0, 0) == []
    channel.push(0, 1)
    assert why(channel, 5) == (HELD_TURN, GLOBAL, -1, 5)
    channel.pop(5)
    assert channel.core.explain(5, 0, 0) == []


@pytest.mark.parametrize(("scope", "handle", "campaign"), KEPT)
def test_the_widest_pause_is_named(scope: int, handle: int, campaign: int) -> None:
    channel = Channel()
    channel.push(0, 2, tenant=7, campaign=5)
    channel.core.pause(OF_CAMPAIGN, 7, 5)
    channel.core.pause(scope, handle, campaign)
    assert why(channel, 0, 7, 5)[:2] == (HELD_PAUSE, scope)


@pytest.mark.parametrize("scope", [GLOBAL, WHOLE_TIER, CHANNEL, ACCOUNT, OF_TENANT])
def test_the_limit_that_refuses_next_is_named_and_until_when(scope: int) -> None:
    channel = Channel(cap=1)
    limit = channel.core.add_limit(scope, BASIC if scope == WHOLE_TIER else 0, CALLS, 1, 10 * S)
    channel.push(0, 3)
    assert channel.answer(0, channel.pop(0)) == 1
    assert why(channel, S) == (HELD_LIMIT, scope, limit, 10 * S)
    assert channel.pop(9 * S) == []
    assert why(channel, 9 * S) == (HELD_LIMIT, scope, limit, 10 * S)
    assert len(channel.pop(10 * S + TICK_NS)) == 1


def test_the_batch_that_parks_an_account_explains_the_others_too() -> None:
    """Another campaign's batch of three does not fit, so one of one that would fit waits behind it."""
    channel = Channel(cap=3)
    limit = channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 7, 10 * S)
    channel.push(0, 9, campaign=1)
    assert channel.answer(0, channel.pop(0)) == 2
    assert channel.sizes(S) == []
    channel.push(S, 1, campaign=2)
    assert channel.sizes(S) == []
    assert why(channel, S, campaign=2) == (HELD_LIMIT, ACCOUNT, limit, 10 * S)


def test_a_block_is_named_and_a_slot_and_a_grant() -> None:
    channel = Channel(cap=1, slots=1)
    channel.push(0, 2)
    batches = channel.pop(0)
    assert why(channel, 0)[:2] == (HELD_SLOT, CHANNEL)
    channel.answer(0, batches)
    channel.core.block(ACCOUNT, 0, 5 * S)
    assert why(channel, S) == (HELD_BLOCK, ACCOUNT, -1, 5 * S)
    assert channel.pop(S) == []
    assert why(channel, S) == (HELD_BLOCK, ACCOUNT, -1, 5 * S)
    limit = channel.core.add_limit(CHANNEL, 0, CALLS, 10, S)
    channel.core.ration(limit, 1)
    assert why(channel, 6 * S) == (HELD_GRANT, CHANNEL, limit, NEVER)


def test_time_explains_what_is_not_ready() -> None:
    channel = Channel(cap=3)
    channel.push(0, 1, linger=2 * S)
    assert why(channel, 0) == (HELD_LINGER, GLOBAL, -1, 2 * S)
    channel.push(0, 1, campaign=1, not_before=7 * TICK_NS)
    channel.push(0, 1, campaign=1, not_before=5 * TICK_NS)
    assert why(channel, 0, campaign=1) == (HELD_TIME, GLOBAL, -1, 5 * TICK_NS)
    assert channel.core.explain(3 * S, 0, 0)[0][:4] == (BASIC, 0, 1, HELD_TURN)


def test_each_tier_and_account_is_explained() -> None:
    channel = Channel(accounts=2)
    channel.push(0, 1)
    channel.push(0, 2, SYSTEM, account=1)
    channel.core.pause(ACCOUNT, 1)
    assert [row[:4] for row in channel.core.explain(0, 0, 0)] == [(BASIC, 0, 1, HELD_TURN), (SYSTEM, 1, 2, HELD_PAUSE)]


@pytest.mark.parametrize("gone", ["cancelled", "expired", "paused", "put off"])
def test_what_did_not_fit_and_is_gone_keeps_nobody_waiting(gone: str) -> None:
    channel = Channel(cap=1000, horizon_ns=900 * S)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 1000, 900 * S)
    channel.push(0, 600)
    left = channel.pop(0, 1000)
    if gone != "expired":  # else nobody knows when there will be room
        channel.answer(0, left)
    channel.push(S, 500, tenant=1, campaign=1, deadline=5 * S if gone == "expired" else NEVER)
    assert channel.sizes(S) == []
    if gone == "cancelled":
        channel.core.cancel(1, 1)
    elif gone == "paused":
        channel.core.pause(OF_TENANT, 1)
    elif gone == "put off":
        channel.core.pause(OF_CAMPAIGN, 1, 1, until_ns=3600 * S)
        taken = channel.core.put_off(S, BASIC, 1000)
        assert taken is not None
        assert taken.items == 500
    channel.core.reap(6 * S, 1000)
    channel.push(6 * S, 1, tenant=2)
    assert channel.sizes(6 * S) == [1]
    channel.core.check()


def test_of_limits_that_are_used_up_the_one_that_keeps_it_longest_is_told() -> None:
    channel = Channel(cap=10)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 1, 60 * S)
    of_tenant = channel.core.add_limit(OF_TENANT, 1, CALLS, 1, 3600 * S)
    channel.push(0, 15, tenant=1)
    channel.answer(0, channel.pop(0))
    for now in (S, 61 * S):
        assert channel.pop(now) == []
        ((*_, held, scope, limit, until, _),) = channel.core.explain(now, 1, 0)
        assert (held, scope, limit, until) == (HELD_LIMIT, OF_TENANT, of_tenant, 3600 * S)


def test_what_would_wait_for_a_day_takes_what_is_left_of_it() -> None:
    channel = Channel(cap=1000, horizon_ns=900 * S)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 1000, 24 * 3600 * S, 100)
    channel.push(0, 600)
    channel.answer(0, channel.pop(0, 1000))
    channel.push(S, 400, tenant=1)
    left = channel.pop(S)
    assert [len(batch.items) for batch in left] == [300]
    channel.answer(S, left)
    assert channel.core.explain(S, 1, 0)[0][2:] == (100, HELD_LIMIT, ACCOUNT, 0, 24 * 3600 * S + S, 0)


def test_of_what_would_expire_waiting_for_room_those_leave_that_there_is_room_for() -> None:
    channel = Channel(cap=1000, horizon_ns=900 * S)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 1000, 900 * S)
    for n in (300, 300):
        channel.push(0, n)
        channel.answer(0, channel.pop(0))
    channel.push(S, 450, tenant=1, deadline=301 * S)
    (batch,) = channel.pop(S)
    assert len(batch.items) == 400
    channel.answer(S, [batch])
    assert channel.pop(300 * S) == []
    channel.pop(302 * S)
    assert channel.core.reap(302 * S, 1000).items == 50
    channel.core.check()


def test_a_days_limit_is_used_in_large_calls_whatever_the_day_before_was_like() -> None:
    """One of small calls gets free in small portions: who asks then waits for more, if some comes in time."""
    channel = Channel(cap=500, horizon_ns=900 * S)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 14_400, 24 * 3600 * S)
    days, recipients, now = Counter[int](), Counter[int](), 0
    while now < 5 * 24 * 3600 * S:
        if now < 24 * 3600 * S:
            channel.push(now, 10)
        elif channel.stat("queued") < 1000:
            channel.push(now, 20_000)
        left = channel.pop(now)
        channel.answer(now, left)
        days[now // (24 * 3600 * S)] += len(left)
        recipients[now // (24 * 3600 * S)] += sum(len(batch.items) for batch in left)
        now += 60 * S
    assert days[0] == 1440
    assert all(recipients[day] >= 14_400 - 500 and days[day] <= 30 for day in (2, 3, 4)), (days, recipients)


def test_a_weight_that_is_set_back_leaves_no_more_of_a_turn_than_it_gives() -> None:
    channel = Channel(cap=10)
    for tenant in (1, 2):
        channel.core.reweight(OF_TENANT, tenant, weight=100)
        channel.push(0, 500, tenant=tenant)
    assert [batch.key[0] for batch in channel.pop(0, 1)] == [1]
    channel.core.reweight(OF_TENANT, 1, weight=1)
    channel.core.reweight(OF_TENANT, 2, weight=1)
    assert [batch.key[0] for batch in channel.pop(0, 60)] == [1, 2, 1, 2, 1, 2]
