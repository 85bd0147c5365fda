"""What a platform counts: calls in windows, calls at once, tokens, messages to one member, chance.

All take the time as integer nanoseconds of one clock that never goes back.
"""

from __future__ import annotations

import random
import secrets
from collections import deque
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from math import exp
from typing import Generic, NamedTuple, TypeVar

from bench.simulator_options import Latency, MemberLimit, Quota

SECOND = 1_000_000_000

Value = TypeVar("Value")


def ns(seconds: float) -> int:
    """Seconds as nanoseconds."""
    return round(seconds * SECOND)


class Window:
    """What was counted in the last ``per_ns``: exactly, for every position of the window [t, t + per_ns)."""

    __slots__ = ("_events", "_total", "per_ns")

    def __init__(self, per_ns: int) -> None:
        self.per_ns = per_ns
        self._events: deque[tuple[int, int]] = deque()
        self._total = 0

    def total(self, now_ns: int) -> int:
        """Counted in (now - per, now]."""
        oldest = now_ns - self.per_ns
        while self._events and self._events[0][0] <= oldest:
            self._total -= self._events.popleft()[1]
        return self._total

    def count(self, now_ns: int, n: int) -> None:
        """Count ``n`` at ``now_ns``."""
        self._events.append((now_ns, n))
        self._total += n

    def room_in(self, now_ns: int) -> int:
        """Nanoseconds until something leaves the window."""
        return self._events[0][0] + self.per_ns - now_ns if self._events else 0


class Refusal(NamedTuple):
    """A call over ``quota``; ``wait_ns`` until one may pass."""

    quota: Quota
    wait_ns: int


class Quotas:
    """The windows of every account and API. A quota changed live starts to count at its change."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str, Quota], Window] = {}
        self._blocked: dict[tuple[str, str], tuple[int, Quota]] = {}

    def take(self, account: str, api: str, quotas: Sequence[Quota], now_ns: int, recipients: int) -> Refusal | None:
        """Count a call in every window, or in none and say which is full."""
        blocked = self._blocked.get((account, api))
        if blocked is not None and now_ns < blocked[0]:
            return Refusal(blocked[1], blocked[0] - now_ns)
        taken = []
        for quota in quotas:
            window = self._windows.get((account, api, quota))
            if window is None:
                window = self._windows[account, api, quota] = Window(ns(quota.per_s))
            n, most = (recipients, quota.recipients) if quota.recipients is not None else (1, quota.calls)
            if window.total(now_ns) + n > (most or 0):
                return self._refuse(account, api, quota, window, now_ns)
            taken.append((window, n))
        for window, n in taken:
            window.count(now_ns, n)
        return None

    def _refuse(self, account: str, api: str, quota: Quota, window: Window, now_ns: int) -> Refusal:
        wait = window.room_in(now_ns)
        if quota.penalty_s:
            wait = ns(quota.penalty_s)
            self._blocked[account, api] = (now_ns + wait, quota)
        return Refusal(quota, wait)


class Members:
    """Who got a message when: most get one, so that is kept as a bare number."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], int | list[int]] = {}

    def over(self, account: str, id: str, limits: Sequence[MemberLimit], now_ns: int) -> bool:
        """Whether one more message to ``id`` is over a limit; counted if it is not."""
        key = (account, id)
        times = self._times.get(key)
        if times is None:
            self._times[key] = now_ns
            return any(limit.messages < 1 for limit in limits)
        if isinstance(times, int):
            times = self._times[key] = [times]
        longest = now_ns - max(ns(limit.per_s) for limit in limits)
        while times and times[0] <= longest:
            del times[0]
        for limit in limits:
            if len(times) >= limit.messages and times[-limit.messages] > now_ns - ns(limit.per_s):
                return True
        times.append(now_ns)
        return False


class Remembered(Generic[Value]):
    """Answers given in the last ``life_ns`` nanoseconds, by key."""

    def __init__(self, life_ns: int) -> None:
        self.life_ns = life_ns
        self._kept: dict[Hashable, tuple[int, Value]] = {}

    def get(self, key: Hashable, now_ns: int) -> Value | None:
        """What was kept, if it is young enough."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] + self.life_ns > now_ns else None

    def keep(self, key: Hashable, value: Value, now_ns: int) -> None:
        """Keep it, and forget what is too old."""
        self._kept.pop(key, None)
        self._kept[key] = (now_ns, value)
        while (oldest := next(iter(self._kept.items())))[1][0] + self.life_ns <= now_ns:
            del self._kept[oldest[0]]


class Issued(NamedTuple):
    """A token: good for ``account`` until ``ends_ns``."""

    value: str
    account: str
    issued_ns: int
    ends_ns: int


class Tokens:
    """Tokens of one platform. None is ever forgotten: an expired one is told from a foreign one."""

    def __init__(self) -> None:
        self._secret = secrets.token_hex(8)
        self._known: dict[str, Issued] = {}
        self._newest: dict[tuple[str, str], Issued] = {}
        self._replaced: dict[str, int] = {}  # value -> when another took its place for good

    def get(self, account: str, source: str, life_ns: int, now_ns: int, renew_ns: int = 0) -> Issued:
        """The same token again while it has more than ``renew_ns`` to live, else a new one; the old lives on."""
        token = self._newest.get((account, source))
        if token is None or token.ends_ns - now_ns <= renew_ns:
            token = self.new(account, source, life_ns, now_ns)
        return token

    def new(self, account: str, source: str, life_ns: int, now_ns: int, overlap_ns: int | None = None) -> Issued:
        """A new token. The one before ends in ``overlap_ns`` (None: when it would have)."""
        before = self._newest.get((account, source))
        if before is not None and overlap_ns is not None:
            self._replaced.setdefault(before.value, now_ns + overlap_ns)
        token = Issued(f"{self._secret}{len(self._known):016x}", account, now_ns, now_ns + life_ns)
        self._known[token.value] = self._newest[account, source] = token
        return token

    def account(self, value: str, now_ns: int) -> str | int:
        """Whose token it is, or the error code: 40014 never issued, 42001 expired, 40001 replaced."""
        token = self._known.get(value)
        if token is None:
            return 40014
        if now_ns >= token.ends_ns:
            return 42001
        return 40001 if self._replaced and now_ns >= self._replaced.get(value, token.ends_ns) else token.account

    def expire(self) -> None:
        """Every token ends now."""
        self._known = {value: token._replace(ends_ns=0) for value, token in self._known.items()}
        self._newest.clear()


def chosen(share: float, id: str, salt: str) -> bool:
    """Whether ``id`` is in the ``share`` of all ids that ``salt`` chooses: the same answer in every run."""
    if share <= 0:
        return False
    digest = blake2b(id.encode(errors="surrogatepass"), digest_size=8, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def sample(latency: Latency, chance: random.Random) -> float:
    """One latency in seconds."""
    if latency.kind == "fixed":
        return latency.median_s
    return min(max(latency.median_s * exp(latency.sigma * chance.gauss(0, 1)), latency.min_s), latency.max_s)
