"""What the Python stages count, read by engine.metrics at a scrape. Plain integers: an increment costs 30-60 ns.

The core counts what happens inside it (queued, waiting, expired, queue waits); nothing is counted in two places.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from engine.send import Outcome, Tier
from ext.histogram import Histogram

MAX_SERIES = 200
MS = 1_000_000
S = 1_000 * MS
# Upper bounds in ns; they sit on the thresholds service levels are written in.
CALL_EDGES = [n * MS // 2 for n in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)]
STALL_EDGES = [n * MS for n in (1, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000, 30_000)]
WAIT_EDGES = [n * MS for n in (1, 5, 10, 50, 100, 500)] + [
    n * S for n in (1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400)
]


class Counters:
    """One worker's. Recipients unless the name says otherwise; lists are indexed by tier.

    What every call counts is no Counter: those store through a function of Python's.
    """

    def __init__(self) -> None:
        self.consumed_sends = [0, 0, 0]
        self.consumed_bytes = [0, 0, 0]
        self.taken_in = [0, 0, 0]
        self.in_flight = [0, 0, 0]
        self.calls_in_flight = defaultdict[str, int](int)  # calls, by channel
        self.held = [0, 0, 0]  # waiting for a content to be registered
        self.given_back = [0, 0, 0]  # of partitions taken away
        self.moving = [0, 0, 0]  # on their way to a later topic
        self.moved: Counter[tuple[Tier, str]] = Counter()  # there, by reason
        self.invalid: Counter[tuple[Tier, str]] = Counter()  # sends, by reason
        self.unknown_keys = 0
        self.replayed_twice = [0, 0, 0]  # records: another one of the same move came before
        self.outcomes = defaultdict[tuple[Tier, str, Outcome], int](int)
        self.attempts = defaultdict[tuple[str, str], int](int)  # calls, by (channel, result)
        self.retries: Counter[tuple[str, str]] = Counter()  # by (channel, reason)
        self.series_dropped = 0
        self.throttled: Counter[str] = Counter()  # calls answered with "rest", by channel
        self.already_done = [0, 0, 0]  # records read again of which a commit's map says that they are complete
        self.ended = [0, 0, 0]  # or moved: what a commit is to cover
        self.told = [0, 0, 0]  # of those, receipts acknowledged and in their ledger
        self.committed = [0, 0, 0]  # of those, covered by a commit
        self.unread_maps: Counter[tuple[Tier, str]] = Counter()  # by reason
        self.recovered: Counter[tuple[str, str]] = Counter()  # by (channel, how): see docs/operations.md
        self.renewed = [0, 0, 0]  # consumers made anew because they were stuck
        self.rebalances: Counter[tuple[Tier, str]] = Counter()
        self.commit_errors = [0, 0, 0]
        self.backpressure_ns: Counter[str] = Counter()
        self.loop_stall = Histogram(STALL_EDGES)
        self.call_duration = defaultdict[tuple[Tier, str], Histogram](lambda: Histogram(CALL_EDGES))
        # From first seen to ended, ns, weighted by recipients.
        self.end_to_end = defaultdict[tuple[Tier, str], Histogram](lambda: Histogram(WAIT_EDGES))
        self.commit_duration = [Histogram(CALL_EDGES) for _ in Tier]

    def end(self, tier: Tier, channel: str, outcome: Outcome, count: int) -> None:
        """So many have ended; what tells of them is queued."""
        self.outcomes[tier, channel, outcome] += count
        self.ended[tier] += count

    def move(self, tier: Tier, reason: str, count: int) -> None:
        """So many stand on a later topic now."""
        self.moved[tier, reason] += count
        self.ended[tier] += count

    def uncommitted(self, tier: Tier) -> int:
        """Ended or moved, and not covered by a commit."""
        return self.ended[tier] - self.committed[tier]

    def retried(self, channel: str, reason: str, count: int) -> None:
        """``reason`` may be a platform's own words, so only so many are told apart."""
        if (channel, reason) not in self.retries and len(self.retries) >= MAX_SERIES:
            self.series_dropped += 1
            reason = "_other"
        self.retries[channel, reason] += count

    def call_took(self, tier: Tier, channel: str, took_ns: int) -> None:
        """One platform call."""
        self.call_duration[tier, channel].observe(took_ns)
