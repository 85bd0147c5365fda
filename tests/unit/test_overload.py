"""What a channel refuses when it cannot keep up: a queue with a server, on a virtual clock."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from engine.overload import LEVELS, NO_LOAD, Gate, Load, level_of
from engine.send import Tier

S = 1_000_000_000
MOST = 60 * S
SLACK = 600 * S


@dataclass
class Server:
    """Serves so many recipients a second of basic, first come first served."""

    per_s: int
    gate: Gate = field(default_factory=lambda: Gate(MOST))
    now: int = 0
    left: int = 0
    queue: deque[tuple[int, int]] = field(default_factory=deque)  # (due, n)
    worst_ns: int = 0
    levels: set[int] = field(default_factory=set)  # refused

    def second(self, arrivals: int, chance: random.Random, slack: int = SLACK) -> None:
        """``arrivals`` sends of ten recipients, and a second's service."""
        for _ in range(arrivals):
            level = LEVELS + chance.randrange(LEVELS)
            if self.gate.admits(level, 10, slack):
                self.queue.append((self.now + slack, 10))
            else:
                self.levels.add(level)
        self.now += S
        room = self.per_s
        while self.queue and room > 0:
            due, n = self.queue.popleft()
            late = max(self.now - due, 0)
            self.worst_ns = max(self.worst_ns, late)
            self.left += n
            room -= n
        if self.gate.due(self.now):
            waiting = sum(n for _, n in self.queue)
            self.gate.turn(self.now, [NO_LOAD, Load(waiting, self.left, True)])


def test_nothing_is_refused_within_capacity_however_deep_the_queue() -> None:
    server, chance = Server(1_000), random.Random(1)
    server.second(50_000, chance)  # 500 s of work, due in 600 s
    for _ in range(900):
        server.second(80, chance)
    assert server.gate.refused == [0, 0]
    assert server.gate.level == 2 * LEVELS - 1


def test_twice_the_capacity_is_admitted_so_far_that_lateness_stays_near_the_bound() -> None:
    server, chance = Server(1_000), random.Random(2)
    for _ in range(4_000):
        server.second(200, chance)
    assert MOST / 2 < server.worst_ns < MOST * 1.5
    served = server.left / (1_000 * 4_000)
    assert served > 0.99, "what could be served was"
    assert server.gate.refused[1] > 0


def test_when_the_surge_is_over_everybody_comes_in_again() -> None:
    server, chance = Server(1_000), random.Random(3)
    for _ in range(2_000):
        server.second(200, chance)
    assert server.gate.refused[1]
    for _ in range(1_500):
        server.second(50, chance)
    refused = server.gate.refused
    for _ in range(100):
        server.second(50, chance)
    assert server.gate.refused == refused


def test_basic_is_refused_before_template() -> None:
    gate = Gate(MOST)
    now = 0
    load = Load(10_000_000, 0, True)
    for second in range(120):
        for level in range(2 * LEVELS):
            gate.admits(level, 10, 0)
        now += S
        load = Load(10_000_000, load.left + 100, True)
        gate.turn(now, [NO_LOAD, load])
        if gate.level >= LEVELS:
            assert all(gate.admits(level, 0, 0) for level in range(LEVELS)), second
    assert gate.level < LEVELS, "at last template too"


def test_a_tier_that_holds_back_refuses_nothing() -> None:
    gate = Gate(MOST)
    for second in range(1, 100):
        assert gate.admits(2 * LEVELS - 1, 1_000_000, SLACK)
        gate.turn(second * S, [NO_LOAD, Load(second * 1_000_000, second, False)])


@pytest.mark.parametrize("tier", [Tier.TEMPLATE, Tier.BASIC])
def test_a_campaign_is_of_one_level_of_its_tier(tier: Tier) -> None:
    levels = {level_of(tier, "t", f"campaign {i}") for i in range(4_000)}
    assert len(levels) == LEVELS
    assert {level // LEVELS for level in levels} == {tier - Tier.TEMPLATE}
    assert level_of(tier, "t", "x") == level_of(tier, "t", "x")


def test_a_window_is_a_second_or_two_thousand_sends() -> None:
    gate = Gate(MOST)
    assert gate.due(0)
    gate.turn(0, [NO_LOAD, NO_LOAD])
    assert not gate.due(S - 1)
    assert gate.due(S)
    for _ in range(2_000):
        gate.admits(0, 1, 0)
    assert gate.due(1)
