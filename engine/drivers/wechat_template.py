"""WeChat service-account template messages: ``POST /cgi-bin/message/template/send``, one openid a call.

In: a registered template, the send's data, one openid with data of its own laid over it. Out: one request, and what
its answer means. Invariant: every required field has a value, none is longer than the template allows. Never: sends a
field the template does not name.

A call repeated with the same ``client_msg_id`` (our batch id) and openid within 10 minutes sends once. Accepted is
not delivered: how it ended comes by the event TEMPLATESENDJOBFINISH.

Sources: developers.weixin.qq.com/doc/service/api/notify/template/api_sendtemplatemessage,
.../api/base/api_getstableaccesstoken, and the pages of global return codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

import msgspec

from engine.config import ChannelConfig, Frequency
from engine.drivers import Action, Call, CallResult, Prepared, Reply, Request, Template, Token, Verdict
from engine.drivers import _answers as answers
from engine.drivers import _checks as checks
from engine.drivers._answers import rows
from engine.errors import Reject

SHARED = ("url", "miniprogram")  # of the registered content; a send may give its own
NEXT_MINUTE_S = 60.0
SPENT_S = 600.0  # a day's quota comes back at midnight, China time: found out by asking now and then

TABLE = {
    **rows(Action.ACCEPTED, {0: "", 45065: "the same was sent before", 40241: "the same was sent before"}),
    **rows(Action.RETRY, {-1: "busy", 43117: "this recipient too often"}),
    **rows(Action.RETRY, {45066: "asked again too soon"}, NEXT_MINUTE_S),
    **rows(Action.PARK, {45011: "called too often"}, NEXT_MINUTE_S),
    **rows(Action.PARK, {45009: "the day's quota is spent", 45028: "no quota"}, SPENT_S),
    **rows(
        Action.REFRESH, {40001: "access token invalid", 40014: "access token invalid", 42001: "access token expired"}
    ),
    **rows(
        Action.FAILED,
        {
            40003: "no such openid",
            43004: "does not follow the account",
            43019: "blacklisted",
            43101: "refused, or the subscription is used up",
            48002: "refuses messages of the account",
        },
    ),
    **rows(
        Action.DEAD,
        {
            40130: "content: too few recipients",
            40031: "content: invalid list of openids",
            40032: "content: too many openids",
            40037: "content: no such template_id",
            47001: "content: not the JSON it wants",
            47003: "content: a field's value is not what the template takes",
            48001: "credentials: the account may not call this",
            48004: "credentials: the platform has banned this call for the account",
            50002: "credentials: the account is limited",
        },
    ),
}


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One service account."""

    appid: str
    secret: str


class Body(NamedTuple):
    """``head``: the request's JSON from ``template_id`` up to ``data``; ``texts``: the send's own values; ``data``:
    those as the platform wants them; ``missing``: required fields a recipient has to bring."""

    template: Template
    head: bytes
    texts: dict[str, str]
    data: bytes
    missing: frozenset[str]


class Driver:
    """Tokens come from ``stable_token``: asking again does not kill the token other programs of the account use, as
    ``/cgi-bin/token`` would; the two kinds do not touch each other. It renews 5 minutes before the end."""

    name: ClassVar[str] = "wechat.template"
    carries_data: ClassVar[bool] = True
    registered_only: ClassVar[bool] = True
    caseless: ClassVar[bool] = False
    remembers_s: ClassVar[int] = 600
    frequency: ClassVar[tuple[Frequency, ...]] = ()

    def __init__(self, channel: str, config: ChannelConfig) -> None:
        base = checks.base_url(channel, config)
        self.cap = checks.cap(channel, config, 1)
        self._accounts = checks.accounts(channel, config, Account)
        self._unclear = answers.unclear(config)
        self._send_url = f"{base}/cgi-bin/message/template/send?access_token="
        self._token_url = f"{base}/cgi-bin/stable_token"
        self._garbage = CallResult(Verdict(self._unclear, "unreadable", "unreadable answer"))

    def prepare(self, content: Mapping[str, Any], template: Template | None, data: Mapping[str, Any]) -> Prepared:
        """``{"template": id, "data": {..}}`` (or ``ref``), ``url`` and ``miniprogram`` of its own if it likes. The
        registered content is ``{"template_id": .., "url": .., "miniprogram": {"appid": .., "pagepath": ..}}``."""
        if template is None:
            raise Reject("content_invalid", "`template` must name a registered template")
        checks.only(content, ("template", "ref", "data", *SHARED))
        head = checks.encode(_head(template, content))[1:-1]
        texts = checks.values(template, data)
        missing = checks.missing(template, texts)
        wire = _data(texts)
        # The fields belong to the key: who shares a Prepared is checked against the same ones.
        fields = checks.encode([template.id, template.fields])
        key = blake2b(b"\0".join((head, wire, fields)), digest_size=16).digest()
        return Prepared(key, Body(template, head, texts, wire, missing), complete=not missing)

    def check_recipient(self, id: str, data: Mapping[str, Any] | None, prepared: Prepared) -> None:
        """Also whether the recipient brings the fields its send leaves open."""
        if not checks.plain_id(id):
            raise Reject("recipient_forbidden", "empty, or with spaces or unprintable characters")
        body: Body = prepared.body
        if not data and not body.missing:
            return
        texts = {**body.texts, **checks.values(body.template, data or {})}
        lacking = checks.missing(body.template, texts)
        if lacking:
            raise Reject("field_missing", f"{body.template.id} needs {', '.join(sorted(lacking))}")
        _data(texts)

    def token_request(self, account: str) -> Request | None:
        keys = self._accounts[account]
        wire = {"grant_type": "client_credential", "appid": keys.appid, "secret": keys.secret, "force_refresh": False}
        return Request("POST", self._token_url, checks.encode(wire), checks.JSON_HEADERS)

    def token(self, reply: Reply) -> Token:
        return answers.token(reply, [account.secret for account in self._accounts.values()])

    def request(self, call: Call, token: str) -> Request:
        body: Body = call.body
        own = call.data[0] if call.data else None
        data = _data({**body.texts, **checks.values(body.template, own)}) if own else body.data
        to, msg_id = checks.encode(call.ids[0]), checks.encode(call.batch)
        wire = (b'{"touser":', to, b",", body.head, b',"client_msg_id":', msg_id, b',"data":', data, b"}")
        return Request("POST", self._send_url + checks.quoted(token), b"".join(wire), checks.JSON_HEADERS)

    def result(self, call: Call, reply: Reply) -> CallResult:
        if not 200 <= reply.status <= 299:
            return CallResult(answers.by_status(reply, self._unclear))
        answer = answers.answer(reply)
        if answer is None or (answer.errcode is None and answer.msgid is None):
            return self._garbage
        verdict = TABLE[0] if answer.errcode is None else answers.by_errcode(TABLE, answer)
        return CallResult(verdict, platform_id="" if answer.msgid is None else str(answer.msgid)[:256])


def _data(texts: Mapping[str, str]) -> bytes:
    return checks.encode({name: {"value": text} for name, text in texts.items()})


def _head(template: Template, content: Mapping[str, Any]) -> dict[str, Any]:
    """Raises Reject: what is registered, or what the send lays over it, is not what the platform takes."""
    checks.only(template.content, ("template_id", *SHARED))
    id = template.content.get("template_id")
    if not isinstance(id, str) or not id:
        raise Reject("content_invalid", f"{template.id} is registered without `template_id`")
    head: dict[str, Any] = {"template_id": id}
    for name in SHARED:
        value = content.get(name, template.content.get(name))
        if value is not None:
            head[name] = value
    if not isinstance(head.get("url", ""), str):
        raise Reject("content_invalid", "`url` must be a string")
    program = head.get("miniprogram", {"appid": "-"})
    if not isinstance(program, Mapping) or not isinstance(program.get("appid"), str) or not program["appid"]:
        raise Reject("content_invalid", "`miniprogram` must be a map with `appid`, and `pagepath` if wanted")
    checks.only(program, ("appid", "pagepath"))
    if not isinstance(program.get("pagepath", ""), str):
        raise Reject("content_invalid", "`miniprogram.pagepath` must be a string")
    return head
