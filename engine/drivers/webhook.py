"""A gateway of the team's own: the contract is ours, and any HTTP server can keep it.

In: any content, recipients with or without data of their own. Out: one POST for all of them, and what its answer means
for each. Invariant: every attempt of the same recipients carries the same ``Idempotency-Key``, so the gateway can tell
a repeat; with ``repeats = "never"`` it must, for a day. Never: sends to another address than ``base_url``.

    POST <base_url>, Idempotency-Key: <batch>, Authorization: <the account's>
    {"v": 1, "batch": .., "channel": .., "account": .., "content": {..}, "to": [{"id": .., "data": {..}}]}

    200 {"results": [{"id": .., "code": "ok" | "failed" | "retry", "reason": .., "retry_after_ms": ..}]}

A recipient left out of ``results`` is accepted; ids of others are ignored; of two results for one id the last counts.
An answer is read up to 1 MiB. The whole batch again: 429 and 5xx (Retry-After in seconds; its date form is not read),
3xx (redirects are not followed), 2xx with another body. Other 4xx: refused, dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec

from engine.config import ChannelConfig, Frequency
from engine.drivers import Action, Call, CallResult, Prepared, Reply, Request, Template, Token, Verdict
from engine.drivers import _answers as answers
from engine.drivers import _checks as checks
from engine.errors import PlatformRefused, Reject

DEFAULT_CAP = 500


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``authorization``: sent as the Authorization header, as it is."""

    authorization: str | None = None


class Result(msgspec.Struct, gc=False):
    """How one recipient fared."""

    id: str
    code: str
    reason: str | None = None
    retry_after_ms: float | None = None


class Results(msgspec.Struct):
    """The whole answer."""

    results: list[Result]


ACCEPTED = Verdict(Action.ACCEPTED)
_results = msgspec.json.Decoder(Results).decode


class Driver:
    """``Prepared.body`` is the content as JSON. Accounts are optional: without one ``account`` is an empty string."""

    name: ClassVar[str] = "webhook"
    carries_data: ClassVar[bool] = True
    registered_only: ClassVar[bool] = False
    caseless: ClassVar[bool] = False
    remembers_s: ClassVar[int] = 86_400  # the gateway's duty: docs/wire-format.md
    frequency: ClassVar[tuple[Frequency, ...]] = ()

    def __init__(self, channel: str, config: ChannelConfig) -> None:
        self._url = checks.base_url(channel, config, whole=True)
        self.cap = checks.cap(channel, config, default=DEFAULT_CAP)
        accounts = checks.accounts(channel, config, Account, need=False)
        self._headers = {name: _headers(channel, name, account) for name, account in accounts.items()}
        self._channel = checks.encode(channel)
        self._unclear = answers.unclear(config)
        self._unreadable = CallResult(Verdict(self._unclear, "unreadable", "unreadable answer"))

    def prepare(self, content: Mapping[str, Any], template: Template | None, data: Mapping[str, Any]) -> Prepared:
        """Any map; of a registered one the ``{field}`` are filled from the send's data (a recipient's own goes to the
        gateway beside its id)."""
        if template is not None:
            checks.only(content, ("ref", "data"))
            content = checks.filled(template, data)
        body = checks.encode(content)
        return Prepared(blake2b(body, digest_size=16).digest(), body)

    def check_recipient(self, id: str, data: Mapping[str, Any] | None, prepared: Prepared) -> None:
        """An id is a JSON string of its own here: nothing can be smuggled in."""
        if not id or not id.isprintable():
            raise Reject("recipient_forbidden", "empty, or with unprintable characters")
        if data:
            try:
                checks.encode(data)
            except Reject as reject:
                raise Reject("data_invalid", reject.detail) from None

    def token_request(self, account: str) -> Request | None:
        return None

    def token(self, reply: Reply) -> Token:
        raise PlatformRefused("a webhook has no access tokens")

    def request(self, call: Call, token: str) -> Request:
        if call.data:
            pairs = zip(call.ids, call.data, strict=True)
            to = checks.encode([{"id": id, "data": data} if data else {"id": id} for id, data in pairs])
        else:
            to = b'[{"id":"%b"}]' % checks.joined(call.ids, b'"},{"id":"')
        head = b'{"v":1,"batch":%b,"channel":%b,"account":%b,"content":' % (
            checks.encode(call.batch),
            self._channel,
            checks.encode(call.account),
        )
        headers = {**self._headers.get(call.account, checks.JSON_HEADERS), "Idempotency-Key": call.batch}
        return Request("POST", self._url, b"".join((head, call.body, b',"to":', to, b"}")), headers)

    def result(self, call: Call, reply: Reply) -> CallResult:
        if 200 <= reply.status <= 299:
            got = answers.parsed(_results, reply.body)
            return self._unreadable if got is None else CallResult(ACCEPTED, _exceptions(call, got.results))
        if 400 <= reply.status <= 499 and reply.status != 429:
            reason = f"the gateway refused: {reply.body[: answers.MAX_TEXT].decode('utf-8', 'replace')}"
            return CallResult(Verdict(Action.DEAD, f"http_{reply.status}", reason))
        return CallResult(answers.by_status(reply, self._unclear))


def _headers(channel: str, name: str, account: Account) -> Mapping[str, str]:
    if account.authorization is None:
        return checks.JSON_HEADERS
    return {**checks.JSON_HEADERS, "Authorization": account.authorization}


def _exceptions(call: Call, results: list[Result]) -> dict[int, Verdict]:
    """Everybody who is not simply accepted."""
    last = {result.id: _verdict(result) for result in results}
    if not any(last.values()):
        return {}
    return {i: verdict for i, id in enumerate(call.ids) if (verdict := last.get(id)) is not None}


def _verdict(result: Result) -> Verdict | None:
    if result.code == "ok":
        return None
    if result.code == "failed":
        return Verdict(Action.FAILED, "failed", (result.reason or "")[: answers.MAX_TEXT])
    after_s = (
        None if result.retry_after_ms is None else min(max(result.retry_after_ms / 1000, 0.0), answers.MAX_AFTER_S)
    )
    known = result.code == "retry"
    return Verdict(Action.RETRY, "retry", "retry" if known else "unknown code", after_s, refused=known)
