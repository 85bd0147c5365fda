"""Days and months of a platform's calendar, and what is granted at once."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.periods import period_at, portion

S = 1_000_000_000
HOUR_MS = 3_600_000
ZONES = ["Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]


def ms(zone: str, *when: int) -> int:
    """Wall time of a local one."""
    return round(datetime(*when, tzinfo=ZoneInfo(zone)).timestamp() * 1000)  # type: ignore[misc, arg-type]


def test_a_day_in_shanghai() -> None:
    period = period_at("Asia/Shanghai", False, ms("Asia/Shanghai", 2026, 11, 24, 23, 59))
    assert period.starts_ms == ms("Asia/Shanghai", 2026, 11, 24)
    assert period.ends_ms == ms("Asia/Shanghai", 2026, 11, 25)
    assert period.next_ends_ms == ms("Asia/Shanghai", 2026, 11, 26)


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 7, 1), 24)])
def test_days_are_as_long_as_the_clocks_make_them(day: tuple[int, int, int], hours: int) -> None:
    period = period_at("Europe/Berlin", False, ms("Europe/Berlin", *day, 12))
    assert (period.ends_ms - period.starts_ms) == hours * HOUR_MS


def test_a_day_whose_midnight_is_left_out_begins_at_the_change() -> None:
    # On 2018-11-04 clocks in Sao Paulo went from 00:00 to 01:00.
    period = period_at("America/Sao_Paulo", False, ms("America/Sao_Paulo", 2018, 11, 4, 12))
    assert period.starts_ms == ms("UTC", 2018, 11, 4, 3)
    assert period.ends_ms - period.starts_ms == 23 * HOUR_MS


def test_a_month_over_the_end_of_a_year() -> None:
    period = period_at("Asia/Shanghai", True, ms("Asia/Shanghai", 2026, 12, 31, 23))
    assert period.ends_ms == ms("Asia/Shanghai", 2027, 1, 1)
    assert period.next_ends_ms == ms("Asia/Shanghai", 2027, 2, 1)


@given(st.sampled_from(ZONES), st.booleans(), st.integers(0, 4_000_000_000_000))
def test_periods_follow_each_other_without_a_gap(zone: str, monthly: bool, now_ms: int) -> None:
    period = period_at(zone, monthly, now_ms)
    assert period.starts_ms <= now_ms < period.ends_ms
    then = period_at(zone, monthly, period.ends_ms)
    assert then.starts_ms == period.ends_ms
    assert then.number == period.number + 1
    assert then.ends_ms == period.next_ends_ms
    assert period_at(zone, monthly, period.ends_ms - 1) == period


@pytest.mark.parametrize(
    ("number", "per_s", "granted"),
    [(30_000, 86_400, 30), (500, 86_400, 0), (5_000, 30 * 86_400, 5), (10_000, 60, 166), (20, 60, 0), (100, 2, 50)],
)
def test_a_portion_is_a_thousandth_of_a_day_and_a_second_of_less(number: int, per_s: int, granted: int) -> None:
    assert portion(number, per_s * S) == granted


def test_a_window_of_a_second_needs_no_portions() -> None:
    assert portion(100, S) is None
