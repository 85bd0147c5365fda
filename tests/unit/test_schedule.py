"""The core, one named behaviour at a time; test_schedule in tests/property compares whole histories with a model."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ext.histogram
import ext.queues
import ext.schedule
from ext.schedule import (
    ACCOUNT,
    ASAP,
    CALLS,
    CANCELLED,
    CHANNEL,
    CLOSED_CAP,
    CLOSED_CUT,
    CLOSED_DUE,
    CLOSED_LINGER,
    EXPIRED,
    GLOBAL,
    NEVER,
    PACED,
    RECIPIENTS,
    TICK_NS,
    WHOLE_TIER,
    Core,
)
from tests.property.columns import columns, rows
from tests.property.model import BASIC, SYSTEM, TEMPLATE, Batch, Run

MS = 1_000_000
S = 1000 * MS


@pytest.mark.parametrize("module", [ext.schedule, ext.queues, ext.histogram])
def test_the_compiled_module_is_what_runs(module: ModuleType) -> None:
    assert module.__file__ is not None
    assert module.__file__.endswith(tuple(EXTENSION_SUFFIXES))


class Channel:
    """A core with one channel and some accounts, and short ways to push to it and pop from it."""

    def __init__(self, slots: int = 1000, reserved: int = 0, cap: int = 3, accounts: int = 1, **options: Any) -> None:
        self.core = Core(**options)
        self.core.add_channel(slots, reserved, cap)
        for _ in range(accounts):
            self.core.add_account(0)
        self.sends = 0

    def push(self, now: int, to: int | str, tier: int = BASIC, **other: Any) -> int:
        """Push one send to so many people, or to the ones named by a letter each; returns its handle."""
        self.sends += 1
        names = [b"%d.%d" % (self.sends, i) for i in range(to)] if isinstance(to, int) else [c.encode() for c in to]
        key = (other.pop("tenant", 0), other.pop("campaign", 0), other.pop("content", 0))
        plain = {"account": 0, "attempt": 0, "not_before": 0, "due": NEVER, "deadline": NEVER, "linger": 0}
        run = Run(self.sends, tier, key=key, pushed=now, to=list(enumerate(names)), **plain | other)
        self.core.push_many(now, *columns([run]))
        return self.sends

    def push_all(self, now: int, recipients: int, **other: Any) -> None:
        """In as many sends as need be."""
        for start in range(0, recipients, 50_000):
            self.push(now, min(50_000, recipients - start), **other)

    def pop(self, now: int, budget: int = 256) -> list[Batch]:
        return rows(self.core.pop_batches(now, budget))

    def answer(self, now: int, batches: list[Batch]) -> int:
        """All of them have arrived; how many."""
        for batch in batches:
            self.core.release(now, batch.account, batch.tier, len(batch.items), len(batch.items), 0, batch.key[0])
        return len(batches)

    def sizes(self, now: int, budget: int = 256) -> list[int]:
        return [len(batch.items) for batch in self.pop(now, budget)]

    def stat(self, name: str, tier: int = BASIC) -> int:
        return self.core.stats()[name][tier]


# --- merging ---


def test_sends_of_one_flow_merge_up_to_the_cap_and_larger_ones_split() -> None:
    channel = Channel(cap=3)
    first, second = channel.push(5, 2), channel.push(5, 5)
    batches = channel.pop(5)
    assert [[item[:2] for item in batch.items] for batch in batches] == [
        [(first, 0), (first, 1), (second, 0)],
        [(second, 1), (second, 2), (second, 3)],
        [(second, 4)],
    ]
    assert [batch.closed for batch in batches] == [CLOSED_CAP, CLOSED_CAP, CLOSED_LINGER]


@pytest.mark.parametrize("other", [{"tenant": 1}, {"campaign": 1}, {"content": 1}, {"account": 1}, {"tier": TEMPLATE}])
def test_what_differs_in_a_key_does_not_merge(other: dict[str, int]) -> None:
    channel = Channel(cap=10, accounts=2)
    channel.push(0, 1)
    channel.push(0, 1, **other)
    assert channel.sizes(0) == [1, 1]


def test_a_batch_waits_its_linger_and_no_longer() -> None:
    channel = Channel(cap=3)
    channel.push(0, 1, linger=100 * MS)
    channel.push(50 * MS, 1, linger=100 * MS)
    assert channel.pop(99 * MS) == []
    assert channel.stat("linger") == 2
    (batch,) = channel.pop(101 * MS)
    assert (len(batch.items), batch.closed) == (2, CLOSED_LINGER)


@pytest.mark.parametrize("waits", [{"linger": S}, {"not_before": S}, {"deadline": S, "not_before": NEVER}])
def test_many_whose_time_comes_at_once_come_in_portions_and_urgent_ones_first(waits: dict[str, int]) -> None:
    channel = Channel(slots=10_000)
    for tenant in range(5_000):
        channel.push(0, 1, tenant=tenant, **waits)
    now = S + TICK_NS
    urgent = channel.push(now, 1, SYSTEM)
    left, ended, turns = list[Batch](), 0, 0
    while channel.core.next_due(now) == now:
        popped = channel.core.pop_batches(now, 10_000)
        left += rows(popped)
        ended += channel.core.reap(now, 10_000).items
        assert popped.count <= 1 + 3 * 1024, "as many calls, each a thousand"
        turns += 1
    assert left[0].items[0][0] == urgent
    assert (len(left), ended) in ((5_001, 0), (1, 5_000))
    assert turns >= 2
    channel.core.check()


def test_a_full_batch_does_not_linger_and_the_rest_does() -> None:
    channel = Channel(cap=3)
    channel.push(0, 7, linger=S)
    assert channel.sizes(0) == [3, 3]
    assert channel.core.next_due(0) <= S + TICK_NS
    assert channel.sizes(S + TICK_NS) == [1]


@pytest.mark.parametrize("time", ["due", "deadline"])
def test_lingering_ends_at_the_due_time_and_ahead_of_the_deadline(time: str) -> None:
    channel = Channel(deadline_lead_ns=100 * MS)
    channel.push(0, 1, linger=S, **{time: 200 * MS + (100 * MS if time == "deadline" else 0)})
    assert channel.pop(199 * MS) == []
    (batch,) = channel.pop(201 * MS)
    assert batch.closed == CLOSED_DUE


def test_a_recipient_is_at_most_once_in_a_batch() -> None:
    channel = Channel(cap=10)
    channel.push(0, "ab")
    channel.push(0, "cbd")
    batches = channel.pop(0)
    assert [b"".join(item[4] for item in batch.items) for batch in batches] == [b"abc", b"bd"]
    assert [batch.closed for batch in batches] == [CLOSED_CUT, CLOSED_LINGER]


def test_ids_of_every_length_come_out_as_they_went_in() -> None:
    channel = Channel(cap=1000)
    names = [bytes([n]) * length for length in (1, 7, 8, 9, 16, 17, 128, 255) for n in (0, 255)]
    run = Run(1, BASIC, 0, (0, 0, 0), 0, 0, NEVER, NEVER, 0, 0, list(enumerate(names)))
    channel.core.push_many(0, *columns([run]))
    (batch,) = channel.pop(0)
    assert [item[4] for item in batch.items] == names


# --- order ---


def test_system_goes_first_and_in_order_of_entry() -> None:
    channel = Channel(cap=1)
    for tier in (BASIC, SYSTEM, TEMPLATE, SYSTEM):
        channel.push(0, 1, tier)
    assert [batch.tier for batch in channel.pop(0)] == [SYSTEM, SYSTEM, TEMPLATE, BASIC]


def test_template_and_basic_share_by_weight() -> None:
    channel = Channel(cap=1, template_weight=3, basic_weight=1)
    channel.push(0, 400, BASIC)
    channel.push(0, 400, TEMPLATE)
    tiers = [batch.tier for batch in channel.pop(0, 800)]
    assert tiers.count(TEMPLATE) == 300
    assert tiers[:8].count(BASIC) == 2


def test_a_tier_that_was_away_does_not_claim_the_past() -> None:
    channel = Channel(cap=1)
    channel.push(0, 300, BASIC)
    channel.sizes(0, 200)
    channel.push(0, 300, TEMPLATE)
    tiers = [batch.tier for batch in channel.pop(0, 40)]
    assert (tiers.count(TEMPLATE), tiers.count(BASIC)) == (11, 9), "one call instead of the other's"


def test_a_tier_that_comes_while_the_other_has_nothing_does_not_claim_the_past() -> None:
    channel = Channel(cap=1)
    channel.push(0, 100, BASIC)
    assert len(channel.sizes(0)) == 100
    channel.push(0, 300, TEMPLATE)
    channel.push(0, 300, BASIC)
    tiers = [batch.tier for batch in channel.pop(0, 40)]
    assert (tiers.count(TEMPLATE), tiers.count(BASIC)) == (11, 9)


@pytest.mark.parametrize("slots", [1, 3])
def test_template_and_basic_share_what_slots_there_are(slots: int) -> None:
    """No slot is free most of the time, for neither of them."""
    channel = Channel(cap=1, slots=slots, template_weight=3)
    channel.push(0, 400, BASIC)
    channel.push(0, 400, TEMPLATE)
    tiers: list[int] = []
    flying: list[Batch] = []
    for now in range(200):
        flying += channel.pop(now)
        tiers.append(flying[0].tier)
        channel.answer(now, [flying.pop(0)])
    assert 148 <= tiers.count(TEMPLATE) <= 152


@pytest.mark.parametrize("busy", [TEMPLATE, BASIC])
@pytest.mark.parametrize("where", ["another channel", "another account"])
def test_a_tier_that_is_busy_elsewhere_gets_its_share_here(busy: int, where: str) -> None:
    """One slot, or three calls a second, for both; beside it one of them has all it wants."""
    channel = Channel(cap=1, slots=1 if where == "another channel" else 8)
    if where == "another channel":
        channel.core.add_channel(50, 0, 1)
        channel.core.add_account(1)
    else:
        channel.core.add_account(0)
        channel.core.add_limit(ACCOUNT, 0, CALLS, 3, S)
    for tier in (TEMPLATE, BASIC):
        channel.push(0, 1000, tier, tenant=tier)
    here: list[int] = []
    for tenth in range(600):
        channel.push(tenth * S // 10, 2, busy, tenant=7, account=1)
        batches = channel.pop(tenth * S // 10)
        here += [batch.tier for batch in batches if batch.account == 0]
        channel.answer(tenth * S // 10, batches)
    assert len(here) >= 150
    assert abs(here.count(TEMPLATE) - here.count(BASIC)) <= 2


def test_tenants_take_turns_whatever_they_have_queued() -> None:
    channel = Channel(cap=2)
    channel.push(0, 100, tenant=0)
    channel.push(0, 4, tenant=1)
    assert [batch.key[0] for batch in channel.pop(0, 15)] == [0, 1, 0, 1, 0]


def test_a_flow_that_comes_back_has_no_turns_saved_up() -> None:
    channel = Channel(cap=3)
    channel.push(0, "abb", tenant=0, linger=S)
    assert channel.sizes(0) == [2]  # cut; what is left lingers
    channel.push(0, 8, tenant=0, linger=S)
    channel.push(0, 9, tenant=1, linger=S)
    assert [batch.key[0] for batch in channel.pop(0)] == [0, 1, 0, 1, 0, 1]


def test_accounts_take_turns() -> None:
    channel = Channel(cap=2, accounts=3)
    for account in (0, 0, 1, 2):
        channel.push(0, 4, account=account)
    assert [batch.account for batch in channel.pop(0, 18)] == [0, 1, 2, 0, 1, 2]


def test_channels_take_turns() -> None:
    channel = Channel(cap=2)
    channel.core.add_channel(1000, 0, 2)
    other = channel.core.add_account(1)
    for account in (0, 0, other):
        channel.push(0, 4, account=account)
    assert [batch.channel for batch in channel.pop(0, 18)] == [0, 1, 0, 1, 0, 0]


def test_the_budget_ends_a_call_and_says_so() -> None:
    channel = Channel(cap=3)
    channel.push(0, 30)
    popped = channel.core.pop_batches(0, 5)
    assert (popped.count, popped.items, popped.more) == (2, 6, True)
    popped = channel.core.pop_batches(0, 1000)
    assert (popped.items, popped.more) == (24, False)


# --- time ---


def test_nothing_leaves_before_its_time() -> None:
    channel = Channel()
    channel.push(0, 2, not_before=10 * S)
    channel.push(0, 1, not_before=20 * S, attempt=1)
    assert (channel.stat("scheduled"), channel.stat("retry"), channel.stat("waiting")) == (2, 1, 3)
    assert channel.pop(10 * S - 1) == []
    assert channel.sizes(10 * S + TICK_NS) == [2]
    assert channel.sizes(20 * S + TICK_NS) == [1]


@pytest.mark.parametrize("not_before", [0, 9 * S, 11 * S])
def test_nothing_leaves_at_or_after_its_deadline(not_before: int) -> None:
    channel = Channel(cap=10)
    send = channel.push(0, 2, not_before=not_before, deadline=10 * S, linger=NEVER)
    channel.core.block(GLOBAL, 0, 10 * S)
    assert channel.pop(10 * S - 1) == []
    assert channel.pop(10 * S) == []
    channel.core.next_due(10 * S + TICK_NS)
    ended = channel.core.reap(10 * S + TICK_NS, 100)
    assert list(ended.send) == [send, send]
    assert list(ended.cause) == [EXPIRED, EXPIRED]
    assert list(ended.position) == [0, 1]
    assert channel.stat("expired") == 2


def test_the_deadline_holds_inside_a_tick_too() -> None:
    channel = Channel(cap=3, deadline_lead_ns=0)
    channel.push(0, 1, deadline=5)
    channel.push(0, 1, deadline=6)
    (batch,) = channel.pop(5)
    assert [item[0] for item in batch.items] == [2]
    channel.push(5, 1, deadline=7)
    assert channel.pop(7) == []
    assert channel.core.reap(7, 9).items == 2


def test_what_is_too_late_at_push_ends_at_once() -> None:
    channel = Channel()
    channel.push(S, 3, deadline=S)
    assert channel.stat("flows") == 0
    assert channel.core.next_due(S) == S
    assert channel.core.reap(S, 100).items == 3


def test_a_partly_sent_run_expires_for_the_rest_only() -> None:
    channel = Channel(cap=3, slots=1)
    channel.push(0, 5, deadline=S)
    assert channel.sizes(0) == [3]
    assert list(channel.core.reap(2 * S, 100).position) == [3, 4]
    assert (channel.stat("popped"), channel.stat("expired")) == (3, 2)


def test_time_never_goes_back() -> None:
    channel = Channel()
    channel.push(S, 1, deadline=2 * S)
    assert channel.core.reap(3 * S, 10).items == 1
    channel.push(0, 1, deadline=2 * S)
    assert channel.core.reap(0, 10).items == 1


def test_timers_fire_over_every_level_of_the_wheel() -> None:
    channel = Channel(cap=1)
    times = sorted({(64**level * digit + level) * TICK_NS for level in range(7) for digit in (1, 2, 63)})
    for time in reversed(times):
        channel.push(0, 1, not_before=time)
    seen = []
    now = channel.core.next_due(0)
    while now != NEVER:
        seen += [now] * len(channel.pop(now))
        now = channel.core.next_due(now)
    assert seen == times


def test_next_due_is_never_when_nothing_will_happen_by_itself() -> None:
    channel = Channel(cap=3, slots=1)
    assert channel.core.next_due(7) == NEVER
    channel.push(7, 1, linger=NEVER)
    channel.push(7, 1, content=1, not_before=NEVER)
    assert channel.core.next_due(7) == NEVER
    channel.push(7, 9, content=2)
    assert channel.core.next_due(7) == 7
    assert channel.sizes(7) == [3]
    assert channel.core.next_due(7) == NEVER
    assert channel.core.cancel(0, 0) == 8
    assert channel.core.next_due(8) == 8


# --- slots ---


def test_calls_in_flight_stay_within_the_slots_and_some_are_kept_for_system() -> None:
    channel = Channel(slots=3, reserved=1, cap=1)
    channel.push(0, 5, BASIC)
    assert channel.sizes(0) == [1, 1]
    channel.push(0, 5, SYSTEM)
    assert [batch.tier for batch in channel.pop(0)] == [SYSTEM]
    channel.core.release(0, 0, SYSTEM, 1, 1)
    assert [batch.tier for batch in channel.pop(0)] == [SYSTEM]
    channel.core.release(0, 0, BASIC, 1, 1)
    assert [batch.tier for batch in channel.pop(0)] == [SYSTEM]
    channel.core.cancel(0, 0)
    channel.push(0, 5, BASIC)
    assert channel.pop(0) == []
    channel.core.release(0, 0, SYSTEM, 1, 1)
    channel.core.release(0, 0, SYSTEM, 1, 1)
    assert [batch.tier for batch in channel.pop(0)] == [BASIC]


def test_a_full_channel_holds_up_no_other() -> None:
    channel = Channel(slots=1, cap=1)
    channel.core.add_channel(5, 0, 1)
    other = channel.core.add_account(1)
    channel.push(0, 5, account=0)
    channel.push(0, 5, account=other)
    assert [batch.channel for batch in channel.pop(0)] == [0, 1, 1, 1, 1, 1]


def test_a_slot_that_nobody_took_cannot_be_released() -> None:
    channel = Channel()
    with pytest.raises(ValueError, match="tier 1 has no call in flight on account 0"):
        channel.core.release(0, 0, TEMPLATE, 1, 1)


# --- limits ---


@pytest.mark.parametrize("scope", [GLOBAL, CHANNEL, ACCOUNT, WHOLE_TIER])
@pytest.mark.parametrize(("unit", "number"), [(CALLS, 4), (RECIPIENTS, 8)])
def test_a_limit_holds_in_any_window_and_lets_go_again(scope: int, unit: int, number: int) -> None:
    channel = Channel(cap=2)
    channel.core.add_limit(scope, BASIC if scope == WHOLE_TIER else 0, unit, number, 64 * S, 0)
    channel.push(0, 100)
    left = []
    now = 0
    while now < 1000 * S:
        left += [now] * channel.answer(now, channel.pop(now))
        now = max(channel.core.next_due(now), now + 1)
    assert all(later - at >= 64 * S for at, later in zip(left, left[4:], strict=False))
    assert len(left) == 50


def test_a_used_up_limit_parks_its_account_only() -> None:
    channel = Channel(cap=1, accounts=2)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 1, S, 0)
    channel.push(0, 3, account=0)
    channel.push(0, 3, account=1)
    assert [batch.account for batch in channel.pop(0)] == [0, 1, 1, 1]
    assert channel.stat("throttled") == 2
    assert channel.stat("ready") == 0


def test_part_of_a_limit_is_kept_for_system() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(GLOBAL, 0, RECIPIENTS, 5, S, 2)
    channel.push(0, 9, BASIC)
    assert len(channel.pop(0)) == 3
    channel.push(0, 9, SYSTEM)
    assert [batch.tier for batch in channel.pop(0)] == [SYSTEM, SYSTEM]


def test_a_batch_takes_half_of_a_limit_at_most_and_an_urgent_one_what_there_is() -> None:
    channel = Channel(cap=10)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 6, S, 2)
    channel.push(0, 10, BASIC)
    assert [(len(batch.items), batch.closed) for batch in channel.pop(0)] == [(2, CLOSED_CAP), (2, CLOSED_CAP)]
    channel.push(0, 10, SYSTEM)
    assert channel.sizes(0) == [2]


@pytest.mark.parametrize("tier", [SYSTEM, TEMPLATE])
def test_a_little_now_and_then_does_not_keep_a_large_batch_out(tier: int) -> None:
    """One recipient in half a window beside batches that would need all of it."""
    channel = Channel(cap=1000)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 100, 10 * S, 10)
    channel.push(0, 1000, BASIC)
    left = 0
    for second in range(1, 200):
        if second % 5 == 0:
            channel.push(second * S, 1, tier)
        batches = channel.pop(second * S)
        left += sum(len(batch.items) for batch in batches if batch.tier == BASIC)
        channel.answer(second * S, batches)
    assert left >= 800


def test_urgent_recipients_leave_though_their_batch_is_larger_than_what_is_kept_for_them() -> None:
    channel = Channel(cap=1000)
    channel.core.add_limit(ACCOUNT, 0, RECIPIENTS, 1000, 60 * S, 100)
    for content in range(3000):
        channel.push(0, 10, BASIC, content=content)
    left = 0
    for second in range(300):
        if second == 100:
            channel.push(second * S, 300, SYSTEM)
        batches = channel.pop(second * S, 4096)
        left += sum(len(batch.items) for batch in batches if batch.tier == SYSTEM)
        channel.answer(second * S, batches)
        assert left >= 100 or second < 100
    assert left == 300


def test_one_limit_that_refuses_charges_no_other() -> None:
    channel = Channel(cap=2, accounts=2)
    channel.core.add_limit(CHANNEL, 0, RECIPIENTS, 6, S, 0)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 1, S, 0)
    channel.push(0, 6, account=0)
    assert channel.sizes(0) == [2]
    channel.push(0, 6, account=1)
    assert channel.sizes(0) == [2, 2]


def test_what_is_on_its_way_counts_until_a_window_after_its_answer() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 1, S)
    channel.push(0, 3)
    first = channel.pop(0)
    assert channel.core.next_due(0) == NEVER, "when it arrives nobody knows"
    assert channel.pop(5 * S) == []
    channel.answer(5 * S, first)
    assert channel.pop(6 * S - 1) == []
    assert len(channel.pop(6 * S + TICK_NS)) == 1


def test_a_call_that_may_arrive_late_counts_until_a_window_after_that() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 1, S)
    channel.push(0, 3)
    assert len(channel.pop(0)) == 1
    channel.core.release(0, 0, BASIC, 1, 1, 4 * S)
    assert channel.pop(5 * S - 1) == []
    assert len(channel.pop(5 * S + TICK_NS)) == 1


def test_one_call_without_an_answer_takes_none_of_the_others_along() -> None:
    """Of ten a second, with ten seconds until a call has timed out: nine a second leave, and ten again after it."""
    channel = Channel(cap=1)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 10, S)
    channel.push(0, 500)
    left = list[int]()
    for now in range(0, 20 * S, S // 100):
        for batch in channel.pop(now):
            late_ns = 0 if left else 10 * S
            channel.core.release(now, batch.account, BASIC, 1, 1, late_ns)
            left.append(now)
    channel.core.check()
    seconds = Counter(now // S for now in left)
    assert all(8 <= seconds[second] <= 9 for second in range(1, 11))
    assert all(9 <= seconds[second] <= 10 for second in range(12, 20))


def test_a_call_that_never_left_costs_nothing() -> None:
    channel = Channel(cap=1)
    channel.core.add_limit(ACCOUNT, 0, CALLS, 1, S)
    channel.push(0, 3)
    for _ in range(3):
        assert len(channel.pop(0)) == 1
        channel.core.release(0, 0, BASIC, 1, 0)


def test_another_number_counts_at_once_and_keeps_what_was_used() -> None:
    channel = Channel(cap=1)
    limit = channel.core.add_limit(WHOLE_TIER, BASIC, CALLS, 2, S)
    channel.push(0, 9)
    assert channel.answer(0, channel.pop(0)) == 2
    assert channel.core.set_limit(WHOLE_TIER, BASIC, CALLS, 5, S) == limit
    assert channel.answer(1, channel.pop(1)) == 3
    channel.core.set_limit(WHOLE_TIER, BASIC, CALLS, 1, S)
    assert channel.pop(S) == []
    assert len(channel.pop(S + 1 + TICK_NS)) == 1


def test_a_limit_waits_for_its_grant() -> None:
    channel = Channel(cap=1)
    limit = channel.core.add_limit(GLOBAL, 0, CALLS, 60, 60 * S)
    channel.core.ration(limit, 2)
    channel.push(0, 9)
    assert channel.pop(0) == []
    assert channel.core.next_due(0) == NEVER
    assert channel.core.asked() == [(limit, 2)]
    channel.core.grant(limit, 2)
    assert len(channel.pop(0)) == 2
    assert channel.core.use(limit, 0) == (0, 0, 2, 0)


@pytest.mark.parametrize("scope", [GLOBAL, CHANNEL, ACCOUNT])
def test_a_block_holds_until_its_time_and_is_not_shortened(scope: int) -> None:
    channel = Channel()
    channel.core.block(scope, 0, 10 * S)
    channel.core.block(scope, 0, 5 * S)
    for tier in (SYSTEM, BASIC):
        channel.push(0, 1, tier)
    assert channel.pop(10 * S - 1) == []
    assert channel.stat("throttled", SYSTEM) == 1
    assert channel.sizes(10 * S + TICK_NS) == [1, 1]


# --- ends ---


def test_cancel_ends_a_campaign_in_every_tier_and_no_other() -> None:
    channel = Channel(cap=2)
    channel.push(0, 2, SYSTEM, campaign=1)
    channel.push(0, 1, TEMPLATE, campaign=1, linger=S, deadline=S)
    channel.push(0, 3, BASIC, campaign=1, not_before=S)
    channel.push(0, 2, BASIC, campaign=2)
    channel.push(0, 2, BASIC, campaign=1, tenant=1)
    assert channel.core.cancel(0, 1) == 6
    assert channel.core.cancel(0, 1) == 0
    assert sum(channel.core.stats()["cancelled"]) == 6
    assert [(batch.key[0], batch.key[1]) for batch in channel.pop(0)] == [(0, 2), (1, 1)]
    ended = channel.core.reap(2 * S, 100)
    assert set(ended.cause) == {CANCELLED}
    assert list(ended.send) == [1, 1, 2, 3, 3, 3]


def test_a_cancelled_campaign_can_be_pushed_again_while_its_past_is_unreaped() -> None:
    channel = Channel(cap=2)
    channel.push(0, 1, linger=S, deadline=S)
    channel.core.cancel(0, 0)
    again = channel.push(0, 1, linger=S)
    assert channel.core.next_due(3 * S) == 3 * S
    assert [batch.items[0][0] for batch in channel.pop(3 * S)] == [again]
    assert channel.stat("expired") == 0


def test_reap_splits_a_run_and_says_that_there_is_more() -> None:
    channel = Channel(cap=2)
    channel.push(0, 5, attempt=2, not_before=S)
    channel.core.cancel(0, 0)
    first, rest = channel.core.reap(0, 3), channel.core.reap(0, 3)
    assert (list(first.position), first.more) == ([0, 1, 2], True)
    assert (list(rest.position), rest.more) == ([3, 4], False)
    assert list(rest.attempt) == [2, 2]
    assert channel.core.next_due(0) == NEVER


def test_what_is_gone_holds_no_memory() -> None:
    channel = Channel(slots=2**20, cap=10)

    def churn(start: int) -> int:
        for i in range(2000):
            channel.push(start, 3, tenant=i, campaign=i % 5, linger=S, deadline=start + 9 * S)
        channel.core.cancel(3, 3)
        while batches := channel.pop(start + 2 * S, 100):
            channel.answer(start + 2 * S, batches)
        channel.core.reap(start + 2 * S, 10_000)
        channel.core.check()
        assert channel.stat("flows") == channel.stat("queued") == 0
        return channel.core.stats()["memory_bytes"][0]

    assert max(churn(start * S) for start in (0, 10, 20, 30)) < 1_000_000


def fill(channel: Channel, recipients: int, contents: int) -> None:
    """Pushes so many recipients, one a send, over so many contents."""
    never, none, zeros = array("q", [NEVER]) * 1000, array("q", bytes(8000)), array("I", bytes(4000))
    for start in range(0, recipients, 1000):
        content = array("I", [i % contents for i in range(start, start + 1000)])
        ids = b"".join(b"%028d" % i for i in range(start, start + 1000))
        key = (zeros, bytes([BASIC]) * 1000, zeros, zeros, zeros, content, bytes(1000))
        to = (array("I", [1]) * 1000, array("H", bytes(2000)), bytes([28]) * 1000, ids)
        channel.core.push_many(0, *key, none, never, never, none, none, *to)


def burst(channel: Channel, recipients: int, contents: int) -> int:
    """Takes what it pushes; the memory at its height."""
    fill(channel, recipients, contents)
    height = channel.core.stats()["memory_bytes"][0]
    while channel.core.pop_batches(0, 4096).more:
        pass
    return height


@pytest.mark.parametrize("contents", [1, 50, 100_000])
def test_a_burst_costs_what_it_must_and_gives_it_back(contents: int) -> None:
    channel = Channel(slots=2**20, cap=100)
    assert burst(channel, 100_000, contents) <= 64 * 100_000
    channel.core.check()
    left = channel.core.stats()["memory_bytes"][0]
    assert left <= 9 * 256 * 1024  # a block of each kind of record, and the output
    assert burst(channel, 100_000, contents) <= 64 * 100_000
    assert channel.core.stats()["memory_bytes"][0] <= 9 * 256 * 1024


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_the_core_gives_back_the_system_has(*, cancelled: bool) -> None:
    channel, before = Channel(slots=2**20, cap=100), resident()
    fill(channel, 300_000, 300_000)
    height = resident() - before
    if cancelled:
        assert channel.core.cancel(0, 0) == 300_000
    while (channel.core.reap(0, 4096) if cancelled else channel.core.pop_batches(0, 4096)).more:
        pass
    assert height > 30 * 300_000
    assert resident() - before < height / 3


# --- contents that are seen once ---


def test_contents_beyond_a_campaigns_own_queues_share_one_until_they_are_seen_again() -> None:
    channel = Channel(cap=10, own_queues=2)
    for content in (1, 2, 3, 4, 3, 3, 1):
        channel.push(0, 1, content=content)
    assert channel.stat("flows") == 4  # 1, 2, 3 from its second on, and the shared one
    sizes = [(batch.key[2], len(batch.items)) for batch in channel.pop(0)]
    assert sizes == [(1, 2), (2, 1), (3, 1), (3, 2), (4, 1)]


def test_neighbours_of_one_content_merge_in_the_shared_queue() -> None:
    channel = Channel(cap=3, own_queues=0)
    first, second = channel.push(0, 5, content=1, linger=S), channel.push(0, 1, content=2, linger=S)
    batches = channel.pop(0)
    assert [batch.key[2] for batch in batches] == [1, 1, 2]
    assert [[item[0] for item in batch.items] for batch in batches] == [[first] * 3, [first] * 2, [second]]
    assert [batch.closed for batch in batches] == [CLOSED_CAP, CLOSED_LINGER, CLOSED_LINGER]


def test_a_content_is_new_again_when_it_has_left_the_shared_queue() -> None:
    channel = Channel(cap=3, own_queues=0)
    for _ in range(3):
        channel.push(0, 1, content=1)
        channel.push(0, 1, content=2, not_before=S)
        assert channel.stat("flows") == 1
        assert channel.sizes(0) == [1]
        assert channel.core.cancel(0, 0) == 1
        assert channel.core.reap(0, 9).items == 1
    assert channel.stat("flows") == 0
    channel.core.check()


def test_contents_seen_once_are_cancelled_like_one_queue() -> None:
    channel = Channel()
    for content in range(1000):
        channel.push(0, 1, content=content)
    assert channel.stat("flows") == 65
    assert channel.core.cancel(0, 0) == 1000
    assert channel.stat("flows") == 0
    ended = channel.core.reap(0, 2000)
    assert sorted(ended.send) == list(range(1, 1001))
    channel.core.check()


# --- numbers ---


def test_queue_wait_counts_first_attempts_from_when_they_could_go() -> None:
    channel = Channel(cap=10)
    channel.push(0, 2)
    channel.push(0, 3, content=1, not_before=50 * MS)
    channel.push(0, 4, content=2, attempt=1)
    channel.pop(0)
    channel.push(0, 2, content=3)
    channel.pop(60 * MS)
    counts, total = channel.core.queue_wait(BASIC, 0).snapshot()
    assert counts[-1] == 7
    assert total == 3 * 10 * MS + 2 * 60 * MS
    assert channel.core.batch_recipients(0).snapshot()[0][-1] == 4


def test_lateness_is_from_the_due_time() -> None:
    channel = Channel(cap=10)
    channel.push(0, 2, due=40 * MS, linger=S, attempt=1)
    channel.push(0, 1, content=1, due=2 * S)
    channel.pop(50 * MS)
    counts, total = channel.core.lateness(BASIC).snapshot()
    assert (counts[-1], total) == (3, 20 * MS)


def test_times_before_the_clock_began_are_no_harm() -> None:
    channel = Channel(cap=10)
    channel.push(5, 1, not_before=-(2**63), due=-(2**63))
    channel.push(5, 1, content=1, not_before=NEVER, deadline=-(2**63))
    (batch,) = channel.pop(5)
    assert batch.due == -(2**63)
    assert channel.core.lateness(BASIC).snapshot()[1] == NEVER
    assert channel.core.reap(5, 9).items == 1


# --- what is refused ---

FINE = columns([Run(1, BASIC, 0, (0, 0, 0), 0, 0, NEVER, NEVER, 0, 0, [(0, b"ab"), (1, b"c")])])
NAMES = [
    "send",
    "tier",
    "account",
    "tenant",
    "campaign",
    "content",
    "attempt",
    "not_before",
    "due",
    "deadline",
    "linger",
    "pushed",
    "count",
    "position",
    "id_length",
]


def refused(message: str, **changed: Any) -> None:
    core = Channel().core
    bad = [changed.get(name, column) for name, column in zip([*NAMES, "ids"], FINE, strict=True)]
    with pytest.raises(ValueError, match=message):
        core.push_many(0, *bad)
    assert sum(core.stats()["pushed"]) == core.stats()["flows"][BASIC] == 0


@pytest.mark.parametrize("name", NAMES[1:13])
def test_a_column_of_another_length_is_named(name: str) -> None:
    code = FINE[NAMES.index(name)].typecode
    refused(f"{name} has 2 rows: 1 expected, as in send", **{name: array(code, [1, 1])})


def test_recipient_columns_of_another_length_are_named() -> None:
    refused("id_length has 1 rows: 2 expected, as in position", id_length=array("B", [3]))
    refused("count adds up to 3: 2 expected, the rows of position", count=array("I", [3]))
    refused("id_length adds up to 4: 3 expected, the bytes of ids", id_length=array("B", [2, 2]))
    refused("id_length adds up to 3: 4 expected, the bytes of ids", ids=b"abcd")


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_another_type_is_named(name: str) -> None:
    refused(f"{name} has items 'd': '.' expected", **{name: array("d", [1.0])})
    refused(f"{name}: a bytes-like object is required", **{name: [1]})


def test_a_column_with_gaps_is_refused() -> None:
    refused("position: .*not C-contiguous", position=memoryview(array("H", range(4)))[::2])


def test_bad_rows_are_named() -> None:
    refused(r"tier\[0\] is 3: 0, 1 or 2 expected", tier=array("B", [3]))
    refused(r"account\[0\] is 1: a handle below 1 expected", account=array("I", [1]))
    refused(r"count\[0\] is 0: 1\.\.65536 expected", count=array("I", [0]))
    refused(r"linger\[0\] is -1: 0 or more expected", linger=array("q", [-1]))
    refused(r"id_length\[1\] is 0: 1\.\.255 expected", id_length=array("B", [3, 0]))


def test_one_bad_row_keeps_all_out() -> None:
    core = Channel().core
    runs = [Run(i, BASIC, i // 4, (0, 0, 0), 0, 0, NEVER, NEVER, 0, 0, [(0, b"x")]) for i in range(5)]
    with pytest.raises(ValueError, match=r"account\[4\]"):
        core.push_many(0, *columns(runs))
    assert core.stats()["pushed"] == [0, 0, 0]
    core.push_many(0, *columns(runs[:4]))
    assert core.stats()["pushed"] == [0, 0, 4]


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("add_channel", (0, 0, 1), "slots is 0"),
        ("add_channel", (1, 1, 1), r"reserved is 1: 0\.\.0 expected"),
        ("add_channel", (1, 0, 0), "cap is 0"),
        ("add_channel", (2**70, 0, 1), "slots is 1180591620717411303424"),
        ("add_account", (1,), r"channel is 1: 0\.\.0 expected"),
        ("add_account", (-1,), "channel is -1"),
        ("add_limit", (5, 0, CALLS, 1, 1, 0), "scope is 5"),
        ("block", (4, 0, 1), "scope is 4"),
        ("pause", (0, 0), r"scope is 0: 1\.\.5 expected"),
        ("pause", (4, 0, 1), r"campaign is 1: 0\.\.0 expected"),
        ("resume", (1, 1), "channel is 1"),
        ("reweight", (2, 0, 1), r"scope is 2: 3\.\.5 expected"),
        ("reweight", (4, 0, 0), "weight is 0"),
        ("explain", (0, -1, 0), "tenant is -1"),
        ("add_limit", (GLOBAL, 1, CALLS, 1, 1, 0), r"handle is 1: 0\.\.0 expected"),
        ("add_limit", (CHANNEL, 1, CALLS, 1, 1, 0), "channel is 1"),
        ("add_limit", (ACCOUNT, 1, CALLS, 1, 1, 0), "account is 1"),
        ("add_limit", (GLOBAL, 0, 2, 1, 1, 0), "unit is 2"),
        ("add_limit", (GLOBAL, 0, CALLS, 0, 1, 0), "number is 0"),
        ("add_limit", (GLOBAL, 0, CALLS, 1, 0, 0), "per_ns is 0"),
        ("add_limit", (GLOBAL, 0, CALLS, 1, 1, 1), "reserved is 1"),
        ("pop_batches", (-1, 1), "now_ns is -1"),
        ("pop_batches", (0, 0), "budget is 0"),
        ("reap", (0, 0), "budget is 0"),
        ("reap", (2**63, 1), "now_ns is"),
        ("next_due", (-1,), "now_ns is -1"),
        ("release", (0, 1, 0, 1, 1), "account is 1"),
        ("release", (0, 0, 3, 1, 1), "tier is 3"),
        ("cancel", (-1, 0), "tenant is -1"),
        ("cancel", (0, 2**32), "campaign is 4294967296"),
        ("block", (GLOBAL, 0, -1), "until_ns is -1"),
        ("queue_wait", (3, 0), "tier is 3"),
        ("queue_wait", (0, 1), "channel is 1"),
        ("lateness", (-1,), "tier is -1"),
        ("batch_recipients", (1,), "channel is 1"),
    ],
)
def test_bad_arguments_are_named(call: str, arguments: tuple[int, ...], message: str) -> None:
    core = Channel().core
    with pytest.raises(ValueError, match=message):
        getattr(core, call)(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("template_weight", 0),
        ("basic_weight", 2**21),
        ("deadline_lead_ns", -1),
        ("own_queues", -1),
        ("pacing", (PACED, ASAP)),
        ("tau_ns", -1),
        ("floor", 0),
        ("near_ns", (0, 0)),
    ],
)
def test_bad_options_are_named(name: str, value: Any) -> None:
    options = {name: value}
    with pytest.raises(ValueError, match=f"{name} is "):
        Core(**options)


def test_columns_are_typed_read_only_and_unknown_ones_are_no_attributes() -> None:
    channel = Channel(cap=2)
    empty = channel.core.pop_batches(0, 1)
    assert (list(empty.start), list(empty.id_end), list(empty.send), empty.ids) == ([0], [0], [], b"")
    channel.push(0, 3, deadline=S)
    popped = channel.core.pop_batches(0, 1)
    codes = {"due": "q", "pushed": "q", "send": "I", "position": "H", "attempt": "B", "tier": "B", "closed": "B"}
    for name, code in codes.items():
        column = getattr(popped, name)
        assert (column.format, column.readonly) == (code, True)
    assert popped.send is popped.send
    for result in (popped, channel.core.reap(2 * S, 5)):
        assert not hasattr(result, "sent")
