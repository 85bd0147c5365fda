"""Days and months as a platform's calendar has them, and how much of a limit is granted at once (pure).

In: a time zone, a wall time. Out: which period it is and when it and the next one end. A day has 23, 24 or 25 hours.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

MS_PER_S = 1_000
NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S
# The platform's clock and ours differ by less, or a use near the end of a period may count in the wrong one.
GUARD_MS = 1_000


class Period(NamedTuple):
    """One day or month; ms since the epoch."""

    number: int  # one more than that of the period before
    starts_ms: int
    ends_ms: int
    next_ends_ms: int


def period_at(zone: str, monthly: bool, wall_ms: int) -> Period:
    """The period that ``wall_ms`` lies in. Raises ZoneInfoNotFoundError."""
    place = ZoneInfo(zone)
    today = datetime.fromtimestamp(wall_ms / MS_PER_S, UTC).astimezone(place).date()
    first = today.replace(day=1) if monthly else today
    number = first.year * 12 + first.month if monthly else first.toordinal()
    then = _after(first, monthly)
    starts, ends, next_ends = (_begins(day, place) for day in (first, then, _after(then, monthly)))
    return Period(number, starts, ends, next_ends)


def _after(day: date, monthly: bool) -> date:
    if not monthly:
        return day + timedelta(days=1)
    return day.replace(year=day.year + 1, month=1) if day.month == 12 else day.replace(month=day.month + 1)


def _begins(day: date, place: ZoneInfo) -> int:
    """The day's first instant; where midnight is left out the moment of the change, where it comes twice the first."""
    return round(datetime(day.year, day.month, day.day, tzinfo=place).timestamp() * MS_PER_S)


def portion(number: int, per_ns: int) -> int | None:
    """What may be granted ahead of use, and so what a crash may cost of a limit besides the calls under way: 0.1 % of
    a day or longer, a second of a shorter window. None: the window is no longer than a second, so everything is granted
    and after a crash it is waited for."""
    if per_ns <= NS_PER_S:
        return None
    return number // 1_000 if per_ns >= DAY_NS else number * NS_PER_S // per_ns
