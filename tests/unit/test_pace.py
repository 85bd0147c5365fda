"""Pacing by example; tests/property/test_pace.py holds all of it against a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ext.pace import BELOW, CALL_A_SECOND, EVEN, FASTEST, FULL, PACED, Learner, Pacer

NS_PER_S = 1_000_000_000
SLOT_NS = 2**28
TICK_NS = 2**26


def test_a_burst_leaves_at_one_rate_and_in_time() -> None:
    pacer = Pacer(PACED)
    slot = pacer.add(0, 600 * NS_PER_S, 60_000)
    times, now = [], 0
    while pacer.work:
        when = pacer.when(now)
        now = max(now, -(-when // 2**20) * 2**20)
        if when == 0:
            pacer.remove(slot)
            pacer.leave(now)
            times.append(now)
    assert 599 * NS_PER_S < times[-1] <= 600 * NS_PER_S
    seconds = [sum(1 for time in times if time // NS_PER_S == second) for second in range(599)]
    assert 99 <= min(seconds) <= max(seconds) <= 101


def test_what_is_due_now_does_not_wait_for_what_is_due_later() -> None:
    pacer = Pacer(PACED, floor=1)
    pacer.add(0, 600 * NS_PER_S, 600)
    assert pacer.when(0) == 0
    pacer.leave(0)
    assert 0.9 * NS_PER_S < pacer.when(0) < NS_PER_S
    pacer.add(1, 0)
    assert pacer.when(1) == TICK_NS, "to be asked again when the slots may be read again"
    assert pacer.when(TICK_NS) == 0


def test_a_far_due_time_moves_near_just_in_time() -> None:
    pacer = Pacer(PACED, floor=1)
    assert pacer.add(0, 4160 * SLOT_NS) == 4160, "a multiple of 64: its far slot starts there"
    pacer.when(0)
    pacer.when(63 * SLOT_NS)
    assert pacer.need == -(-(10**15) // (4096 * SLOT_NS)), "its near slot is one beyond those there are"
    pacer.when(64 * SLOT_NS)
    assert pacer.need == -(-(10**15) // (4095 * SLOT_NS))


def test_the_ratchet_goes_on_at_a_past_peak_within_bounds_and_forgets_it() -> None:
    tau = 640 * NS_PER_S
    pacer = Pacer(PACED, tau)
    slot = pacer.add(0, 600 * NS_PER_S, 60_000)
    pacer.when(0)
    peak = pacer.rate
    assert 100 * CALL_A_SECOND < peak == pacer.need
    pacer.remove(slot, 12_000)
    pacer.when(9 * NS_PER_S)
    assert pacer.need < 0.9 * pacer.rate, "there is time for less"
    assert pacer.rate == peak
    pacer.remove(slot, 47_999)
    pacer.when(10 * NS_PER_S)
    assert pacer.rate == CALL_A_SECOND > pacer.need, "but not twice as fast as needed: here the floor is more"
    again = pacer.add(tau, tau + 600 * NS_PER_S, 18_000)
    pacer.when(tau)
    assert 0.35 * peak < pacer.rate < 0.37 * peak, "1/e, but for the steps"
    pacer.remove(again, 18_000)
    pacer.when(20 * tau)
    assert pacer.rate == pacer.need > 14 * CALL_A_SECOND, "what is late leaves within a tick"
    pacer.remove(slot, 1)
    pacer.when(21 * tau)
    assert pacer.rate == CALL_A_SECOND, "and is no reason to be fast ever after"


@pytest.mark.parametrize(("ceiling", "state", "rate"), [(1000, BELOW, 100), (130, FULL, 130), (90, FULL, 100)])
def test_near_the_ceiling_calls_leave_at_its_rate(ceiling: int, state: int, rate: int) -> None:
    pacer = Pacer(PACED)
    pacer.ceiling = ceiling * CALL_A_SECOND
    pacer.add(0, 600 * NS_PER_S, 60_000)
    pacer.when(0)
    pacer.leave(0)
    assert pacer.when(0) > 0
    assert pacer.rate == pytest.approx(rate * CALL_A_SECOND, rel=0.01)
    assert pacer.state == state


def test_even_gives_each_call_its_share_of_its_own_time() -> None:
    pacer = Pacer(EVEN, floor=1)
    pacer.add(0, 600 * NS_PER_S, 600)
    pacer.add(0, 300 * NS_PER_S, 600)
    pacer.when(0)
    assert 3 * CALL_A_SECOND <= pacer.rate < 3.02 * CALL_A_SECOND
    pacer.when(300 * NS_PER_S)
    assert pacer.rate > 4 * CALL_A_SECOND, "what should have left must leave"
    pacer.remove(1116, 600)
    pacer.when(301 * NS_PER_S)
    assert CALL_A_SECOND <= pacer.rate < 1.01 * CALL_A_SECOND


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: Pacer(3), "mode"),
        (lambda: Pacer(PACED, -1), "tau_ns"),
        (lambda: Pacer(PACED, 0, 0), "floor"),
        (lambda: Pacer().add(-1, 0), "now_ns"),
        (lambda: Pacer().add(0, 0, 0), "calls"),
        (lambda: Pacer().remove(1, 1), "calls"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        call()


def test_a_ceiling_is_a_rate() -> None:
    with pytest.raises(ValueError, match=r"^ceiling is 0: 1"):
        Pacer().ceiling = 0


def use(learner: Learner, now: int, slots: int, calls: int, takes: int) -> int:
    """That many slots make calls one after another; returns when the last ones end."""
    for _ in range(calls):
        for _ in range(slots):
            learner.start(now)
        now += takes
        for _ in range(slots):
            learner.end(now)
    return now


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_capacity_is_what_all_slots_would_deliver(slots: int) -> None:
    learner = Learner(8)
    assert learner.rate == FASTEST, "nothing is known"
    now = use(learner, 0, slots, 100, NS_PER_S // 20)
    assert learner.rate == 8 * 20 * CALL_A_SECOND
    use(learner, now, slots, 2000, NS_PER_S // 4)
    assert learner.rate == pytest.approx(8 * 4 * CALL_A_SECOND, rel=0.01), "what was long ago is forgotten"


def test_a_platform_that_hangs_has_no_capacity_and_finds_it_again() -> None:
    learner = Learner(4)
    now = use(learner, 0, 4, 100, NS_PER_S // 100)
    for _ in range(4):
        learner.start(now)
    for _ in range(600):
        now += NS_PER_S
        learner.end(now)
        learner.start(now)
    assert learner.rate == pytest.approx(CALL_A_SECOND, rel=0.01)
    for _ in range(4):
        learner.end(now)
    use(learner, now, 4, 1000, NS_PER_S // 100)
    assert learner.rate == pytest.approx(400 * CALL_A_SECOND, rel=0.2)
    with pytest.raises(ValueError, match="no call is in flight"):
        learner.end(now)


def test_a_day_without_an_answer_is_the_least_capacity() -> None:
    learner = Learner(2)
    now = use(learner, 0, 2, 100, NS_PER_S // 100)
    learner.start(now)
    for day in range(40):
        learner.start(now + day * 86_400 * NS_PER_S)
        learner.end(now + (day + 1) * 86_400 * NS_PER_S)
    assert learner.rate == CALL_A_SECOND
    learner.start(now + 41 * 86_400 * NS_PER_S)
    with pytest.raises(ValueError, match="all slots are in use"):
        learner.start(now + 41 * 86_400 * NS_PER_S)
