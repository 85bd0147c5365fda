"""WeChat: tokens, stable tokens, template messages. Facts: developers.weixin.qq.com/doc/service/api."""

from __future__ import annotations

import msgspec

from bench.simulator_ledger import DUPLICATE
from bench.simulator_limits import SECOND, Issued, Refusal, Remembered, ns
from bench.simulator_options import WeChat as WeChatOptions
from bench.simulator_platforms import Answer, Ask, Tencent, answer, digest

TOKEN, STABLE, SEND = "token", "stable_token", "message/template/send"
DEDUPE_S = 600
OVERLAP = 24  # old and new are both valid for the 24th part of a life: 5 minutes of 7200 s
PATHS = {"/cgi-bin/token": "GET", "/cgi-bin/stable_token": "POST", "/cgi-bin/message/template/send": "POST"}
TEXTS = {40003: "invalid openid", 43004: "require subscribe", 43019: "blacklisted", 43101: "user refused to accept"}


class StableAsk(msgspec.Struct):
    """The body of stable_token."""

    grant_type: str = ""
    appid: str = ""
    secret: str = ""
    force_refresh: bool = False


class Value(msgspec.Struct):
    """One value of a template; ``color`` and the like are of no account."""

    value: str | int | float


class Template(msgspec.Struct):
    """The body of a template send."""

    touser: str = ""
    template_id: str = ""
    data: msgspec.Raw = msgspec.Raw()
    client_msg_id: str = ""


_stable = msgspec.json.Decoder(StableAsk)
_template = msgspec.json.Decoder(Template)
_data = msgspec.json.Decoder(dict[str, Value])


class WeChat(Tencent):
    """One application an account; one openid a call."""

    name = "wechat"
    invalid_code = "40003"
    options: WeChatOptions

    def forget(self) -> None:
        super().forget()
        self._sent: Remembered[int] = Remembered(DEDUPE_S * SECOND)

    def serve(self, ask: Ask) -> Answer:
        method = PATHS.get(ask.path)
        if method is None:
            return Answer(404, b"no such API\n")
        if ask.method != method:
            return answer(43001 if method == "GET" else 43002, f"require {method} method")
        if ask.path == "/cgi-bin/message/template/send":
            return self._send(ask)
        return self._token(ask) if ask.path == "/cgi-bin/token" else self._stable_token(ask)

    def _token(self, ask: Ask) -> Answer:
        """Every time a new one; the one before lives on for a while."""
        query, life = ask.query, ns(self.options.token_life_s)
        if query.get("grant_type") != "client_credential":
            return self.wrong(ask, TOKEN, query.get("appid", ""), 40002, "invalid grant_type")
        return self.issue(
            ask,
            TOKEN,
            query.get("appid", ""),
            query.get("secret", ""),
            lambda app: self.tokens.new(app, TOKEN, life, ask.now_ns, overlap_ns=life // OVERLAP),
        )

    def _stable_token(self, ask: Ask) -> Answer:
        """The same one until shortly before its end; ``force_refresh`` ends it at once. Apart from ``token``."""
        try:
            body = _stable.decode(ask.body)
        except msgspec.DecodeError as error:
            return self.wrong(ask, STABLE, "", 47001, f"data format error: {error}")
        if body.grant_type != "client_credential":
            return self.wrong(ask, STABLE, body.appid, 40002, "invalid grant_type")
        life = ns(self.options.token_life_s)

        def get(app: str) -> Issued:
            if body.force_refresh:
                return self.tokens.new(app, STABLE, life, ask.now_ns, overlap_ns=0)
            return self.tokens.get(app, STABLE, life, ask.now_ns, renew_ns=life // OVERLAP)

        return self.issue(ask, STABLE, body.appid, body.secret, get)

    def _send(self, ask: Ask) -> Answer:
        app = self.caller(ask, SEND)
        if isinstance(app, Answer):
            return app
        try:
            message = _template.decode(ask.body)
        except msgspec.DecodeError as error:
            return self.wrong(ask, SEND, app, 47001, f"data format error: {error}")
        ids = (message.touser,)
        entered = self.enter(app, SEND, 1, ask.now_ns)
        if isinstance(entered, Refusal):
            day = entered.quota.per_s >= 86_400
            text = "reach max api daily quota limit" if day else "api minute-quota reach limit, must slower"
            return self.wrong(ask, SEND, app, 45009 if day else 45011, text, ids)
        if entered is not None:
            return self.wrong(ask, SEND, app, 45011, f"{entered} calls open, must slower", ids)
        return self._entered(ask, app, message)._replace(held=(app, SEND))

    def _entered(self, ask: Ask, app: str, message: Template) -> Answer:
        ids = (message.touser,)
        wrong = self._envelope(message)
        if wrong is not None:
            return self.wrong(ask, SEND, app, *wrong, ids)
        if self.again(message.touser):
            return self.wrong(ask, SEND, app, -1, "system error", ids)
        return self._deliver(ask, app, message)

    def _envelope(self, message: Template) -> tuple[int, str] | None:
        if not message.touser:
            return 40003, TEXTS[40003]
        templates = self.options.templates
        if not message.template_id or (templates is not None and message.template_id not in templates):
            return 40037, "invalid template_id"
        try:
            data = _data.decode(message.data) if message.data else None
        except msgspec.DecodeError as error:
            return 47001, f"data format error: data: {error}"
        return None if data is not None else (47001, "data format error: no data")

    def _deliver(self, ask: Ask, app: str, message: Template) -> Answer:
        ids, key = (message.touser,), (app, message.touser, message.client_msg_id)
        sent = self._sent.get(key, ask.now_ns) if message.client_msg_id else None
        msgid = sent or self.ledger.first + self.ledger.calls
        content = digest(message.template_id.encode() + bytes(message.data))
        kind = (self.name, SEND, app)
        call = self.ledger.add_call(kind, ask.arrived_ns, 200, 0, 1, str(msgid), content)
        if sent is not None:
            self.ledger.add_rows(call, ids, DUPLICATE)
            return answer(0, "ok", msgid=msgid)
        codes = self.deliver(call, app, ids, ask.now_ns)
        if codes:
            code = int(codes[message.touser])
            self.ledger.recode(call, code)
            return answer(code, TEXTS.get(code, "refused"))
        if message.client_msg_id:
            self._sent.keep(key, msgid, ask.now_ns)
        return Answer(200, b'{"errcode":0,"errmsg":"ok","msgid":%d}' % msgid)
