"""What an operator changes in a running core: pauses and weights."""

from __future__ import annotations

import pytest

from ext.schedule import ACCOUNT, CHANNEL, NEVER, OF_CAMPAIGN, OF_TENANT, RECIPIENTS, WHOLE_TIER
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
    paused = channel.stat("paused")
    assert (channel.stat("throttled"), paused) == (6 - paused, 3)
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
