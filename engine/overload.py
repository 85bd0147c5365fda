"""Which sends a channel refuses when it cannot keep up (pure).

In: what arrives, what waits and what has left, at a time. Out: admit or refuse.

After DAGOR, WeChat's own overload control (Zhou et al., SoCC 2018): arrivals have levels, here 128 of `template` and
below them 128 of `basic`, drawn from tenant and campaign, so that a campaign is refused as a whole and another one has
new luck. Every second or 2,000 sends the channel is overloaded or not; if it is, the level to which sends are admitted
sinks until 5 % fewer would have been, if not it rises until 1 % of all more would have been. Taken over: levels,
histogram, windows and steps. Changed: WeChat asks whether requests queued for more than 20 ms; here sends may wait for
minutes and mostly do, so the question is whether what arrives now would leave more than `most` after its due time, at
the rate at which sends leave when they leave as fast as they can. A tier that holds back (paced, and not late) tells
nothing. When nobody waits any more everybody is admitted at once, for WeChat's steps would refuse the first of the
next morning for what happened the night before.

Invariant: system is never refused. Never: judges by less than ten seconds of a channel's doing all it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from engine.send import Tier
from ext.gates import Levels

NS_PER_S = 1_000_000_000
LEVELS = 128  # of a tier
OPEN = 2 * LEVELS - 1  # the level at which everybody is admitted
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


def level_of(tier: Tier, tenant: str, campaign: str | None) -> int:
    """0 is refused last. Of `template` and `basic` only."""
    return (tier - Tier.TEMPLATE) * LEVELS + crc32(f"{tenant}\0{campaign or ''}".encode()) % LEVELS


class Gate(Levels):
    """One channel's. Counts recipients, as work does."""

    def __init__(self, most_ns: int) -> None:
        """``most_ns``: how late what arrives may be foreseen to leave."""
        super().__init__()
        self.refused = [0, 0]  # recipients, of template and of basic
        self.share = 0.0  # of what arrived in the last window, refused
        self._most_ns = most_ns
        self._since_ns: int | None = None
        self._left = [0, 0]
        self._rates = [0.0, 0.0]  # recipients a second, flat out
        self._watched_ns = [0, 0]  # so long

    def due(self, now_ns: int) -> bool:
        """Whether ``turn`` is to be called now."""
        return self._since_ns is None or self.sends >= WINDOW_SENDS or now_ns - self._since_ns >= WINDOW_NS

    def turn(self, now_ns: int, loads: Sequence[Load]) -> None:
        """The window is over; ``loads``: of template and of basic."""
        arrived, slack_ns = self.window()
        self._told(arrived)
        passed_ns = now_ns - (now_ns if self._since_ns is None else self._since_ns)
        overloaded = False
        for tier, load in enumerate(loads):
            came = sum(arrived[tier * LEVELS : (tier + 1) * LEVELS])
            mean_ns = slack_ns[tier] / came if came else 0.0
            overloaded |= self._overloaded(tier, load, passed_ns, came, mean_ns)
        if not any(load.waiting for load in loads):
            self.level = OPEN  # nobody would wait: what was refused in the last rush says nothing about now
        elif passed_ns > 0:
            self._move(overloaded, arrived)
        self._since_ns, self._left = now_ns, [load.left for load in loads]

    def _told(self, arrived: Sequence[int]) -> None:
        """Count what was refused: all that arrived above the level."""
        refused = [sum(arrived[max(tier * LEVELS, self.level + 1) : (tier + 1) * LEVELS]) for tier in (0, 1)]
        self.refused = [before + more for before, more in zip(self.refused, refused, strict=True)]
        self.share = sum(refused) / max(sum(arrived), 1)

    def _overloaded(self, tier: int, load: Load, passed_ns: int, arrived: int, slack_ns: float) -> bool:
        if not (load.flat_out and load.waiting and passed_ns):
            return False
        self._watched_ns[tier] = min(self._watched_ns[tier] + passed_ns, max(self._most_ns, LEARN_NS))
        rate = (load.left - self._left[tier]) * NS_PER_S / passed_ns
        self._rates[tier] += passed_ns / self._watched_ns[tier] * (rate - self._rates[tier])
        if not arrived or self._watched_ns[tier] < LEARN_NS:
            return False
        # As products, for the rate may be 0.
        return load.waiting * NS_PER_S > (self._most_ns + slack_ns) * self._rates[tier]

    def _move(self, overloaded: bool, arrived: Sequence[int]) -> None:
        admitted = sum(arrived[: self.level + 1])
        if overloaded:
            wanted = (1 - TIGHTEN) * admitted
            while self.level >= 0 and admitted > wanted:
                admitted -= arrived[self.level]
                self.level -= 1
            return
        wanted = admitted + RELAX * sum(arrived)
        while self.level < OPEN and admitted < wanted:
            self.level += 1
            admitted += arrived[self.level]
