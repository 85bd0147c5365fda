"""When a consumer counts as stuck."""

from __future__ import annotations

from engine.assignment import STUCK_NS, Stuck
from engine.counters import Counters
from engine.send import Tier

BASIC = Tier.BASIC


def test_records_wait_and_none_comes() -> None:
    counters = Counters()
    stuck = Stuck(BASIC, counters, 0)
    assert not stuck.look(0, True, 1)
    assert not stuck.look(5, True, 2)
    assert not stuck.look(5, True, STUCK_NS)
    assert stuck.look(5, True, STUCK_NS + 2)
    assert not stuck.look(5, True, STUCK_NS + 3), "once"
    counters.consumed_sends[BASIC] += 1
    assert not stuck.look(5, True, 4 * STUCK_NS)


def test_not_while_they_are_not_wanted_or_there_are_none_but_what_transactions_leave() -> None:
    stuck = Stuck(BASIC, Counters(), 0)
    for turn in range(10):
        assert not stuck.look(1_000, False, turn * STUCK_NS), "the budget is full"
    assert not stuck.look(1, True, 10 * STUCK_NS)
    stuck = Stuck(BASIC, Counters(), 0)
    for turn in range(10):
        assert not stuck.look(1, True, turn * STUCK_NS), "a marker at the end"


def test_what_is_done_is_not_committed() -> None:
    counters = Counters()
    stuck = Stuck(BASIC, counters, 0)
    counters.told[BASIC] = 10
    assert not stuck.look(0, True, 1)
    assert stuck.look(0, True, STUCK_NS + 2)
    counters.committed[BASIC] = 4
    assert not stuck.look(0, True, 3 * STUCK_NS)
    counters.committed[BASIC] = 10
    for turn in range(4, 9):
        assert not stuck.look(0, True, turn * STUCK_NS)
