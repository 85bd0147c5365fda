"""What answers mean for recipients."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.config import Duration, Retry
from engine.drivers import Action, CallResult, Verdict
from engine.send import Outcome
from engine.settle import PARK_NS, backoff_ns, settle

POLICY = Retry(attempts=3, first=Duration(100), most=Duration(1000))
OK = Verdict(Action.ACCEPTED)


def test_one_answer_for_all_is_one_ending() -> None:
    done = settle(CallResult(OK), [0, 0, 0], POLICY, True, 5, 0.0)
    assert [(e.outcome, list(e.who)) for e in done.endings] == [(Outcome.ACCEPTED, [0, 1, 2])]
    assert done.again == []
    assert done.rest_until_ns is None


def test_exceptions_are_told_apart_by_verdict() -> None:
    bad = Verdict(Action.FAILED, "40003", "invalid openid")
    done = settle(CallResult(OK, {1: bad, 3: bad}), [0] * 4, POLICY, True, 5, 0.0)
    assert [(e.outcome, e.code, list(e.who)) for e in done.endings] == [
        (Outcome.ACCEPTED, "", [0, 2]),
        (Outcome.FAILED, "40003", [1, 3]),
    ]


def test_a_retry_waits_for_its_backoff_and_counts() -> None:
    done = settle(CallResult(Verdict(Action.RETRY, "-1")), [0, 1], POLICY, True, 1_000, 0.0)
    assert [(a.at_ns, a.counts, list(a.who)) for a in done.again] == [(1_050, True, [0]), (1_100, True, [1])]


def test_a_retry_never_comes_before_the_platform_says() -> None:
    done = settle(CallResult(Verdict(Action.RETRY, "429", after_s=2.0)), [0], POLICY, True, 0, 0.0)
    assert done.again[0].at_ns == 2_000_000_000


def test_attempts_are_bounded() -> None:
    done = settle(CallResult(Verdict(Action.RETRY, "503", "busy")), [1, 2], POLICY, True, 0, 0.0)
    assert [list(a.who) for a in done.again] == [[0]]
    assert [(e.outcome, e.code, list(e.who)) for e in done.endings] == [(Outcome.DEAD, "503", [1])]
    assert "busy" in done.endings[0].reason


def test_whom_the_platform_declined_is_told_apart() -> None:
    """Else a call with the same recipients has the same name, and gets the same answer."""
    for refused in (False, True):
        verdict = Verdict(Action.RETRY, "retry", "retry", None, refused)
        result = CallResult(OK, {0: verdict, 1: verdict})
        done = settle(result, [2, 0], Retry(attempts=3), True, 0, 0.0)
        assert (done.endings[0].who, done.endings[0].declined) == ([0], refused)
        assert (done.again[0].who, done.again[0].declined) == ([1], refused)
        whole = settle(CallResult(verdict), [0], Retry(), True, 0, 0.0).again[0]
        assert not whole.declined, "a call that was not taken is made again as it was"
    assert settle(CallResult(Verdict(Action.DEAD, "http_400")), [0], Retry(), True, 0, 0.0).endings[0].declined


def test_an_order_to_rest_is_no_attempt() -> None:
    done = settle(CallResult(Verdict(Action.PARK, "45009", after_s=60)), [2], POLICY, True, 7, 0.0)
    assert done.rest_until_ns == 7 + 60_000_000_000
    assert [(a.at_ns, a.counts) for a in done.again] == [(done.rest_until_ns, False)]
    assert settle(CallResult(Verdict(Action.PARK)), [0], POLICY, True, 7, 0.0).rest_until_ns == 7 + PARK_NS


def test_an_unknown_effect_is_repeated_only_where_repeats_are_allowed() -> None:
    unknown = CallResult(Verdict(Action.UNKNOWN, "timeout"))
    assert settle(unknown, [0], POLICY, True, 0, 0.0).endings == []
    assert settle(unknown, [0], POLICY, False, 0, 0.0).endings[0].outcome is Outcome.UNKNOWN


@given(attempt=st.integers(0, 250), jitter=st.floats(0, 1, exclude_max=True))
def test_backoff_stays_between_half_and_all_of_its_ceiling(attempt: int, jitter: float) -> None:
    ceiling = min(POLICY.most, POLICY.first * 2**attempt)
    assert ceiling // 2 <= backoff_ns(attempt, POLICY, jitter) <= ceiling


verdicts = st.builds(Verdict, st.sampled_from(list(Action)), st.sampled_from(["", "-1", "45009"]))


@given(
    whole=verdicts,
    exceptions=st.dictionaries(st.integers(0, 9), verdicts),
    attempts=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    repeats=st.booleans(),
)
def test_every_recipient_stands_in_exactly_one_place(
    whole: Verdict, exceptions: dict[int, Verdict], attempts: list[int], repeats: bool
) -> None:
    done = settle(CallResult(whole, exceptions), attempts, POLICY, repeats, 10, 0.5)
    places = [row for ending in done.endings for row in ending.who] + [row for again in done.again for row in again.who]
    assert sorted(places) == list(range(len(attempts)))
    assert all(again.at_ns > 10 or (again.at_ns == 10 and not again.counts) for again in done.again)
