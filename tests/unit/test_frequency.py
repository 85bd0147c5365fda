"""Who of a call got a message, and when those who wait come back together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ChannelConfig, Frequency, Span
from engine.drivers import Action, CallResult, Verdict
from engine.frequency import _file_name, _rounded, _told_apart, rows_by_wait
from engine.shares import frequency_of

IDS = ["a", "b", "c"]
OK = Verdict(Action.ACCEPTED)


@pytest.mark.parametrize(
    ("result", "reached"),
    [
        (CallResult(OK), IDS),
        (CallResult(OK, {1: Verdict(Action.FAILED)}), ["a", "c"]),
        (CallResult(OK, {0: Verdict(Action.RETRY, refused=True), 2: Verdict(Action.RETRY)}), ["b", "c"]),
        (CallResult(Verdict(Action.RETRY)), IDS),
        (CallResult(Verdict(Action.RETRY, refused=True)), []),
        (CallResult(Verdict(Action.UNKNOWN), answered=False), IDS),
        (CallResult(Verdict(Action.RETRY), left=False), []),
        (CallResult(Verdict(Action.PARK)), []),
        (CallResult(Verdict(Action.REFRESH)), []),
        (CallResult(Verdict(Action.DEAD)), []),
        (CallResult(Verdict(Action.DEAD), {1: OK}), ["b"]),
    ],
)
def test_who_may_have_got_it(result: CallResult, reached: list[str]) -> None:
    may, surely_not = _told_apart(IDS, result)
    assert may == reached
    assert sorted(may + surely_not) == IDS


@given(st.integers(0, 2**61), st.integers(1, 2**57))
def test_a_wait_ends_a_little_later_never_sooner(now: int, wait: int) -> None:
    assert 0 <= _rounded(now, now + wait) - (now + wait) <= wait / 32 + 1


def test_those_who_wait_about_as_long_come_back_together() -> None:
    second, now = 10**9, 1_790_000_000 * 10**9
    waits = {row: _rounded(now, now + 50 * second + row * second // 1000) for row in range(1_000)}
    groups = rows_by_wait(waits)
    assert len(groups) <= 3
    assert list(groups) == sorted(groups)
    assert sorted(row for rows in groups.values() for row in rows) == list(range(1_000))


def config(rules: tuple[Frequency, ...] | None = None) -> ChannelConfig:
    return ChannelConfig("wecom.message", "https://x.example", frequency=rules)


def test_a_channels_own_rules_take_the_place_of_the_platforms() -> None:
    assert [(rule.messages, str(rule.per)) for rule in frequency_of(config())] == [(30, "1m"), (1000, "1h")]
    assert frequency_of(config(())) == ()
    own = (Frequency(1, Span.parse("1d")),)
    assert frequency_of(config(own)) == own


def test_every_channel_has_a_file_name_of_its_own() -> None:
    names = ["a", "A", "a/b", "a%2Fb", "é" * 64, "é" * 63 + "x", "..", "x" * 128]
    files = {_file_name(name) for name in names}
    assert len(files) == len(names)
    assert all("/" not in file and len(file) < 100 for file in files)
