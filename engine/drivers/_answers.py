"""What answers have in common: HTTP statuses for all, ``errcode`` bodies and access tokens for WeChat and WeCom.

In: a Reply with any bytes. Out: a Verdict, or the decoded body. Never raises for any bytes but in ``token``.

WeChat and WeCom answer HTTP 200 and put the error into the body, so another status comes from something in between (a
proxy, a wrong base_url): 429 and 503 say that the call was not taken; other 5xx leave open whether it was; the rest
refused it unread, and is retried as what an operator can put right, while attempts last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from engine.config import ChannelConfig
from engine.drivers import Action, Reply, Token, Verdict
from engine.errors import PlatformRefused, PlatformUnavailable

QUOTED = frozenset({Action.FAILED, Action.DEAD})  # where a code of the platform's is told with its words
MAX_AFTER_S = 3600.0  # a platform's wish for a longer wait is cut to this: it must not make sends wait for ever
MAX_TEXT = 200  # characters of a platform's own words we pass on
MAX_TOKEN_S = 30 * 86_400
PASSING = frozenset({-1, 45009, 45011, 45033})  # of a token endpoint: busy, or called too often

_T = TypeVar("_T")


class Answer(msgspec.Struct, gc=False):
    """The keys of WeChat's and WeCom's answers that say something to us; others are ignored."""

    errcode: int | None = None
    errmsg: str | None = None
    msgid: int | str | None = None
    invaliduser: str | None = None
    unlicenseduser: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


# Not strict: some answers carry numbers as strings.
_answer = msgspec.json.Decoder(Answer, strict=False).decode


def parsed(decode: Callable[[bytes], _T], body: bytes) -> _T | None:
    """The body, or None when it is not what ``decode`` takes."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def answer(reply: Reply) -> Answer | None:
    """None for what is not a JSON object with keys of those types."""
    return parsed(_answer, reply.body)


def unclear(config: ChannelConfig) -> Action:
    """What to do when the answer does not tell whether the call had its effect."""
    return Action.RETRY if config.repeats == "allowed" else Action.UNKNOWN


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, at most MAX_AFTER_S. Its date form is not read (a driver has no clock): None."""
    text = headers.get("Retry-After", "").strip()
    if not text.isascii() or not text.isdigit():
        return None
    return min(float(text[:12]), MAX_AFTER_S)


def by_status(reply: Reply, unclear: Action) -> Verdict:
    """For a status that is not 2xx; 4xx of a platform that means them is the driver's own."""
    code = f"http_{reply.status}"
    if reply.status in (429, 503):
        return Verdict(Action.RETRY, code, "busy", retry_after(reply.headers), refused=True)
    if 500 <= reply.status <= 599:
        return Verdict(unclear, code, "server error", retry_after(reply.headers))
    return Verdict(Action.RETRY, code, "refused by http status")


def by_errcode(table: Mapping[int, Verdict], answer: Answer) -> Verdict:
    """What the platform's code means; one that is not in the table may pass. Final verdicts quote the platform."""
    errcode = answer.errcode
    verdict = table.get(errcode) if errcode is not None else None
    if verdict is None:
        return Verdict(Action.RETRY, str(errcode)[:20], "unexpected errcode")
    if verdict.action in QUOTED and answer.errmsg:
        return verdict._replace(reason=f"{verdict.reason}: {answer.errmsg[:MAX_TEXT]}")
    return verdict


def rows(action: Action, reasons: Mapping[int, str], after_s: float | None = None) -> dict[int, Verdict]:
    """Rows of a driver's table."""
    return {code: Verdict(action, str(code), reason, after_s) for code, reason in reasons.items()}


def token(reply: Reply, secrets: Iterable[str]) -> Token:
    """Raises PlatformUnavailable or PlatformRefused; the platform's words are quoted without ``secrets``."""
    if not 200 <= reply.status <= 299:
        raise PlatformUnavailable(f"the token endpoint answered http_{reply.status}")
    got = answer(reply)
    if got is None:
        raise PlatformUnavailable("the token endpoint answered what is not its JSON")
    if got.errcode:
        text = f"{got.errcode}: {(got.errmsg or '')[:MAX_TEXT]}"
        for secret in secrets:
            text = text.replace(secret, "***")
        raise (PlatformUnavailable if got.errcode in PASSING else PlatformRefused)(text)
    if not got.access_token or got.expires_in is None or not 0 < got.expires_in <= MAX_TOKEN_S:
        raise PlatformUnavailable("the token endpoint answered without a usable token")
    return Token(got.access_token, got.expires_in)
