"""Pacing against a plain model: rate, state and the time of the next call are the same after every step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ext.pace import CALL_A_SECOND, EVEN, FASTEST, PACED, Learner, Pacer, Waiter
from tests.property.pace_model import SLOT_NS, TICK_NS, CapacityModel, PaceModel

NS_PER_S = 1_000_000_000
# No time, inside a tick, a tick, some slots, over the border between near and far, a day.
STEPS = st.one_of(
    st.just(0),
    st.integers(1, 2 * TICK_NS),
    st.integers(1, 300).map(lambda n: n * SLOT_NS // 3),
    st.sampled_from([64 * SLOT_NS, 4096 * SLOT_NS - 1, 4096 * SLOT_NS, 86_400 * NS_PER_S]),
)
AHEAD = st.one_of(
    st.integers(-3, 40).map(lambda n: n * SLOT_NS // 2),
    st.integers(0, 5000 * SLOT_NS),
    st.integers(4090 * SLOT_NS, 4250 * SLOT_NS),
    st.sampled_from([600 * NS_PER_S, 64 * 4094 * SLOT_NS, 64 * 4096 * SLOT_NS, 2**63 - 1]),
)
LAST_SLOT_NS = 2**60  # the slots' numbers begin anew here


class PaceMachine(RuleBasedStateMachine):
    @initialize(
        start=st.one_of(
            st.integers(0, 10**15),
            st.integers(0, 100).map(lambda n: n * 64 * SLOT_NS),
            st.integers(LAST_SLOT_NS - 5000 * SLOT_NS, LAST_SLOT_NS),
        ),
        mode=st.sampled_from([PACED, PACED, EVEN]),
        tau=st.sampled_from([0, 1, 100 * NS_PER_S, 3 * 3600 * NS_PER_S]),
        floor=st.sampled_from([1, CALL_A_SECOND]),
    )
    def start(self, start: int, mode: int, tau: int, floor: int) -> None:
        self.now = start
        self.pacer, self.model = Pacer(mode, tau, floor), PaceModel(mode, tau, floor)
        self.added: list[tuple[int, int]] = []  # slot, calls
        self.waiters: list[tuple[Waiter, int]] = []  # each with its slot

    @rule(step=STEPS, ahead=AHEAD, calls=st.sampled_from([1, 1, 3, 1000, 10**6]))
    def add(self, step: int, ahead: int, calls: int) -> None:
        self.now += step
        due = min(self.now + ahead, 2**63 - 1)
        slot = self.model.add(self.now, due, calls)
        assert self.pacer.add(self.now, due, calls) == slot % 2**32
        assert (slot + 1) * SLOT_NS <= max(due, self.now) + SLOT_NS, "a call counted after its due time would be late"
        self.added.append((slot, calls))

    @precondition(lambda self: self.added)
    @rule(pick=st.integers(0, 1000), part=st.booleans())
    def remove(self, pick: int, part: bool) -> None:
        slot, calls = self.added.pop(pick % len(self.added))
        gone = (calls + 1) // 2 if part else calls
        if gone < calls:
            self.added.append((slot, calls - gone))
        self.model.remove(slot, gone)
        self.pacer.remove(slot % 2**32, gone)

    @rule(step=STEPS, aheads=st.lists(AHEAD, min_size=1, max_size=4))
    def wait(self, step: int, aheads: list[int]) -> None:
        for ahead in aheads:
            self.add(step, ahead, 1)
            self.waiters.append((Waiter(), self.added.pop()[0]))
            self.place(*self.waiters[-1])

    def place(self, waiter: Waiter, slot: int) -> None:
        self.pacer.wait(self.now, waiter, slot % 2**32)
        self.model.wait(self.now, waiter, slot)

    @precondition(lambda self: self.waiters)
    @rule(pick=st.integers(0, 1000), again=st.booleans())
    def wait_no_more(self, pick: int, again: bool) -> None:
        waiter, slot = self.waiters.pop(pick % len(self.waiters))
        self.pacer.wait_no_more(waiter)
        self.model.wait_no_more(waiter)
        if again:
            self.place(waiter, slot)
            self.waiters.append((waiter, slot))
        else:
            self.added.append((slot, 1))

    @rule(step=STEPS)
    def when(self, step: int) -> None:
        self.now += step
        assert self.pacer.when(self.now) == self.model.when(self.now)

    @rule(rate=st.sampled_from([1, CALL_A_SECOND, 100 * CALL_A_SECOND, FASTEST]))
    def capacity(self, rate: int) -> None:
        self.pacer.ceiling = self.model.ceiling = rate

    @rule(calls=st.integers(1, 20))
    def follow(self, calls: int) -> None:
        """What the core does: earliest due first, each call when it may, and a little late."""
        for _ in range(calls):
            when = self.pacer.when(self.now)
            assert when == self.model.when(self.now)
            assert when == 0 or when > self.now
            self.now = max(self.now, -(-when // 2**20) * 2**20)
            if when == 0 and self.added:
                self.added.sort()
                slot, n = self.added[0]
                self.added[:1] = [(slot, n - 1)] if n > 1 else []
                self.model.remove(slot, 1)
                self.pacer.remove(slot % 2**32, 1)
                self.model.leave(self.now)
                self.pacer.leave(self.now)

    @invariant()
    def same(self) -> None:
        assert self.pacer.first() is self.model.first()
        for name in ("work", "need", "rate", "state", "ceiling"):
            assert getattr(self.pacer, name) == getattr(self.model, name), name
        for slot, _ in self.added[-3:]:
            assert self.pacer.expects(slot % 2**32) == self.model.expects(slot)


TestPace = PaceMachine.TestCase
TestPace.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, print_blob=True)


@settings(max_examples=100, deadline=None)
@given(
    slots=st.integers(1, 4),
    takes=st.lists(st.sampled_from([0, 1, 10**6, NS_PER_S, 2**35, 2**38]), min_size=1, max_size=4),
    calls=st.lists(st.booleans(), max_size=1500),
)
def test_capacity_is_that_of_a_plain_model(slots: int, takes: list[int], calls: list[bool]) -> None:
    learner, model, now = Learner(slots), CapacityModel(slots), 0
    for number, starts in enumerate(calls):
        now += takes[number % len(takes)]
        if starts and model.in_flight < slots:
            learner.start(now)
            model.start(now)
        elif model.in_flight:
            learner.end(now)
            model.end(now)
        assert learner.rate == model.rate(slots)
