"""Stage settle (pure): what a call's answer means for each of its recipients.

In: the call's result, the attempts each recipient has had, the channel's retry policy, the time, a random number.
Out: who has ended and how, who is tried again and when, and until when the account must rest.
Invariant: every recipient of the batch stands in exactly one ending or one retry.
Never: ends anybody for what may pass while attempts are left; age is the core's business (deadline).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from engine.config import Retry
from engine.drivers import Action, CallResult, Verdict
from engine.send import Outcome

NS_PER_S = 1_000_000_000
PARK_NS = 60 * NS_PER_S  # when the platform does not say how long
LEAST_PARK_NS = NS_PER_S  # a rest is no attempt, so nothing else bounds how often it is asked for
MOST_AFTER_S = 86_400.0  # what a platform may ask for; its number is not ours to trust

DEAD = Action.DEAD  # Python 3.11 takes a microsecond to find an enum's member
ENDINGS = {Action.ACCEPTED: Outcome.ACCEPTED, Action.FAILED: Outcome.FAILED, Action.DEAD: Outcome.DEAD}


class Ending(Struct, frozen=True, gc=False):
    """These recipients (indices in the batch) have ended."""

    outcome: Outcome
    code: str
    reason: str
    who: Sequence[int]
    declined: bool = False  # of the dead: as in Again


class Again(Struct, frozen=True, gc=False):
    """These are to be tried again at ``at_ns``; ``counts``: the call was an attempt of theirs; ``declined``: the
    platform took the call, and answered that it reached none of them."""

    at_ns: int
    counts: bool
    reason: str
    who: Sequence[int]
    declined: bool = False


class Settlement(Struct, gc=False):
    """All of a batch."""

    endings: list[Ending]
    again: list[Again]
    rest_until_ns: int | None = None  # nothing to this account before


def backoff_ns(attempt: int, policy: Retry, jitter: float) -> int:
    """How long after attempt number ``attempt`` (from 0): doubles from ``first`` to ``most``, the upper half random.

    ``jitter`` in [0, 1). Half is kept so that a retry never comes at once, half is spread so that a burst of failures
    does not come back as a burst.
    """
    ceiling = min(policy.most, policy.first << min(attempt, 40))
    return int(ceiling * (1 + jitter) / 2)


def settle(
    result: CallResult,
    attempts: Sequence[int],
    policy: Retry,
    repeats: bool,
    now_ns: int,
    jitter: float,
    unsure: bool = False,
) -> Settlement:
    """``attempts[i]``: calls made for recipient i before this one. ``repeats``: an unknown effect may be repeated.
    ``unsure``: some call may have had its effect, so whom no answer reaches in the end is `unknown`, not dead."""
    if result.whole.action in ENDINGS and not result.exceptions:  # most calls
        return Settlement([_ended(result.whole, range(len(attempts)), result)], [])
    done = Settlement([], [])
    for verdict, who in _by_verdict(result, len(attempts)):
        action = verdict.action
        if action in ENDINGS:
            done.endings.append(_ended(verdict, who, result))
        elif action is Action.UNKNOWN and not repeats:
            done.endings.append(Ending(Outcome.UNKNOWN, verdict.code, verdict.reason, who))
        elif action is Action.PARK:
            rest = PARK_NS if verdict.after_s is None else max(_after_ns(verdict), LEAST_PARK_NS)
            done.rest_until_ns = now_ns + rest
            done.again.append(Again(done.rest_until_ns, False, verdict.reason or verdict.code, who))
        elif action is Action.REFRESH:
            done.again.append(Again(now_ns, False, verdict.reason or verdict.code, who))
        else:
            gives_up = Outcome.UNKNOWN if unsure and verdict is result.whole else Outcome.DEAD
            declined = verdict.refused and verdict is not result.whole
            _retry(done, verdict, who, attempts, policy, now_ns, jitter, gives_up, declined)
    return done


def _ended(verdict: Verdict, who: Sequence[int], result: CallResult) -> Ending:
    return Ending(
        ENDINGS[verdict.action], verdict.code, verdict.reason, who, verdict.action is DEAD and result.answered
    )


def _after_ns(verdict: Verdict) -> int:
    asked = verdict.after_s or 0.0
    return int((asked if 0 <= asked <= MOST_AFTER_S else MOST_AFTER_S) * NS_PER_S)


def _by_verdict(result: CallResult, count: int) -> list[tuple[Verdict, Sequence[int]]]:
    if not result.exceptions:
        return [(result.whole, range(count))]
    groups: dict[Verdict, list[int]] = {}
    for index in range(count):
        groups.setdefault(result.exceptions.get(index, result.whole), []).append(index)
    return list(groups.items())


def _retry(
    done: Settlement,
    verdict: Verdict,
    who: Sequence[int],
    attempts: Sequence[int],
    policy: Retry,
    now_ns: int,
    jitter: float,
    gives_up: Outcome,
    declined: bool,
) -> None:
    wait = _after_ns(verdict)
    by_attempt: dict[int, list[int]] = {}
    for index in who:
        by_attempt.setdefault(attempts[index], []).append(index)
    for attempt, indices in by_attempt.items():
        if attempt + 1 >= policy.attempts:
            reason = f"retries exhausted after {attempt + 1}: {verdict.reason or verdict.code}"
            done.endings.append(Ending(gives_up, verdict.code, reason, indices, declined))
        else:
            at = now_ns + max(wait, backoff_ns(attempt, policy, jitter))
            done.again.append(Again(at, True, verdict.reason or verdict.code, indices, declined))
