"""Which sends a channel refuses when it cannot keep up (pure).

In: what arrives, what waits and what has left, at a time. Out: admit or refuse.

After DAGOR, WeChat's own overload control (Zhou et al., SoCC 2018): arrivals have levels, here 128 of `template` and
below them 128 of `basic`, drawn from tenant and campaign, so that a campaign is refused as a whole and another one has
new luck. Every second or 2,000 sends the channel is overloaded or not; if it is, the level to which sends are admitted
sinks until 5 % fewer would have been, if not it rises until 1 % of all more would have been. Taken over: levels,
histogram, windows and steps. Changed: WeChat asks whether requests queued for more than 20 ms; here sends may wait for
minutes and mostly do, so the question is whether what arrives now would leave more than `most` after its due time, at
the rate at which sends leave when they leave as fast as they can. A tier that holds back (paced, and not late) tells
nothing.

Invariant: system is never refused. Never: judges by less than ten seconds of a channel's doing all it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from engine.send import Tier

NS_PER_S = 1_000_000_000
LEVELS = 128  # of a tier
WINDOW_NS = NS_PER_S
WINDOW_SENDS = 2_000
TIGHTEN, RELAX = 0.05, 0.01
LEARN_NS = 10 * NS_PER_S  # how long a rate is watched before it says something, and at least remembered


class Load(NamedTuple):
    """One tier of a channel, recipients; ``left`` since the start."""

    waiting: int
    left: int
    flat_out: bool  # what waits leaves as fast as it can


NO_LOAD = Load(0, 0, False)


def level_of(tier: Tier, tenant: str, campaign: str) -> int:
    """0 is refused last. Of `template` and `basic` only."""
    return (tier - Tier.TEMPLATE) * LEVELS + crc32(f"{tenant}\0{campaign}".encode()) % LEVELS


class Gate:
    """One channel's. Counts recipients, as work does."""

    def __init__(self, most_ns: int) -> None:
        self.refused = 0
        self.level = 2 * LEVELS - 1  # the last one admitted
        self._most_ns = most_ns
        self._since_ns: int | None = None
        self._sends = 0
        self._arrived = [0] * (2 * LEVELS)
        self._slack_ns = [0, 0]  # time to the due time, summed over what arrived, by tier
        self._left = [0, 0]
        self._rates = [0.0, 0.0]  # recipients a second, flat out
        self._watched_ns = [0, 0]  # so long

    def admits(self, level: int, recipients: int, slack_ns: int) -> bool:
        """Whether a send may come in; ``slack_ns``: from now to its due time, 0 when that is past."""
        self._sends += 1
        self._arrived[level] += recipients
        self._slack_ns[level // LEVELS] += max(slack_ns, 0) * recipients
        if level <= self.level:
            return True
        self.refused += recipients
        return False

    def due(self, now_ns: int) -> bool:
        """Whether ``turn`` is to be called now."""
        return self._since_ns is None or self._sends >= WINDOW_SENDS or now_ns - self._since_ns >= WINDOW_NS

    def turn(self, now_ns: int, loads: Sequence[Load]) -> None:
        """The window is over; ``loads``: of template and of basic."""
        passed_ns = now_ns - (now_ns if self._since_ns is None else self._since_ns)
        overloaded = [self._overloaded(tier, loads[tier], passed_ns) for tier in (0, 1)]
        if passed_ns > 0:
            self._move(any(overloaded))
        self._since_ns, self._sends, self._left = now_ns, 0, [load.left for load in loads]
        self._arrived, self._slack_ns = [0] * (2 * LEVELS), [0, 0]

    def _overloaded(self, tier: int, load: Load, passed_ns: int) -> bool:
        if not (load.flat_out and load.waiting and passed_ns):
            return False
        self._watched_ns[tier] = min(self._watched_ns[tier] + passed_ns, max(self._most_ns, LEARN_NS))
        rate = (load.left - self._left[tier]) * NS_PER_S / passed_ns
        self._rates[tier] += passed_ns / self._watched_ns[tier] * (rate - self._rates[tier])
        arrived = sum(self._arrived[tier * LEVELS : (tier + 1) * LEVELS])
        if not arrived or self._watched_ns[tier] < LEARN_NS:
            return False
        # As products, for the rate may be 0.
        slack_ns = self._slack_ns[tier] / arrived
        return load.waiting * NS_PER_S > (self._most_ns + slack_ns) * self._rates[tier]

    def _move(self, overloaded: bool) -> None:
        admitted = sum(self._arrived[: self.level + 1])
        if overloaded:
            wanted = (1 - TIGHTEN) * admitted
            while self.level >= 0 and admitted > wanted:
                admitted -= self._arrived[self.level]
                self.level -= 1
            return
        wanted = admitted + RELAX * sum(self._arrived)
        while self.level < 2 * LEVELS - 1 and admitted < wanted:
            self.level += 1
            admitted += self._arrived[self.level]
