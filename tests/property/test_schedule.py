"""The core against a plain model: after every step their outputs are the same, in the same order.

Few names, small caps, slots and limits, and times around the timers' grain, so that flows merge, split, linger, park,
block, expire and are cancelled all the time. What left is also held against promises that need no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ext.schedule import (
    ACCOUNT,
    ASAP,
    CALL_A_SECOND,
    CALLS,
    CHANNEL,
    EACH_TENANT,
    EVEN,
    GLOBAL,
    HELD_LIMIT,
    HELD_TURN,
    NEVER,
    OF_CAMPAIGN,
    OF_TENANT,
    PACED,
    RECIPIENTS,
    TICK_NS,
    WHOLE_TIER,
    Core,
)
from tests.property import away_model
from tests.property.columns import columns, rows
from tests.property.model import BASIC, SYSTEM, Batch, Limit, Model, Run
from tests.property.windows import most_in_a_window

NS_PER_S = 1_000_000_000
# A step of time: none, inside a tick, a tick, some, and over the borders of the wheel's levels.
STEPS = st.one_of(
    st.just(0),
    st.integers(1, TICK_NS - 1),
    st.just(TICK_NS),
    st.integers(1, 200).map(lambda n: n * TICK_NS // 4),
    st.sampled_from([64 * TICK_NS, 64**2 * TICK_NS + 1, NS_PER_S, 3600 * NS_PER_S]),
)
LONG = st.just(3600 * NS_PER_S)
AHEAD = st.integers(-2, 300).map(lambda n: n * TICK_NS // 4)
DUE = st.one_of(st.just(NEVER), AHEAD, st.sampled_from([1, 9, 30, 600, 600, 1200]).map(lambda n: n * NS_PER_S))
NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"ee", b"ff", b"a-name-of-17-char"])
LIMITS = st.tuples(
    st.integers(1, 9),
    st.sampled_from([1, 100, 3 * TICK_NS, 64 * TICK_NS, 64 * TICK_NS + 1, NS_PER_S]),
    st.integers(0, 8),
)


SCOPES = st.sampled_from([GLOBAL, CHANNEL, ACCOUNT, WHOLE_TIER, OF_TENANT])  # what has limits
KEPT = st.sampled_from([CHANNEL, ACCOUNT, WHOLE_TIER, OF_TENANT, OF_CAMPAIGN])  # what can be paused


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, ...]:
    """All of a run but its handles: tenant, campaign, content, attempt, not_before, due, deadline, linger. Many are of
    one flow, with due times in any order."""
    if draw(st.booleans()):
        due, linger = draw(st.sampled_from([320, 450, 600])), draw(st.sampled_from([0, NEVER]))
        return 0, 0, 0, 0, -1, due * NS_PER_S, NEVER, linger
    return (
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 3)),
        draw(st.sampled_from([0, 0, 1, 3])),
        draw(st.one_of(st.just(-1), AHEAD)),
        draw(DUE),
        draw(st.one_of(st.just(NEVER), AHEAD)),
        draw(st.one_of(st.sampled_from([0, NEVER]), AHEAD.map(abs))),
    )


@dataclass
class Call:
    """A batch that left: in flight until ``ended``."""

    popped: int
    batch: Batch
    ended: int | None = None
    left: int = 0


class CoreMachine(RuleBasedStateMachine):
    @initialize(
        weights=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 3])),
        lead=st.sampled_from([0, TICK_NS // 2, 10 * TICK_NS]),
        own_queues=st.sampled_from([0, 1, 2, 64]),
        channels=st.lists(
            st.tuples(st.integers(1, 8), st.integers(0, 3), st.integers(1, 5), st.sampled_from([False, False, True])),
            min_size=2,
            max_size=2,
        ),
        accounts=st.lists(st.integers(0, 1), min_size=2, max_size=4),
        pacing=st.sampled_from([(ASAP, ASAP, ASAP), (ASAP, ASAP, PACED), (ASAP, PACED, PACED), (ASAP, PACED, EVEN)]),
        tau=st.sampled_from([0, 64, 3600]),
        floor=st.sampled_from([1, CALL_A_SECOND, 20 * CALL_A_SECOND]),
        near=st.sampled_from([0, 5]),
        horizon_ns=st.sampled_from([0, TICK_NS, 64 * TICK_NS, NEVER]),
        each=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), LIMITS), max_size=2),
    )
    def start(
        self,
        weights: tuple[int, int],
        lead: int,
        own_queues: int,
        channels: list[tuple[int, int, int, bool]],
        accounts: list[int],
        pacing: tuple[int, int, int],
        tau: int,
        floor: int,
        near: int,
        horizon_ns: int,
        each: list[tuple[int, int, tuple[int, int, int]]],
    ) -> None:
        tau_ns, near_ns = tau * NS_PER_S, (0, near * NS_PER_S, 0)
        self.core = Core(
            *weights, lead, own_queues, pacing=pacing, tau_ns=tau_ns, floor=floor, near_ns=near_ns,
            horizon_ns=horizon_ns,
        )  # fmt: skip
        self.model = Model(
            *weights, lead, own_queues, pacing=pacing, tau_ns=tau_ns, floor=floor, near_ns=near_ns,
            horizon_ns=horizon_ns,
        )  # fmt: skip
        self.now = self.sends = 0
        self.in_flight: list[Call] = []
        self.left: list[Call] = []
        self.deadlines: dict[int, int] = {}
        self.inside: dict[tuple[int, int], tuple[int, int, int]] = {}  # send, position -> tier, tenant, campaign
        self.paused: set[tuple[int, int, int]] = set()  # scope, handle, campaign
        self.limits: list[tuple[int, int, Limit, int]] = []  # scope, handle, limit, how much had left before
        for slots, reserved, cap, stays in channels:
            self.core.add_channel(slots, min(reserved, slots - 1), cap, stays)
            self.model.add_channel(slots, min(reserved, slots - 1), cap, stays)
        for channel in accounts:
            self.core.add_account(channel % len(channels))
            self.model.add_account(channel % len(channels))
        for channel, unit, (number, per, reserved) in each:
            rule = Limit(unit == RECIPIENTS, number, per, min(reserved, number - 1))
            rule.handle = self.core.add_limit(EACH_TENANT, channel, unit, number, per, rule.reserved)
            self.model.each[channel].append(rule)

    def handle(self, scope: int, pick: int) -> int:
        return pick % [1, len(self.model.channels), len(self.model.leaves), 3, 2, 2][scope]

    @precondition(lambda self: len(self.limits) < 4)
    @rule(scope=SCOPES, pick=st.integers(0, 5), unit=st.integers(0, 1), of=LIMITS)
    def limit(self, scope: int, pick: int, unit: int, of: tuple[int, int, int]) -> None:
        number, per, reserved = of
        handle = self.handle(scope, pick)
        limit = Limit(unit == RECIPIENTS, number, per, min(reserved, number - 1))
        here = self.model.scope(scope, handle)
        if any((other.recipients, other.per) == (limit.recipients, per) for other in here.limits):
            return  # set_limit would not know which is meant
        limit.handle = self.core.add_limit(scope, handle, unit, number, per, limit.reserved)
        here.limits.append(limit)
        self.model.reconsider(here)
        self.limits.append((scope, handle, limit, len(self.left)))

    @rule(
        step=STEPS,
        pushed=st.lists(
            st.tuples(
                st.integers(0, 2),
                st.integers(0, 5),
                runs(),
                st.lists(NAMES, min_size=1, max_size=6),
            ),
            max_size=6,
        ),
    )
    def push(self, step: int, pushed: list[tuple[int, int, tuple[int, ...], list[bytes]]]) -> None:
        self.now += step
        made = [self.run_of(*each) for each in pushed]
        self.core.push_many(self.now, *columns(made))
        self.model.push(self.now, made)

    def run_of(self, tier: int, pick: int, run: tuple[int, ...], names: list[bytes]) -> Run:
        *key, attempt, not_before, due, deadline, linger = run
        self.sends += 1
        times = [NEVER if time == NEVER else self.now + time for time in (not_before, due, deadline)]
        self.deadlines[self.sends] = times[2]
        account, at = self.handle(ACCOUNT, pick), (key[0], key[1], key[2])
        to = [(7 * i, name) for i, name in enumerate(names)]
        self.inside.update({(self.sends, position): (tier, key[0], key[1]) for position, _ in to})
        return Run(self.sends, tier, account, at, attempt, times[0], times[1], times[2], linger, self.now - 5, to)

    @rule(step=STEPS, budget=st.sampled_from([1, 2, 5, 256]))
    def pop(self, step: int, budget: int) -> None:
        self.now += step
        self.popped(budget)

    def popped(self, budget: int) -> list[Batch]:
        popped = self.core.pop_batches(self.now, budget)
        batches = rows(popped)
        assert batches == self.model.pop(self.now, budget)
        assert popped.more == bool(self.model.root.ring)
        assert popped.items <= budget - 1 + max(channel.cap for channel in self.model.channels)
        assert [batch.tier == SYSTEM for batch in batches] == sorted((b.tier == SYSTEM for b in batches), reverse=True)
        for batch in batches:
            self.came_out((item[0], item[1], (batch.tier, *batch.key[:2])) for item in batch.items)
            names = [item[4] for item in batch.items]
            assert len(set(names)) == len(names)
            assert all(self.deadlines[item[0]] > self.now for item in batch.items)
            assert not self.paused_parts(batch) & self.paused
            assert len(names) <= self.model.channels[batch.channel].cap
            self.left.append(Call(self.now, batch))
            self.in_flight.append(self.left[-1])
        return batches

    def came_out(self, recipients: Iterable[tuple[int, int, tuple[int, int, int] | None]]) -> None:
        """Each once, of what came in; with the tier, tenant and campaign that it came with, where that is told."""
        for send, position, of in recipients:
            assert self.inside.pop((send, position)) == of or of is None

    @precondition(lambda self: self.in_flight)
    @rule(step=STEPS, pick=st.integers(0, 1000), short=st.sampled_from([0, 0, 1, 9]), late=st.sampled_from([0, 0, 70]))
    def release(self, step: int, pick: int, short: int, late: int) -> None:
        self.now += step
        call = self.in_flight.pop(pick % len(self.in_flight))
        n = len(call.batch.items)
        call.ended, call.left = self.now + late * TICK_NS, max(n - short, 0)
        batch, tenant = call.batch, call.batch.key[0]
        self.core.release(self.now, batch.account, batch.tier, n, call.left, late * TICK_NS, tenant)
        self.model.release(self.now, batch.account, batch.tier, n, call.left, late * TICK_NS, tenant)

    @precondition(lambda self: self.in_flight)
    @rule()
    def release_all(self) -> None:
        while self.in_flight:
            self.release(0, 0, 0, 0)

    @precondition(lambda self: self.limits)
    @rule(pick=st.integers(0, 3), number=st.integers(1, 9), reserved=st.integers(0, 8))
    def set_limit(self, pick: int, number: int, reserved: int) -> None:
        """Another number: what was used stays, and so do the promises of before only for what leaves from now on."""
        scope, handle, limit, _ = self.limits[pick % len(self.limits)]
        limit.number, limit.reserved = number, min(reserved, number - 1)
        unit = RECIPIENTS if limit.recipients else CALLS
        self.core.set_limit(scope, handle, unit, number, limit.per, limit.reserved)
        self.model.reconsider(self.model.scope(scope, handle))
        self.limits = [(*one[:3], len(self.left)) if one[2] is limit else one for one in self.limits]

    @precondition(lambda self: self.limits)
    @rule(step=STEPS)
    def free_at(self, step: int) -> None:
        self.now += step
        self.model.advance(self.now)
        for scope, handle, limit, _ in self.limits:
            held = self.model.scope(scope, handle).held[limit.recipients]
            free = max(self.now, limit.when(self.now, 1, BASIC, held))
            assert self.core.free_at(limit.handle, self.now) == free

    @rule(tenant=st.integers(0, 1), campaign=st.integers(0, 1))
    def cancel(self, tenant: int, campaign: int) -> None:
        """All of it that has not come out, and that only once: what was cancelled comes out of ``reap`` alone."""
        while self.reaped(100):
            pass
        left = Counter(self.inside.values())
        n = self.core.cancel(tenant, campaign)
        assert n == self.model.cancel(tenant, campaign)
        assert n == sum(left[tier, tenant, campaign] for tier in range(3))

    def paused_parts(self, batch: Batch) -> set[tuple[int, int, int]]:
        """Whose pauses would have kept it."""
        tenant, campaign, _ = batch.key
        return {
            (CHANNEL, batch.channel, 0),
            (ACCOUNT, batch.account, 0),
            (WHOLE_TIER, batch.tier, 0),
            (OF_TENANT, tenant, 0),
            (OF_CAMPAIGN, tenant, campaign),
        }

    @rule(scope=KEPT, pick=st.integers(0, 5), campaign=st.integers(0, 1), ahead=st.one_of(AHEAD, LONG))
    def pause(self, scope: int, pick: int, campaign: int, ahead: int) -> None:
        until = max(self.now + ahead, 0) if ahead else 0
        self.set_paused(scope, self.handle(scope, pick), campaign if scope == OF_CAMPAIGN else 0, True, until)

    @precondition(lambda self: self.paused)
    @rule(pick=st.integers(0, 20))
    def resume(self, pick: int) -> None:
        self.set_paused(*sorted(self.paused)[pick % len(self.paused)], False)

    def set_paused(self, scope: int, handle: int, campaign: int, paused: bool, until: int = 0) -> None:
        if paused:
            self.core.pause(scope, handle, campaign, until)
        else:
            self.core.resume(scope, handle, campaign)
        self.model.pause(scope, handle, campaign, paused, until)
        (self.paused.add if paused else self.paused.discard)((scope, handle, campaign))

    @rule(
        scope=st.sampled_from([WHOLE_TIER, OF_TENANT, OF_CAMPAIGN]),
        pick=st.integers(0, 1),
        campaign=st.integers(0, 1),
        weight=st.sampled_from([1, 1, 2, 5]),
    )
    def reweight(self, scope: int, pick: int, campaign: int, weight: int) -> None:
        handle = pick + (scope == WHOLE_TIER)
        campaign = campaign if scope == OF_CAMPAIGN else 0
        self.core.reweight(scope, handle, weight, campaign)
        self.model.reweight(scope, handle, campaign, weight)

    @rule(step=STEPS)
    def explain(self, step: int) -> None:
        """What is held does not leave, whatever else does; what is said to be free can be popped, or has expired, but
        where another's batch is first, does not fit, and keeps all there waiting."""
        self.now += step
        self.model.advance(self.now)
        free, held = set(), {}
        for tenant, campaign in ((0, 0), (0, 1), (1, 0), (1, 1)):
            rows = self.core.explain(self.now, tenant, campaign)
            expected = self.model.explain(tenant, campaign)
            assert rows == [(*one[:5], one.limit and one.limit.handle, *one[6:]) for one in expected]
            for tier, account, ready, why, _, _, until, _ in rows:
                at = (tier, account, tenant, campaign)
                assert ready == self.model.ready_of(*at)
                assert until >= self.now
                if why == HELD_TURN and self.model.tiers[tier].pacing is None:
                    free.add(at)
                elif why != HELD_TURN:  # what is paced may wait for its time
                    held[at] = why
        before = sum(self.model.counts["popped"]) + sum(self.model.counts["expired"])
        left = {(b.tier, b.account, *b.key[:2]) for b in self.popped(10_000)}
        assert not left & held.keys(), held
        assert (
            not free
            or HELD_LIMIT in held.values()
            or sum(self.model.counts["popped"]) + sum(self.model.counts["expired"]) > before
        )

    @rule(step=STEPS, budget=st.sampled_from([1, 3, 100]))
    def reap(self, step: int, budget: int) -> None:
        self.now += step
        self.reaped(budget)

    def reaped(self, budget: int) -> bool:
        """Whether there is more."""
        ended = self.core.reap(self.now, budget)
        expected = self.model.reap(self.now, budget)
        assert ended.items == len(expected) <= budget
        assert list(zip(ended.cause, ended.send, ended.position, ended.attempt, strict=True)) == [
            row[:4] for row in expected
        ]
        self.came_out((send, position, None) for send, position in zip(ended.send, ended.position, strict=True))
        assert ended.more == self.model.has_ended
        return ended.more

    @rule(step=STEPS, tier=st.integers(0, 2), budget=st.sampled_from([1, 3, 100]))
    def put_off(self, step: int, tier: int, budget: int) -> None:
        """In portions, until there is nothing more. In which order queues give is left to the core."""
        self.now += step
        self.taken_out(tier, budget)

    @rule(scope=KEPT, pick=st.integers(0, 5), campaign=st.integers(0, 1), budget=st.sampled_from([1, 3, 100]))
    def put_off_for_a_pause(self, scope: int, pick: int, campaign: int, budget: int) -> None:
        """Something that may well have work."""
        self.pause(scope, pick, campaign, 3600 * NS_PER_S)
        for tier in range(3):
            self.taken_out(tier, budget)

    def taken_out(self, tier: int, budget: int) -> None:
        self.model.advance(self.now)
        while tier in self.core.puts_off(self.now):
            taken = self.core.put_off(self.now, tier, budget)
            assert taken is not None
            assert len(set(taken.send[budget - 1 :])) <= 1, "beyond it only the rest of a send"
            self.came_out((send, position, None) for send, position in zip(taken.send, taken.position, strict=True))
            told = taken.send, taken.position, taken.attempt, taken.cause, taken.until
            away_model.put_off(self.model, tier, list(zip(*told, strict=True)))
        assert self.core.put_off(self.now, tier, budget) is None
        away_model.all_put_off(self.model, tier)

    @rule(scope=SCOPES.filter(lambda scope: scope != OF_TENANT), pick=st.integers(0, 5), ahead=st.one_of(AHEAD, LONG))
    def block(self, scope: int, pick: int, ahead: int) -> None:
        handle, until = self.handle(scope, pick), max(0, self.now + ahead)
        self.core.block(scope, handle, until)
        self.model.block(scope, handle, until)

    @rule(back=st.integers(0, 3 * TICK_NS))
    def time_never_goes_back(self, back: int) -> None:
        due = self.core.next_due(max(0, self.now - back))
        self.model.advance(self.now - back)
        self.now = self.model.now
        self.check_due(due)

    def check_due(self, due: int) -> None:
        exact = self.model.next_due()
        assert due == exact if exact in (self.now, NEVER) else self.now < due <= exact

    @rule(steps=st.integers(1, 20))
    def follow(self, steps: int) -> None:
        """What the pipeline does: pop at next_due, over and over."""
        for _ in range(steps):
            if self.turn():
                return

    def turn(self) -> bool:
        """True: nothing more happens by itself."""
        due = self.core.next_due(self.now)
        self.model.advance(self.now)
        self.check_due(due)
        if due == NEVER:
            return True
        self.pop(due - self.now, 256)
        if self.in_flight:
            self.release_all()
        self.reap(0, 100)
        return False

    @invariant()
    def same_numbers(self) -> None:
        self.core.check()
        stats = self.core.stats()
        memory = stats.pop("memory_bytes")
        assert stats == self.model.stats()
        assert memory[0] > 0
        inside = Counter(tier for tier, _, _ in self.inside.values())
        for tier in range(3):
            parts = ("popped", "expired", "cancelled", "put_off", "queued", "waiting")
            kept = sum(stats[name][tier] for name in parts)
            assert stats["pushed"][tier] == kept
            assert inside[tier] == sum(stats[name][tier] for name in ("queued", "waiting", "ended"))

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        turns = 0
        for scope, handle, campaign in sorted(self.paused):
            self.set_paused(scope, handle, campaign, False)
        while not self.turn():
            turns += 1
            assert turns < 1_000, "next_due makes no progress"
        for tenant, campaign in ((0, 0), (0, 1), (1, 0), (1, 1)):
            self.cancel(tenant, campaign)
        while self.reaped(100):
            pass
        assert not self.inside
        self.check_limits()
        self.check_histograms()

    def check_limits(self) -> None:
        """The platform counts a call between its pop and its end: here at the first or at the last moment."""
        for (channel, tenant), share in self.model.shares.items():
            for limit in share.limits:
                theirs = [
                    (call.popped, (call.left or len(call.batch.items)) if limit.recipients else 1)
                    for call in self.left
                    if (call.ended is None or call.left)
                    and (call.batch.channel, call.batch.key[0]) == (channel, tenant)
                ]
                assert most_in_a_window(theirs, limit.per) <= limit.number
        for scope, handle, limit, since in self.limits:
            calls = [
                call
                for call in self.left[since:]
                if (call.ended is None or call.left)
                and [0, call.batch.channel, call.batch.account, call.batch.tier, call.batch.key[0]][scope] == handle
            ]
            used = [call.left or len(call.batch.items) if limit.recipients else 1 for call in calls]
            first = [(call.popped, n) for call, n in zip(calls, used, strict=True)]
            last = [(self.now if call.ended is None else call.ended, n) for call, n in zip(calls, used, strict=True)]
            assert most_in_a_window(first, limit.per) <= limit.number
            assert most_in_a_window(last, limit.per) <= limit.number
            others = [one for call, one in zip(calls, first, strict=True) if call.batch.tier != SYSTEM]
            assert most_in_a_window(others, limit.per) <= limit.number - limit.reserved

    def check_histograms(self) -> None:
        for tier in range(3):
            late = self.core.lateness(tier)
            values = [ns for of, ns in self.model.late if of == tier]
            assert late.snapshot() == (at_most(values, late.edges), sum(values))
            for channel in range(len(self.model.channels)):
                wait = self.core.queue_wait(tier, channel)
                values = [ns for of, at, ns in self.model.waits if (of, at) == (tier, channel)]
                assert wait.snapshot() == (at_most(values, wait.edges), sum(values))
        for channel in range(len(self.model.channels)):
            sizes = self.core.batch_recipients(channel)
            values = [len(batch.items) for batch in [call.batch for call in self.left] if batch.channel == channel]
            assert sizes.snapshot() == (at_most(values, sizes.edges), sum(values))


def at_most(values: list[int], edges: list[int]) -> list[int]:
    return [*(sum(value <= edge for value in values) for edge in edges), len(values)]


TestCore = CoreMachine.TestCase
TestCore.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
