"""Whether calls may leave: not while too much that ended is not committed, and not while the process may be a zombie,
that is, after a stop long enough for the group to have given its partitions to others (pure but for the clock it is
given).

In: looks at the clock, often; what ended and what of it is committed (engine.counters). Out: may a tier's calls leave.
Invariant: after a gap of a third of the session timeout or more between two looks, none of a tier's calls leaves until
each of the tier's groups has taken a commit that was begun after the gap.
Never: stops what is on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from engine.clock import Clock
from engine.counters import Counters
from engine.send import TIERS, Tier


class Fence:
    """One per process."""

    def __init__(self, budgets: Sequence[int], session_ns: int, counters: Counters, clock: Clock) -> None:
        """``budgets``: by tier, recipients that may have ended and not be committed."""
        self._budgets = budgets
        self._longest_ns = session_ns // 3
        self._counters = counters
        self._clock = clock
        self._last_ns = clock.now_ns()
        self._gaps = 0
        self._groups: list[list[str]] = [[] for _ in Tier]
        self._proven: dict[str, int] = {}  # how many gaps there had been when its last commit that succeeded was begun
        self._least: list[int | float] = [inf for _ in Tier]  # of a tier's groups; every call asks

    def add(self, tier: Tier, group: str) -> None:
        """A group whose partitions hold sends of the tier."""
        self._groups[tier].append(group)
        self.proven(group, self._gaps)

    def look(self) -> int:
        """To be called at least every few hundred ms; how many gaps there have been."""
        now = self._clock.now_ns()
        if now - self._last_ns >= self._longest_ns:
            self._gaps += 1
        self._last_ns = now
        return self._gaps

    def doubtful(self, tier: Tier) -> bool:
        """The process stood still, and not every group of the tier has taken a commit of it since."""
        return self._least[tier] < self.look()

    def unproven(self, group: str) -> bool:
        """The same of one group."""
        return self._proven[group] < self.look()

    def certain(self) -> bool:
        """No tier is doubtful."""
        return min(self._least) >= self.look()

    def shut(self) -> list[Tier]:
        """The tiers of which no call is to be begun."""
        gaps, uncommitted = self.look(), self._counters.uncommitted
        return [tier for tier in TIERS if self._least[tier] < gaps or uncommitted(tier) >= self._budgets[tier]]

    def filling(self, tier: Tier) -> bool:
        """Of what may have ended and not be committed, half has."""
        return 2 * self._counters.uncommitted(tier) >= self._budgets[tier]

    def proven(self, group: str, gaps: int) -> None:
        """A commit of it has succeeded that was begun when ``look`` said ``gaps``."""
        self._proven[group] = gaps
        self._least = [min((self._proven[name] for name in names), default=inf) for names in self._groups]
