"""WeCom app messages: ``POST /cgi-bin/message/send``, up to 1,000 members a call.

In: a send's content and up to 1,000 userids. Out: one request for all of them, and what its answer means for each.
Invariant: a request names nobody but the ids given. Never: lets the platform cut a text short.

Accepted is not delivered: beyond 30 messages a minute or 1,000 an hour to one member of one app the platform drops
silently (FREQUENCY, from 90454); it also advises against sending at the full and the half hour.

Sources: developer.work.weixin.qq.com/document/path/90236 (message/send), 91039 (gettoken), 90313 (error codes),
90454 (frequency limits).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Annotated, Any, ClassVar

import msgspec

from engine.config import ChannelConfig, Duration, Frequency
from engine.drivers import Action, Call, CallResult, Prepared, Reply, Request, Template, Token, Verdict
from engine.drivers import _answers as answers
from engine.drivers import _checks as checks
from engine.drivers._answers import Answer, rows
from engine.errors import Reject

CAP = 1000
FREQUENCY = (Frequency(30, Duration.parse("1m")), Frequency(1000, Duration.parse("1h")))
MAX_TEXT_BYTES = 2048  # more is cut off by the platform without a word
MAX_TITLE_CHARS = 128
MAX_DESCRIPTION_CHARS = 512
MAX_ARTICLES = 8

OPTIONS = ("safe", "enable_id_trans")
# msgtype: the strings it must have. Content: {"type": "textcard", "textcard": {...}}, for text and markdown a string.
NEEDS: dict[str, tuple[str, ...]] = {
    "image": ("media_id",),
    "voice": ("media_id",),
    "video": ("media_id",),
    "file": ("media_id",),
    "textcard": ("title", "description", "url"),
    "miniprogram_notice": ("appid", "title"),
    "template_card": ("card_type",),
}
ARTICLE_NEEDS: dict[str, tuple[str, ...]] = {"news": ("title",), "mpnews": ("title", "thumb_media_id", "content")}
CARDS = ("text_notice", "news_notice", "button_interaction", "vote_interaction", "multiple_interaction")
TYPES = ("text", "markdown", *NEEDS, *ARTICLE_NEEDS)

# A minute's limit rests 60 s (an hour's 60 min: it is found again); which one it was the code does not say.
TABLE = {
    **rows(Action.RETRY, {-1: "busy", 45033: "too many calls at once"}),
    **rows(Action.PARK, {45009: "called too often"}, 60.0),
    **rows(Action.REFRESH, {40014: "access token invalid", 42001: "access token expired"}),
    **rows(
        Action.FAILED,
        {
            81013: "none of them is a member the app may write to",
            82001: "none of them is valid",
            40003: "no such member",
            40031: "no such member",
            60111: "no such member",
            40096: "no such external contact",
            84061: "no such external contact",
        },
    ),
    **rows(
        Action.DEAD,
        {
            40001: "credentials: the secret is wrong",
            40056: "credentials: the agentid is wrong",
            48002: "credentials: the app may not call this",
            60020: "credentials: our address is not on the app's list of trusted ones",
            301002: "credentials: the app may not use this agentid",
            93000: "credentials: the webhook address is wrong",
            40007: "content: invalid media_id",
            40008: "content: invalid type",
            40033: "content: characters it does not take",
            40035: "content: invalid parameter",
            40058: "content: invalid parameter",
            44004: "content: the text is empty",
            45002: "content: too large",
            45008: "content: too many articles",
        },
    ),
}


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One app of one corp. With ``enable_duplicate_check`` the platform drops a message equal to one the member got
    in the last ``duplicate_check_interval`` seconds, silently: a repeat after a timeout, but a true second one too."""

    corpid: str
    corpsecret: str
    agentid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    enable_duplicate_check: bool = False
    duplicate_check_interval: Annotated[int, msgspec.Meta(ge=1, le=14_400)] = 1800


class Driver:
    """``Prepared.body`` is the request's JSON from ``msgtype`` on."""

    name: ClassVar[str] = "wecom.message"
    carries_data: ClassVar[bool] = False
    registered_only: ClassVar[bool] = False
    caseless: ClassVar[bool] = True
    remembers_s: ClassVar[int] = 0  # its own check tells repeats by text and recipients, not by a name of ours
    frequency: ClassVar[tuple[Frequency, ...]] = FREQUENCY

    def __init__(self, channel: str, config: ChannelConfig) -> None:
        base = checks.base_url(channel, config)
        self.cap = checks.cap(channel, config, CAP)
        self._accounts = checks.accounts(channel, config, Account)
        self._unclear = answers.unclear(config)
        self._send_url = f"{base}/cgi-bin/message/send?access_token="
        self._token_url = f"{base}/cgi-bin/gettoken"
        self._middle = {name: _middle(account) for name, account in self._accounts.items()}
        self._garbage = CallResult(Verdict(self._unclear, "unreadable", "unreadable answer"))

    def prepare(self, content: Mapping[str, Any], template: Template | None, data: Mapping[str, Any]) -> Prepared:
        """``{"type": T, T: ...}`` with ``safe`` and ``enable_id_trans`` beside it; a registered one likewise, its
        ``{field}`` filled from ``data``."""
        if template is not None:
            checks.only(content, ("ref", "data"))
            content = checks.filled(template, data)
        kind = content.get("type")
        if not isinstance(kind, str) or kind not in TYPES:
            raise Reject("content_invalid", f"`type` must be one of {', '.join(TYPES)}")
        checks.only(content, ("type", kind, *OPTIONS))
        wire: dict[str, Any] = {"msgtype": kind, kind: _body(kind, content.get(kind))}
        for option in OPTIONS:
            if option in content:
                wire[option] = _flag(option, content[option])
        body = checks.encode(wire)[1:]
        return Prepared(blake2b(body, digest_size=16).digest(), body)

    def check_recipient(self, id: str, data: Mapping[str, Any] | None, prepared: Prepared) -> None:
        """``@all`` and what ``|`` joins would reach others."""
        if not checks.plain_id(id) or "|" in id or id.lower() == "@all":
            raise Reject("recipient_forbidden", "empty, or with `|`, spaces or unprintable characters, or `@all`")
        if data:
            raise Reject("data_invalid", f"{self.name} sends everybody the same: recipients have no data of their own")

    def token_request(self, account: str) -> Request | None:
        keys = self._accounts[account]
        query = f"corpid={checks.quoted(keys.corpid)}&corpsecret={checks.quoted(keys.corpsecret)}"
        return Request("GET", f"{self._token_url}?{query}", b"", {})

    def token(self, reply: Reply) -> Token:
        return answers.token(reply, [account.corpsecret for account in self._accounts.values()])

    def request(self, call: Call, token: str) -> Request:
        to = checks.joined(call.ids, b"|")
        body = b"".join((b'{"touser":"', to, b'"', self._middle[call.account], call.body))
        return Request("POST", self._send_url + checks.quoted(token), body, checks.JSON_HEADERS)

    def result(self, call: Call, reply: Reply) -> CallResult:
        if not 200 <= reply.status <= 299:
            return CallResult(answers.by_status(reply, self._unclear))
        answer = answers.answer(reply)
        if answer is None or answer.errcode is None:
            return self._garbage
        if answer.errcode != 0:
            return CallResult(answers.by_errcode(TABLE, answer))
        refused = _refused(call, answer) if answer.invaliduser or answer.unlicenseduser else {}
        return CallResult(ACCEPTED, refused, "" if answer.msgid is None else str(answer.msgid)[:256])


ACCEPTED = Verdict(Action.ACCEPTED, "0")
INVALID = Verdict(Action.FAILED, "invaliduser", "no such member, or not one the app may write to")
UNLICENSED = Verdict(Action.FAILED, "unlicenseduser", "the member has no licence for this app's interface")


def _refused(call: Call, answer: Answer) -> dict[int, Verdict]:
    """The platform returns its lists in lower case, and tells userids apart without regard to case."""
    verdicts = dict.fromkeys((answer.unlicenseduser or "").lower().split("|"), UNLICENSED)
    verdicts.update(dict.fromkeys((answer.invaliduser or "").lower().split("|"), INVALID))
    return {i: verdict for i, id in enumerate(call.ids) if (verdict := verdicts.get(id.lower())) is not None}


def _middle(account: Account) -> bytes:
    wire: dict[str, int] = {"agentid": account.agentid}
    if account.enable_duplicate_check:
        wire["enable_duplicate_check"] = 1
        wire["duplicate_check_interval"] = account.duplicate_check_interval
    return b"," + checks.encode(wire)[1:-1] + b","


def _flag(name: str, value: Any) -> int:
    most = 2 if name == "safe" else 1
    if not isinstance(value, int) or not 0 <= value <= most:
        raise Reject("content_invalid", f"`{name}` must be 0..{most}")
    return int(value)


def _body(kind: str, value: Any) -> Any:
    """The message as the platform wants it."""
    if kind in ("text", "markdown"):
        return {"content": _text(kind, value)}
    if not isinstance(value, Mapping):
        raise Reject("content_invalid", f"`{kind}` must be a map")
    check: Callable[[str, Mapping[str, Any]], None] = _articles if kind in ARTICLE_NEEDS else _needs
    check(kind, value)
    return value


def _text(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Reject("content_invalid", f"`{kind}` must be a string, not an empty one")
    size = len(value.encode("utf-8", "replace"))
    if size > MAX_TEXT_BYTES:
        raise Reject("content_too_large", f"`{kind}` has {size} bytes; the platform cuts it at {MAX_TEXT_BYTES}")
    return value


def _needs(kind: str, value: Mapping[str, Any]) -> None:
    _strings(kind, value, NEEDS[kind])
    if kind == "textcard":
        _no_longer(kind, value)
    if kind == "template_card" and value["card_type"] not in CARDS:
        raise Reject("content_invalid", f"`template_card.card_type` must be one of {', '.join(CARDS)}")


def _articles(kind: str, value: Mapping[str, Any]) -> None:
    articles = value.get("articles")
    if not isinstance(articles, list) or not 1 <= len(articles) <= MAX_ARTICLES:
        raise Reject("content_invalid", f"`{kind}.articles` must be a list of 1..{MAX_ARTICLES}")
    for article in articles:
        if not isinstance(article, Mapping):
            raise Reject("content_invalid", f"an article of `{kind}` must be a map")
        _strings(f"{kind}.articles", article, ARTICLE_NEEDS[kind])
        if kind == "news":
            _strings(f"{kind}.articles", article, ("appid", "pagepath") if article.get("appid") else ("url",))
            _no_longer(f"{kind}.articles", article)


def _strings(where: str, value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(value.get(name), str) or not value[name]:
            raise Reject("content_invalid", f"`{where}.{name}` must be a string, not an empty one")


def _no_longer(where: str, value: Mapping[str, Any]) -> None:
    """Pages of different years count bytes or characters here; only what is too long either way is refused."""
    for name, most in (("title", MAX_TITLE_CHARS), ("description", MAX_DESCRIPTION_CHARS)):
        text = value.get(name, "")
        if not isinstance(text, str):
            raise Reject("content_invalid", f"`{where}.{name}` must be a string")
        if len(text) > most:
            raise Reject(
                "content_too_large", f"`{where}.{name}` has {len(text)} characters; the platform cuts at {most}"
            )
