"""WeCom: tokens, application messages. Facts: developer.work.weixin.qq.com path/90236, 90454, 91039."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from bench.simulator_ledger import DUPLICATE
from bench.simulator_limits import SECOND, Remembered, ns
from bench.simulator_platforms import Answer, Ask, Tencent, answer, digest

TOKEN, SEND = "gettoken", "message/send"
MOST_USERS, MOST_PARTIES, MOST_TAGS, MOST_TEXT = 1000, 100, 100, 2048
LONGEST_CHECK_S = 4 * 3600

# What each type must have inside the object of its name.
TYPES: dict[str, tuple[str, ...]] = {
    "text": ("content",),
    "markdown": ("content",),
    "image": ("media_id",),
    "voice": ("media_id",),
    "video": ("media_id",),
    "file": ("media_id",),
    "textcard": ("title", "description", "url"),
    "news": ("articles",),
    "mpnews": ("articles",),
    "miniprogram_notice": ("appid", "title"),
    "template_card": ("card_type",),
}


class Message(msgspec.Struct):
    """The fields of every type; the content is in one more, named as the type."""

    touser: str = ""
    toparty: str = ""
    totag: str = ""
    msgtype: str = ""
    agentid: int | str = ""
    enable_duplicate_check: int = 0
    duplicate_check_interval: Annotated[int, msgspec.Meta(ge=0)] = 1800


class Text(msgspec.Struct):
    """The content of nearly every call: read without reading the rest."""

    text: msgspec.Raw = msgspec.Raw()


class TextBody(msgspec.Struct):
    """What is in ``text``."""

    content: str = ""


_message = msgspec.json.Decoder(Message)
_text = msgspec.json.Decoder(Text)
_text_body = msgspec.json.Decoder(TextBody)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_fields = msgspec.json.Decoder(dict[str, Any])


class WeCom(Tencent):
    """One corp an account."""

    name = "wecom"
    invalid_code = "invaliduser"

    def forget(self) -> None:
        super().forget()
        self._sent: Remembered[tuple[int, str]] = Remembered(LONGEST_CHECK_S * SECOND)

    def serve(self, ask: Ask) -> Answer:
        if ask.path == "/cgi-bin/message/send":
            return self._send(ask) if ask.method == "POST" else answer(43002, "require POST method")
        if ask.path == "/cgi-bin/gettoken":
            return self._token(ask) if ask.method == "GET" else answer(43001, "require GET method")
        return Answer(404, b"no such API\n")

    def _token(self, ask: Ask) -> Answer:
        """Repeated: the same token until it expires."""
        return self.issue(
            ask,
            TOKEN,
            ask.query.get("corpid", ""),
            ask.query.get("corpsecret", ""),
            lambda corp: self.tokens.get(corp, TOKEN, ns(self.options.token_life_s), ask.now_ns),
        )

    def _send(self, ask: Ask) -> Answer:
        corp = self.caller(ask, SEND)
        if isinstance(corp, Answer):
            return corp
        try:
            message = _message.decode(ask.body)
        except msgspec.DecodeError as error:
            return self.wrong(ask, SEND, corp, 47001, f"data format error: {error}")
        ids = list(dict.fromkeys(id for id in message.touser.split("|") if id))
        entered = self.enter(corp, SEND, len(ids), ask.now_ns)
        if isinstance(entered, int):
            return self.wrong(ask, SEND, corp, 45033, f"concurrency limit: {entered} calls open", ids)
        if entered is not None:
            return self.wrong(ask, SEND, corp, 45009, "api freq out of limit", ids)
        return self._entered(ask, corp, message, ids)._replace(held=(corp, SEND))

    def _entered(self, ask: Ask, corp: str, message: Message, ids: list[str]) -> Answer:
        wrong = _envelope(message, ids)
        if wrong is not None:
            return self.wrong(ask, SEND, corp, *wrong, ids)
        content = self._content(ask.body, message.msgtype)
        if isinstance(content, tuple):
            return self.wrong(ask, SEND, corp, *content, ids)
        if ids and self.again(ids[0]):
            return self.wrong(ask, SEND, corp, -1, "system busy", ids)
        return self._deliver(ask, corp, message, ids, digest(content))

    def _content(self, body: bytes, msgtype: str) -> bytes | tuple[int, str]:
        """The content's bytes, or what is wrong with it."""
        if msgtype != "text":
            return _other_content(body, msgtype)
        raw = bytes(_text.decode(body).text)
        try:
            text = _text_body.decode(raw).content if raw else ""
        except msgspec.DecodeError as error:
            return 47001, f"data format error: text: {error}"
        if not text:
            return 44004, "text.content is empty"
        if len(text.encode()) > MOST_TEXT:
            self.ledger.truncated += 1
        return raw

    def _deliver(self, ask: Ask, corp: str, message: Message, ids: list[str], content: str) -> Answer:
        check = (corp, message.agentid, message.touser, message.toparty, message.totag, content)
        if message.enable_duplicate_check:
            sent = self._sent.get(check, ask.now_ns)
            life = min(message.duplicate_check_interval, LONGEST_CHECK_S) * SECOND
            if sent is not None and sent[0] + life > ask.now_ns:
                self._record(ask, corp, ids, sent[1], content, DUPLICATE)
                return answer(0, "ok", msgid=sent[1])
        msgid = f"m{self.ledger.first + self.ledger.calls}"
        call = self._record(ask, corp, ids, msgid, content, None)
        lists: dict[str, list[str]] = {}
        for id, name in self.deliver(call, corp, ids, ask.now_ns).items():
            lists.setdefault(name, []).append(id.lower())
        if ids and sum(map(len, lists.values())) == len(ids) and not (message.toparty or message.totag):
            self.ledger.recode(call, 81013)
            return answer(81013, "user & party & tag all invalid", **_joined(lists))
        if message.enable_duplicate_check:
            self._sent.keep(check, (ask.now_ns, msgid), ask.now_ns)
        return answer(0, "ok", msgid=msgid, **_joined(lists))

    def _record(self, ask: Ask, corp: str, ids: list[str], msgid: str, content: str, verdict: int | None) -> int:
        call = self.ledger.add_call((self.name, SEND, corp), ask.arrived_ns, 200, 0, len(ids), msgid, content)
        if verdict is not None:
            self.ledger.add_rows(call, ids, verdict)
        return call


def _joined(lists: dict[str, list[str]]) -> dict[str, str]:
    return {name: "|".join(ids) for name, ids in lists.items()}


def _envelope(message: Message, ids: list[str]) -> tuple[int, str] | None:
    """What is wrong with anything but the content."""
    parties, tags = message.toparty.split("|"), message.totag.split("|")
    if not ids and not message.toparty and not message.totag:
        return 82001, "touser, toparty and totag are all empty"
    if len(ids) > MOST_USERS:
        return 40031, f"invalid userid list: {len(ids)} users, at most {MOST_USERS}"
    if len(parties) > MOST_PARTIES or len(tags) > MOST_TAGS:
        return 40032, f"invalid party or tag list: at most {MOST_PARTIES} parties and {MOST_TAGS} tags"
    if message.agentid == "" or not str(message.agentid).isdigit():
        return 40056, "invalid agentid"
    if message.msgtype not in TYPES:
        return 40008, f"invalid message type {message.msgtype!r}"
    return None


def _other_content(body: bytes, msgtype: str) -> bytes | tuple[int, str]:
    raw = bytes(_members.decode(body).get(msgtype, b""))
    try:
        fields = _fields.decode(raw) if raw else {}
    except msgspec.DecodeError as error:
        return 47001, f"data format error: {msgtype}: {error}"
    missing = [name for name in TYPES[msgtype] if not fields.get(name)]
    if missing:
        return 44004, f"{msgtype} wants {', '.join(missing)}"
    if msgtype == "news" and (not isinstance(fields["articles"], list) or len(fields["articles"]) > 8):
        return 45008, "news wants at most 8 articles"
    return raw
