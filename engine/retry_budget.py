"""How many retries a channel may make, so that an outage does not use up everybody's attempts (pure).

In: calls as they are made and answered, retries that want to go. Out: may they.
Invariant: retries that fail <= ``per_s`` x time + ``percent`` of first calls + those that succeed, and one group more.
Never: holds retries back while half of them succeed: each that does earns two, so what waited leaves ever faster once
the platform is well.

After Finagle's retry budget (retries earned by first calls, and a floor) and gRPC's retry throttling (success earns).
What is earned and not spent fades within ``FADE_NS``: a quiet hour is no leave to storm.
"""

from __future__ import annotations

from math import exp, expm1

NS_PER_S = 1_000_000_000
FADE_NS = 10 * NS_PER_S
EARNED_BACK = 2


class RetryBudget:
    """One tier's on one channel. Counts recipients. Cost: about 1 us a question."""

    def __init__(self, percent: int, per_s: int, now_ns: int) -> None:
        self._share = percent / 100
        self._per_s = per_s
        self._at_ns = now_ns
        self._tokens = self._steady = per_s * FADE_NS / NS_PER_S  # what the floor alone comes to
        self._earned = 0.0  # since then, evenly

    def earn(self, first: int, again: int) -> None:
        """``first`` first calls were made; ``again`` retries got an answer, yes or no. Cost: 0.1 us."""
        self._earned += self._share * first + EARNED_BACK * again

    def spend(self, now_ns: int, count: int) -> bool:
        """Whether so many may be tried again, all or none. A group larger than what is left goes on credit: else it
        would wait for ever."""
        self._pass(now_ns)
        if self._tokens <= 0:
            return False
        self._tokens -= count
        return True

    def tokens(self, now_ns: int) -> float:
        """What may be spent; below 0: owed."""
        self._pass(now_ns)
        return self._tokens

    def _pass(self, now_ns: int) -> None:
        """Towards what the floor comes to: what is more fades, what is less is earned by the second. What calls have
        earned meanwhile has faded as if they had come evenly."""
        passed_ns = max(now_ns - self._at_ns, 0)
        self._at_ns += passed_ns
        above = self._tokens - self._steady
        if above > 0:
            self._tokens = self._steady + above * exp(-passed_ns / FADE_NS)
        else:
            self._tokens = min(self._tokens + self._per_s * passed_ns / NS_PER_S, self._steady)
        if self._earned:
            fades = passed_ns / FADE_NS
            self._tokens += self._earned * (-expm1(-fades) / fades if fades else 1.0)
            self._earned = 0.0
