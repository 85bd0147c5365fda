"""The audit's parts: rows sorted on disk, records read without the engine's codecs, one send judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from engine import audit_rows as rows
from engine import audit_runs, wire
from engine.audit import MOST_CAMPAIGNS, OTHER, Audit, Finding, Window
from engine.audit_runs import Runs
from engine.config import Duration, TierConfig, default_tiers
from engine.decode import decode
from engine.send import Origin, Outcome, Recipient

ORIGIN = ("surgetank.basic", 0, 7)
ALL_TIME = Window(0, 1 << 62, None)
DAY_MS = 86_400_000


# --- sorted runs


@pytest.mark.parametrize("most_bytes", [1, 2_000, 1 << 20])
def test_rows_come_by_key_and_of_one_key_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(audit_runs, "FAN_IN", 4)
    runs = Runs(tmp_path, most_bytes)
    added = [(b"%03d" % (n * 7919 % 100), b"%d" % n) for n in range(1000)]
    for key, value in added:
        runs.add(key, value)
    assert len(list(tmp_path.iterdir())) <= 4
    assert list(runs.rows()) == sorted(added, key=lambda row: (row[0], int(row[1])))


def test_no_rows(tmp_path: Path) -> None:
    assert list(Runs(tmp_path).rows()) == []


# --- records, read another way than the engine reads them

BODIES: list[dict[str, Any]] = [
    {"id": "i", "channel": "c", "to": ["a", "王"], "content": {}},
    {"id": "i", "channel": "c", "to": [{"id": "a", "data": {"x": 1}}, "b"], "content": {}, "tenant": "t"},
    {"v": 1, "id": "i", "channel": "c", "to": ["a"], "content": {"t": "x" * 999}, "campaign": "", "meta": [1, None]},
    {"id": "i", "channel": "c", "to": ["a"], "content": {}, "not_before": 5, "due": 6, "deadline": 2**40, "more": 1},
    {"id": "i", "channel": "c", "to": ["a"], "content": {}, "due": None, "account": None},
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("pack", [msgpack.packb, lambda body: json.dumps(body).encode()])
def test_a_send_reads_as_the_engine_reads_it(body: dict[str, Any], pack: Any) -> None:
    value = pack(body)
    send, read = decode(value), rows.sent(value, "basic", True, 9, None)
    assert read.to == [one.id if isinstance(one, Recipient) else one for one in send.to]
    assert (read.id, read.channel, read.tenant, read.campaign) == (send.id, send.channel, send.tenant, send.campaign)
    assert (read.not_before, read.due, read.deadline) == (send.not_before or 0, send.due, send.deadline)
    assert rows.decode(rows.encode(read)) == read


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"\x93\x01\x02\x03", b'{"to": []}', b'{"to": [7]}', b'{"to": ["a", {}]}', b'{"to": ["\\ud800"]}',
     b"\x81\x91\x01\x02", b"\x81\xa2to\x91\xa1\xff", b"[" * 9999, b'{"to":' + b"[" * 99_999,
     msgpack.packb({"to": ["a"] * 10_001})],
)  # fmt: skip
def test_what_cannot_be_read_is_one_nameless_recipient(value: bytes | None) -> None:
    read = rows.sent(value, "basic", False, 9, None)
    assert (read.to, read.id, read.seen_ms) == ([""], None, 9)


def test_receipts_read_as_they_were_written() -> None:
    facts = wire.ReceiptFacts(
        tier="basic", channel="c", account="a", tenant="t", campaign="k", outcome=Outcome.ACCEPTED, code="", reason="",
        batch="b", platform_id="p", at=5,
    )  # fmt: skip
    sends = [
        wire.ReceiptSend("i", Origin("t", 1, 2), None, 1, 0),
        wire.ReceiptSend(None, Origin("t", 1, 3), ["x"], 1, 0),
    ]
    (value,) = wire.encode_receipts(facts, wire.receipt_parts(sends))
    assert list(rows.told(value)) == [
        (("t", 1, 2), rows.Told("i", None, "accepted", "b", 5, "basic", "c", "k")),
        (("t", 1, 3), rows.Told(None, ["x"], "accepted", "b", 5, "basic", "c", "k")),
    ]


@pytest.mark.parametrize(
    "value",
    [None, b"x", {}, {"at": "x"}, {"sends": [[]]}, {"sends": [["i", ["t", -1, 0], None]]},
     {"sends": [["i", ["t", 0, 1 << 63], None]]}, {"sends": [["i", "t:0:1", None]]}, {"sends": 7}],
)  # fmt: skip
def test_what_is_no_receipt_is_said(value: Any) -> None:
    if isinstance(value, dict):
        facts = {"tier": "basic", "outcome": "dead", "batch": "", "at": 1, "sends": [["i", 0, 0]]}
        value = msgpack.packb({**facts, **value})
    with pytest.raises(ValueError, match="not a receipt"):
        list(rows.told(value))


def test_headers_read_as_they_were_written() -> None:
    written = wire.headers_of(wire.History(Origin("t.x", 3, 4), 2, 99, 5, [0, 9], "why", "what"))
    assert rows.history(written) == rows.History(("t.x", 3, 4), 2, 99, (0, 9), "why")
    assert rows.history((("traceparent", b"x"),)) is None
    for wrong in (b"t:1", b"t:x:1", b"t:-1:1", b"\xff:1:1", b"t:1:99999999999999999999"):
        assert rows.history((("surgetank-origin", wrong),)) is None


# --- one send


class Judge:
    """An audit that remembers."""

    def __init__(self, window: Window = ALL_TIME, **tier: Any) -> None:
        self.findings: list[Finding] = []
        tiers = {**default_tiers(), "basic": TierConfig(**tier)}
        self.audit = Audit(tiers, window, 1_000, self.findings.append)

    def of(self, *judged: rows.Row, gone: bool = False, dead_whole: bool = True) -> list[tuple[str, str, str]]:
        self.audit.judge(ORIGIN, judged, gone, dead_whole)
        return [(one.kind, one.recipient, one.why) for one in self.findings]


def sent(to: tuple[str, ...] = ("a",), hop: int = 0, settled: bool = True, **keys: Any) -> rows.Sent:
    facts: dict[str, Any] = {"positions": None, "seen_ms": 1_000, "id": "i", "channel": "c", "tenant": None,
                             "campaign": "k", "not_before": 0, "due": None, "deadline": None, **keys}  # fmt: skip
    return rows.Sent(tier="basic", hop=hop, settled=settled, to=list(to), **facts)


def told(outcome: str = "accepted", to: list[str] | None = None, batch: str = "b", at: int = 1_500) -> rows.Told:
    return rows.Told("i", to, outcome, batch, at, "basic", "c", "k")


def test_a_recipient_named_twice_has_one_end_and_one_duplicate() -> None:
    judge = Judge()
    assert judge.of(sent(("a", "b", "a")), told("accepted", ["a", "b"]), told("duplicate", ["a"], "")) == []
    assert judge.audit.total.outcomes == {"accepted": 2, "duplicate": 1}
    assert Judge().of(sent(("a", "a")), told("duplicate")) == []


def test_told_again_is_not_sent_again() -> None:
    assert Judge().of(sent(), told(), told(at=9)) == []
    ((kind, name, why),) = Judge().of(sent(), told(), told(batch="c"))
    assert (kind, name, why) == ("repeated", "a", "accepted in 2 calls: b, c")
    assert [found[0] for found in Judge().of(sent(), told("unknown"), told("unknown", batch="c"))] == ["repeated"]


def test_what_is_refined_later_is_no_other_end() -> None:
    assert Judge().of(sent(), told(), told("delivered", batch=""), told("read", batch="")) == []
    assert Judge().of(sent(), told("delivered"))[0][0] == "missing"
    assert Judge().of(sent(), told(), told("vanished"))[0][0] == "unexplained"


def test_what_waits_is_not_missing() -> None:
    assert Judge().of(sent(settled=False)) == []
    parts = sent(("a", "b"), hop=1, settled=False, positions=(1,))
    assert Judge().of(sent(("a", "b")), parts) == [("missing", "a", "no outcome, and its record is committed")]
    back = sent(("a", "b"), hop=2, positions=(1,))
    assert len(Judge().of(sent(("a", "b")), sent(("a", "b"), hop=1, positions=(1,)), back)) == 2


def test_due_times_and_deadlines() -> None:
    assert Judge(due_after=Duration(10**9)).of(sent(), told(at=3_000)) == []
    late = Judge(due_after=Duration(10**9)).of(sent(), told(at=3_001))
    assert late == [("late", "a", "1001 ms after its due time")]
    assert Judge(due_after=Duration(10**9)).of(sent(not_before=9_000), told(at=10_500)) == []
    assert Judge().of(sent(due=1_200), told(at=2_201))[0][0] == "late"
    assert Judge().of(sent(deadline=2_000), told("expired", at=1_000)) == []
    early = Judge().of(sent(deadline=2_000), told("expired", at=999))
    assert early == [("unexplained", "a", "expired 1001 ms before its deadline")]
    assert Judge().of(sent(), told("expired", at=1_000 + DAY_MS)) == []
    assert Judge().of(sent(), told("expired", at=DAY_MS - 1))[0][0] == "unexplained"


def test_what_was_replayed_is_due_anew() -> None:
    judge = Judge(due_after=Duration(10**9))
    again = sent(("a", "b"), hop=1, seen_ms=50_000, positions=(1,))
    findings = judge.of(
        sent(("a", "b")), told(to=["a"]), told("dead", ["b"]), rows.Kept((1,), "x"), again, told(to=["b"], at=51_500)
    )
    assert findings == []
    judge = Judge(due_after=Duration(10**9))
    assert judge.of(sent(("a",)), sent(("a",), hop=1), told(at=51_500))[0][0] == "late", "moved, and not seen anew"


def test_dead_letters_and_receipts_of_them_belong_together() -> None:
    kept = rows.Kept((1,), "failed")
    to = ("a", "b")
    assert Judge().of(sent(to), told("accepted", ["a"]), told("dead", ["b"]), kept) == []
    assert Judge().of(sent(to), told("dead"), kept) == [("unexplained", "a", "told dead, and not on the dead topic")]
    assert Judge().of(sent(to), told("dead"), kept, dead_whole=False) == []
    assert Judge().of(sent(to), told(), kept) == [("unexplained", "b", "on the dead topic, and not told dead")]
    assert Judge().of(sent(to, settled=False), told("dead", ["a"])) == []
    assert [found[:2] for found in Judge().of(sent(to), told("accepted", ["a"]), kept)] == [("missing", "b")]


def test_an_origin_that_is_not_there() -> None:
    assert Judge().of(told(), gone=True) == []
    assert Judge().of(told(to=["a", "b"])) == [
        ("unexplained", name, "told accepted, and no such record") for name in ("a", "b")
    ]
    back = sent(("a", "b"), hop=3, positions=(0,))
    assert Judge().of(back, told(to=["a", "b"])) == [], "its origin was removed; a hop still names everybody"


def test_only_what_was_asked_for_is_judged() -> None:
    for window in (Window(1_001, 1 << 62, None), Window(0, 1_000, None), Window(0, 1 << 62, "other")):
        judge = Judge(window)
        assert judge.of(sent()) == []
        assert judge.audit.total.recipients == 0
    assert len(Judge(Window(1_000, 1_001, "k")).of(sent())) == 1


def test_campaigns_beyond_a_number_are_counted_together() -> None:
    judge = Judge()
    for n in range(MOST_CAMPAIGNS + 5):
        judge.of(sent(campaign=f"k{n}"), told())
    assert len(judge.audit.places) == MOST_CAMPAIGNS + 1
    assert judge.audit.places["basic", "c", OTHER].recipients == 5
