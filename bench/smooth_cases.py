"""What arrives in each case of ``smooth``: a day of mass sends, drawn from a seed.

Times are ns from the day's start. A call is what leaves; where sends do not merge a recipient is a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import NamedTuple

from bench.optimum import Arrival, Work, cut

S = 10**9
DAY_S = 86_400
DUE_NS = 600 * S  # after arrival: the default of `basic`
GRAIN_NS = S // 100  # arrivals closer than this come together, as intake takes them in
CALLS_A_DAY = 1_000_000
CAMPAIGNS = 200
TENANTS = 50
# Of a day's mean by hour, from midnight: three times as much in the evening (DAGOR, SoCC 2018).
HOURS = (
    *(0.2, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.6, 0.9, 1.1, 1.2, 1.2),
    *(1.3, 1.1, 0.9, 0.9, 0.9, 1.1, 1.6, 2.9, 3.0, 2.3, 1.3, 0.6),
)
NEW_YEAR = 10.0  # times the mean, at midnight
LINGER_NS = S // 5


class Sends(NamedTuple):
    """Recipients of one campaign that arrive together."""

    at: int
    tenant: int
    campaign: int
    recipients: int


class Case(NamedTuple):
    """Sends by arrival, and how many recipients a call takes at most."""

    sends: list[Sends]
    cap: int = 1

    def work(self) -> list[Work]:
        """The calls as they would be cut with full information."""
        if self.cap == 1:
            calls: Counter[int] = Counter()
            for each in self.sends:
                calls[each.at] += each.recipients
            return [Work(at, at + DUE_NS, n) for at, n in calls.items()]
        flows: dict[int, list[Arrival]] = {}
        for each in self.sends:
            flows.setdefault(each.campaign, []).extend([Arrival(each.at, each.at + DUE_NS)] * each.recipients)
        return [work for flow in flows.values() for work in cut(flow, self.cap)]


def grouped(singles: Iterable[tuple[int, int, int]]) -> list[Sends]:
    """Sends of one recipient (at, tenant, campaign) by time, those of a campaign within a grain as one."""
    counts = Counter((at // GRAIN_NS, tenant, campaign) for at, tenant, campaign in singles)
    return [Sends(at * GRAIN_NS, tenant, campaign, n) for (at, tenant, campaign), n in sorted(counts.items())]


def equal(random: Random) -> Case:
    """Equal campaigns at random starts."""
    size = CALLS_A_DAY // CAMPAIGNS
    return Case(sorted(Sends(random.randrange(DAY_S * S), n, n, size) for n in range(CAMPAIGNS)))


def lognormal(random: Random) -> Case:
    """Campaigns at random starts, a few of them most of the day."""
    sizes = [random.lognormvariate(0.0, 1.5) for _ in range(CAMPAIGNS)]
    calls = [max(1, round(size * CALLS_A_DAY / sum(sizes))) for size in sizes]
    return Case(sorted(Sends(random.randrange(DAY_S * S), n, n, size) for n, size in enumerate(calls)))


def flash(random: Random) -> Case:
    """Crowds that come at once: 20 tenants in the same moment, three times a day."""
    sends = []
    for crowd, hour in enumerate((9, 13, 20)):
        at = (hour * 3600 + random.randrange(1800)) * S
        sends += [Sends(at, n, 20 * crowd + n, random.randrange(5_000, 15_000)) for n in range(20)]
    return Case(sends)


def bursts(random: Random, spread_s: int, hours: Iterable[float]) -> Case:
    """A mass send a call, of 50 tenants; each hour's within ``spread_s`` of its top."""

    def sends(draw: Callable[[], float]) -> Iterator[tuple[int, int, int]]:
        for hour, share in enumerate(hours):
            for _ in range(round(share * CALLS_A_DAY / 24)):
                tenant = int(draw() ** 2 * TENANTS)
                yield hour * 3600 * S + int(draw() * spread_s * S), tenant, hour * TENANTS + tenant

    return Case(grouped(sends(random.random)))


def merging(random: Random) -> Case:
    """Sends of one recipient that merge, ten to a call: 10 campaigns an hour, each over a minute."""

    def sends(draw: Callable[[], float]) -> Iterator[tuple[int, int, int]]:
        for hour, share in enumerate(HOURS):
            for n in range(10):
                start = int((hour + draw() * 0.9) * 3600 * S)
                for _ in range(round(share * 2000)):
                    yield start + int(draw() * 60 * S), n % 7, hour * 10 + n

    return Case(grouped(sends(random.random)), cap=10)


CASES: dict[str, Callable[[Random], Case]] = {
    "equal": equal,
    "lognormal": lognormal,
    "flash": flash,
    "day_30s": lambda random: bursts(random, 30, HOURS),
    "day_60s": lambda random: bursts(random, 60, HOURS),
    "day_120s": lambda random: bursts(random, 120, HOURS),
    "new_year_30s": lambda random: bursts(random, 30, (NEW_YEAR, *HOURS[1:])),
    "merging": merging,
}
