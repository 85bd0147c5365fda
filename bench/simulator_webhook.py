"""The webhook: surgetank's own contract with a team's gateway (docs, "webhook"), checked to the letter.

``POST /NAME`` with ``Idempotency-Key`` equal to ``batch``. The same key answers the same and has no second effect; the
same key with another body is refused with 422.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from bench.simulator_ledger import DUPLICATE, RETRY
from bench.simulator_limits import SECOND, Refusal, Remembered
from bench.simulator_options import Webhook as WebhookOptions
from bench.simulator_platforms import Answer, Ask, Platform, digest

REMEMBERED_S = 86_400
SEND = "send"


class To(msgspec.Struct):
    """One recipient."""

    id: str
    data: dict[str, Any] | None = None


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    v: Literal[1]
    batch: str
    channel: str
    account: str
    content: msgspec.Raw
    to: list[To]


class Result(msgspec.Struct, omit_defaults=True):
    """What became of one recipient; those left out were accepted."""

    id: str
    code: str
    reason: str = ""
    retry_after_ms: int | None = None


class Given(NamedTuple):
    """An answer that a key got, and to what."""

    body: str  # digest
    answer: bytes


_call = msgspec.json.Decoder(Call)


class Webhook(Platform):
    """Accounts are NAME/account: two gateways may have an account of the same name."""

    name = "webhook"
    invalid_code = "unknown recipient"
    options: WebhookOptions

    def forget(self) -> None:
        super().forget()
        self._given: Remembered[Given] = Remembered(REMEMBERED_S * SECOND)

    def busy(self) -> Answer:
        return Answer(500, b'{"error":"system busy"}')

    def serve(self, ask: Ask) -> Answer:
        gateway = ask.path.strip("/")
        if not gateway or "/" in gateway:
            return Answer(404, b"no such gateway: POST /webhook/NAME\n")
        if ask.method != "POST":
            return Answer(405, b"only POST\n")
        try:
            call = _call.decode(ask.body)
        except msgspec.DecodeError as error:
            return self._wrong(ask, gateway, 400, str(error))
        account, ids = f"{gateway}/{call.account}", [to.id for to in call.to]
        wrong = self._envelope(ask, call)
        if wrong is not None:
            return self._wrong(ask, account, 400, wrong, ids)
        if self.options.batch and len(ids) > self.options.batch:
            return self._wrong(ask, account, 413, f"{len(ids)} recipients, at most {self.options.batch}", ids)
        return self._admit(ask, account, call, ids)

    def _wrong(self, ask: Ask, account: str, status: int, text: str, ids: Sequence[str] = ()) -> Answer:
        self.refused(ask, SEND, account, ids, status, status)
        return Answer(status, msgspec.json.encode({"error": text}))

    def _envelope(self, ask: Ask, call: Call) -> str | None:
        key = ask.headers.get("Idempotency-Key")
        if not key or key != call.batch:
            return f"Idempotency-Key {key!r} is not the batch {call.batch!r}"
        if not call.to:
            return "to is empty"
        if not all(to.id for to in call.to):
            return "a recipient's id is empty"
        return None

    def _admit(self, ask: Ask, account: str, call: Call, ids: list[str]) -> Answer:
        entered = self.enter(account, SEND, len(ids), ask.now_ns)
        if entered is not None:
            seconds = -(-entered.wait_ns // SECOND) if isinstance(entered, Refusal) else 1
            wrong = self._wrong(ask, account, 429, "too many calls", ids)
            return wrong._replace(headers={"Retry-After": str(seconds)})
        key, body = (account, call.batch), digest(ask.body)
        given = self._given.get(key, ask.now_ns)
        if given is None:
            given = Given(body, self._deliver(ask, account, call, ids))
            self._given.keep(key, given, ask.now_ns)
        elif given.body != body:
            self.ledger.violations[self.name, "key used for another body"] += 1
            wrong = self._wrong(ask, account, 422, f"batch {call.batch!r} was another body", ids)
            return wrong._replace(held=(account, SEND))
        else:
            self.ledger.add_rows(self._record(ask, account, call), ids, DUPLICATE)
        return Answer(200, given.answer, held=(account, SEND))

    def _record(self, ask: Ask, account: str, call: Call) -> int:
        kind, content = (self.name, SEND, account), digest(call.content)
        return self.ledger.add_call(kind, ask.arrived_ns, 200, 0, len(call.to), call.batch, content)

    def _deliver(self, ask: Ask, account: str, call: Call, ids: list[str]) -> bytes:
        number = self._record(ask, account, call)
        left, later = ids, [id for id in ids if self.again(id)] if self.options.retry_share else []
        if later:
            told = set(later)
            left = [id for id in ids if id not in told]
            self.ledger.add_rows(number, later, RETRY)
        codes = self.deliver(number, account, left, ask.now_ns)
        after = self.options.retry_after_ms
        results = [Result(id, "failed", code) for id, code in codes.items()]
        results += [Result(id, "retry", "busy", after) for id in later]
        return b'{"results":[]}' if not results else msgspec.json.encode({"results": results})
