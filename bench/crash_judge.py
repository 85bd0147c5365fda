"""What the crash benchmark is judged by: the simulator's ledger, the receipts, ``surgetank audit``, and the counts of
what each kill left undone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Container, Iterable, Mapping
from typing import Any, NamedTuple

from bench.judge import Origin, Verdict


class Quota(NamedTuple):
    """What one endpoint's account and API may take in any window of ``per_ns``; ``of``: calls or recipients."""

    endpoint: str
    account: str
    of: str
    number: int
    per_ns: int


def over(arrivals: Iterable[tuple[int, int]], number: int, per_ns: int) -> int:
    """At how many arrivals (time, amount) the half-open window that ends there holds more than ``number``. Whatever
    window holds too much can be moved until it ends at an arrival, so none is missed."""
    inside: deque[tuple[int, int]] = deque()
    total = found = 0
    for at, amount in sorted(arrivals):
        inside.append((at, amount))
        total += amount
        while inside[0][0] <= at - per_ns:
            total -= inside.popleft()[1]
        found += total > number
    return found


async def over_quota(calls: AsyncIterator[Any], quotas: Iterable[Quota]) -> int:
    """Over all quotas; of ``calls``, the simulator's, those for tokens and those of an outage count for nothing. Raises
    KeyError for a quota that no call was made under: nothing would be judged."""
    arrived: dict[tuple[str, str], list[tuple[int, int]]] = {}
    async for call in calls:
        if call["recipients"]:
            arrived.setdefault((call["endpoint"], call["account"]), []).append((call["arrived_ns"], call["recipients"]))
    return sum(
        over(((at, n if quota.of == "recipients" else 1) for at, n in found), quota.number, quota.per_ns)
        for quota in quotas
        for found in [arrived[quota.endpoint, quota.account]]
    )


def repeats(arrived: Mapping[str, int], among: Container[str]) -> tuple[int, int]:
    """Deliveries beyond each recipient's first: of those ``among``, and of the others."""
    found = [0, 0]
    for name, times in arrived.items():
        found[name not in among] += times - 1
    return found[0], found[1]


def ended(ends: Mapping[tuple[Origin, str], Iterable[str]], kind: str) -> Counter[str]:
    """How recipients ended whose names begin with ``kind``; those told of in two ways count under both."""
    return Counter(end for (_, name), told in ends.items() if name.startswith(kind) for end in set(told))


def agrees(verdict: Verdict, untold: int, audit: Mapping[str, Any]) -> bool:
    """Whether the audit comes to the same: who was taken in, who is missing, who ended how. Recipients told of in two
    ways (a kill between their two ends) may stand under either."""
    ends = [Counter(told) for told in verdict.ends.values()]
    alike = Counter(next(iter(told)) for told in ends if len(told) == 1)
    unlike = sum(len(told) > 1 for told in ends)
    counted = Counter(audit["outcomes"])
    return (
        audit["recipients"] == verdict.taken_in
        and audit["missing"] == untold
        and not audit["unexplained"]
        and not alike - counted
        and (counted - alike).total() == unlike
    )
