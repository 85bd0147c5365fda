"""What each platform answers: a request's bytes in, an answer out, the effect in the ledger. No I/O, no clock.

Written from what the platforms publish, never from the engine's drivers, so that it is a check of them. Assumed where
nothing is published: a repeated client_msg_id and a repeated content with the duplicate check on are answered like the
first; a call over a quota is not counted in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from bench.simulator_ledger import DELIVERED, DROPPED, INVALID, REFUSED, Ledger
from bench.simulator_limits import SECOND, Issued, Members, Quotas, Refusal, Tokens, chosen
from bench.simulator_options import Endpoint, Options


class Ask(NamedTuple):
    """One request. ``path`` is below the platform's prefix; ``now_ns`` never goes back, ``arrived_ns`` is wall time."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    now_ns: int
    arrived_ns: int


class Answer(NamedTuple):
    """What goes back. ``held``: the concurrency slot to give back with ``done`` when it went."""

    status: int
    body: bytes
    headers: Mapping[str, str] | None = None
    held: tuple[str, str] | None = None


def answer(code: int, text: str, **more: Any) -> Answer:
    """A Tencent platform's answer: HTTP 200 whatever happened."""
    return Answer(200, msgspec.json.encode({"errcode": code, "errmsg": text, **more}))


@lru_cache(maxsize=256)
def query_of(raw: str) -> Mapping[str, str]:
    """The query of a request target, decoded. Kept: a caller's differ only with its token."""
    return MappingProxyType(dict(parse_qsl(raw, keep_blank_values=True)))


def digest(content: bytes) -> str:
    """Equal for equal content."""
    return blake2b(content, digest_size=8).hexdigest()


class Platform(ABC):
    """What all have in common: the ledger, quotas, concurrency, members, tokens."""

    name: str
    invalid_code: str  # of a recipient in ``invalid_share``

    def __init__(self, options: Options, ledger: Ledger) -> None:
        self.ledger = ledger
        self.set(options)
        self.tokens = Tokens()
        self._open: dict[tuple[str, str], int] = {}
        self.forget()

    def set(self, options: Options) -> None:
        """Change the options, at once."""
        self.options: Endpoint = getattr(options, self.name)
        self._salt = f"{options.seed} {self.name} "
        self._prefixes = tuple(self.options.refused)
        self._certain = not (self.options.invalid_share or self.options.drop_share)

    def forget(self) -> None:
        """Windows, members, told to come again: all as new. Tokens and calls under way stay."""
        self.quotas = Quotas()
        self.members = Members()
        self._told: dict[str, int] = {}

    @abstractmethod
    def serve(self, ask: Ask) -> Answer:
        """Take a request: its effect happens here and now."""

    @abstractmethod
    def busy(self) -> Answer:
        """The platform's own answer when it is not well."""

    def done(self, held: tuple[str, str]) -> None:
        """The call's answer went: its slot is free."""
        self._open[held] -= 1

    def enter(self, account: str, api: str, recipients: int, now_ns: int) -> Refusal | int | None:
        """Hold a slot and count the call: None; over concurrency: the number open; over a quota: the refusal."""
        key, limit = (account, api), self.options.concurrency
        if limit and self._open.get(key, 0) >= limit:
            self.ledger.violations[self.name, "concurrency"] += 1
            return self._open[key]
        refusal = self.quotas.take(account, api, self.options.quotas, now_ns, recipients)
        if refusal is not None:
            self.ledger.violations[self.name, "quota"] += 1
            return refusal
        self._open[key] = self._open.get(key, 0) + 1
        return None

    def _is_refused(self, id: str) -> bool:
        return id.startswith(self._prefixes)

    def refusal_code(self, id: str) -> str | None:
        """The platform's code for a recipient it does not take."""
        if self._is_refused(id):
            return next(code for prefix, code in self.options.refused.items() if id.startswith(prefix))
        return self.invalid_code if chosen(self.options.invalid_share, id, self._salt + "invalid") else None

    def drops(self, account: str, id: str, now_ns: int) -> bool:
        """Whether a message that is taken never arrives."""
        if chosen(self.options.drop_share, id, self._salt + "drop"):
            return True
        limits = self.options.member_limits
        return bool(limits) and self.members.over(account, id, limits, now_ns)

    def again(self, id: str) -> bool:
        """Whether ``id`` is told to come again: every time a new draw, so it passes in the end."""
        share = self.options.retry_share
        if not share:
            return False
        told = self._told.get(id, 0)
        if not chosen(share, id, f"{self._salt}retry {told}"):
            return False
        self._told[id] = told + 1
        return True

    def refused(self, ask: Ask, api: str, account: str, ids: Sequence[str], code: int, status: int = 200) -> None:
        """Write down a call that had no effect."""
        call = self.ledger.add_call((self.name, api, account), ask.arrived_ns, status, code, len(ids))
        self.ledger.add_rows(call, ids, REFUSED)

    def deliver(self, call: int, account: str, ids: Sequence[str], now_ns: int) -> dict[str, str]:
        """Deliver, drop or refuse each of ``ids``; the codes of those refused."""
        if self._certain and not self.options.member_limits and not any(map(self._is_refused, ids)):
            self.ledger.add_rows(call, ids, DELIVERED)  # nearly every call of a benchmark
            return {}
        delivered: list[str] = []
        dropped: list[str] = []
        codes: dict[str, str] = {}
        for id in ids:
            code = self.refusal_code(id)
            if code is not None:
                codes[id] = code
            else:
                (dropped if self.drops(account, id, now_ns) else delivered).append(id)
        for group, verdict in ((delivered, DELIVERED), (dropped, DROPPED), (list(codes), INVALID)):
            if group:
                self.ledger.add_rows(call, group, verdict)
        return codes


class Tencent(Platform):
    """What WeCom and WeChat share: credentials for a token, a token for a call, errors in the body."""

    def busy(self) -> Answer:
        return answer(-1, "system busy")

    def wrong(self, ask: Ask, api: str, account: str, code: int, text: str, ids: Sequence[str] = ()) -> Answer:
        """Refuse a call and write it down."""
        self.refused(ask, api, account, ids, code)
        return answer(code, text)

    def issue(self, ask: Ask, api: str, account: str, secret: str, get: Callable[[str], Issued]) -> Answer:
        """A token and the whole seconds it has left, for the right credentials."""
        accounts = self.options.accounts
        if not account or (accounts and account not in accounts):
            return self.wrong(ask, api, account, 40013, "invalid appid or corpid")
        if not secret or (accounts and accounts[account] != secret):
            return self.wrong(ask, api, account, 40001, "invalid credential: wrong secret")
        token = get(account)
        self.ledger.add_call((self.name, api, account), ask.arrived_ns, 200, 0, 0)
        seconds = -(-(token.ends_ns - ask.now_ns) // SECOND)
        return answer(0, "ok", access_token=token.value, expires_in=seconds)

    def caller(self, ask: Ask, api: str) -> str | Answer:
        """Whose token came with the call."""
        value = ask.query.get("access_token", "")
        if not value:
            return self.wrong(ask, api, "", 41001, "access_token missing")
        account = self.tokens.account(value, ask.now_ns)
        if isinstance(account, str):
            return account
        texts = {40014: "invalid access_token", 42001: "access_token expired", 40001: "access_token is not the latest"}
        return self.wrong(ask, api, "", account, texts[account])
