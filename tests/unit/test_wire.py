"""What the engine writes it can read back, byte for byte as documented; what it cannot read it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import wire, wire_control
from engine.errors import Reject
from engine.send import REASONS, Origin, Outcome
from engine.wire import History, ReceiptFacts, ReceiptSend

ORIGIN = Origin("surgetank.basic", 3, 12_345)


def facts(**changes: Any) -> ReceiptFacts:
    told: dict[str, Any] = {
        "tier": "basic", "channel": "notice", "account": "corp", "tenant": "team", "campaign": "spring",
        "outcome": Outcome.FAILED, "code": "81013", "reason": "user not found", "batch": "b-1", "platform_id": "m-1",
        "at": 1_790_000_000_000,
    }  # fmt: skip
    return ReceiptFacts(**(told | changes))


# --- receipts


def test_receipt_is_the_documented_map() -> None:
    meta = msgspec.Raw(msgpack.packb({"order": 7}))
    sends = [ReceiptSend("o-1", ORIGIN, None, 1, 250, meta), ReceiptSend("o-2", ORIGIN, ["u1", "u2"], 2, 9)]
    (value,) = wire.encode_receipts(facts(), wire.receipt_parts(sends))
    assert msgpack.unpackb(value) == {
        "v": 1, "tier": "basic", "channel": "notice", "account": "corp", "tenant": "team", "campaign": "spring",
        "outcome": "failed", "code": "81013", "reason": "user not found", "batch": "b-1", "platform_id": "m-1",
        "at": 1_790_000_000_000,
        "sends": [
            ["o-1", ["surgetank.basic", 3, 12_345], None, 1, 250, {"order": 7}],
            ["o-2", ["surgetank.basic", 3, 12_345], ["u1", "u2"], 2, 9, None],
        ],
    }  # fmt: skip
    receipt = wire.decode_receipt(value)
    assert receipt.sends == sends
    assert receipt.outcome is Outcome.FAILED
    assert receipt.sends[0].origin == ORIGIN


def test_receipt_of_a_record_nobody_could_read() -> None:
    unknown = facts(channel=None, account=None, tenant=None, campaign=None, outcome=Outcome.DEAD)
    (value,) = wire.encode_receipts(unknown, wire.receipt_parts([ReceiptSend(None, ORIGIN, None, 0, 0)]))
    assert wire.decode_receipt(value).sends[0].id is None


def test_receipts_are_split_at_256_kib() -> None:
    sends = [ReceiptSend(f"o-{n}", ORIGIN, None, 1, n) for n in range(20_000)]
    values = wire.encode_receipts(facts(), wire.receipt_parts(sends))
    assert len(values) > 1
    assert max(map(len, values)) <= wire.MAX_RECEIPT_BYTES
    read = [wire.decode_receipt(value) for value in values]
    assert [send for receipt in read for send in receipt.sends] == sends
    assert {receipt.reason for receipt in read} == {"user not found"}


def test_a_receipts_sends_fill_what_is_theirs_to_the_last_byte() -> None:
    """Grows byte by byte over the limit."""
    fixed = [ReceiptSend(f"o-{n}", ORIGIN, None, 1, 0, msgspec.Raw(msgpack.packb("m" * 4_000))) for n in range(62)]
    largest = set()
    for size in range(3_000, 5_000):
        last = ReceiptSend("o-62", ORIGIN, None, 1, 0, msgspec.Raw(msgpack.packb("m" * size)))
        largest.add(max(map(len, wire.receipt_parts([*fixed, last]))))
    assert max(largest) == wire.MAX_PART_BYTES


def test_one_large_send_is_split_within_its_recipients() -> None:
    to = [f"{n:0128}" for n in range(10_000)]
    large, small = ReceiptSend("o-1", ORIGIN, to, 1, 0), ReceiptSend("o-2", ORIGIN, ["u"], 1, 0)
    values = wire.encode_receipts(facts(), wire.receipt_parts([large, small]))
    assert max(map(len, values)) <= wire.MAX_RECEIPT_BYTES
    told = [send for value in values for send in wire.decode_receipt(value).sends]
    assert [name for send in told if send.id == "o-1" for name in send.to or ()] == to
    assert [send for send in told if send.id == "o-2"] == [small]


def test_a_platforms_words_are_cut_and_cleaned() -> None:
    (value,) = wire.encode_receipts(
        facts(reason=wire.tellable("x" * 100_000), code=wire.tellable("\ud800")),
        wire.receipt_parts([ReceiptSend("o", ORIGIN, None, 1, 0)]),
    )
    receipt = wire.decode_receipt(value)
    assert (receipt.reason, receipt.code) == ("x" * wire.MAX_TOLD_CHARS, "?")


@pytest.mark.parametrize("value", [b"", b"\xc0", b"\x81\xa1v", msgpack.packb({"v": 1}), b"\x91" * 5000])
def test_receipt_unreadable(value: bytes) -> None:
    assert reason_of(wire.decode_receipt, value) == "malformed"


def test_no_meta_is_nil() -> None:
    assert bytes(wire.meta_msgpack(msgspec.Raw(b""))) == b"\xc0"
    kept = msgspec.Raw(b"\x01")
    assert wire.meta_msgpack(kept) is kept


# --- headers


def test_headers_are_the_documented_text() -> None:
    told = History(ORIGIN, 2, 1_790_000_000_000, 3, [0, 9], "retry", "429")
    assert dict(wire.headers_of(told)) == {
        "surgetank-reason": b"retry",
        "surgetank-detail": b"429",
        "surgetank-origin": b"surgetank.basic:3:12345",
        "surgetank-attempts": b"3",
        "surgetank-first-seen": b"1790000000000",
        "surgetank-hop": b"2",
        "surgetank-open": b"\x01\x02",
    }
    assert wire.history(wire.headers_of(told)) == told


def test_headers_of_what_waits_say_until_when() -> None:
    told = History(ORIGIN, 1, 5, 0, None, "not_before", "", until_ms=1_790_000_000_000, back_ms=1_789_000_000_000)
    headers = wire.headers_of(told)
    assert dict(headers)["surgetank-until"] == b"1790000000000"
    assert dict(headers)["surgetank-back"] == b"1789000000000"
    assert wire.history(headers) == told
    assert wire.back_ms(headers) == 1_789_000_000_000
    assert wire.back_ms((("surgetank-back", b"soon"),)) == wire.back_ms(()) == 0


def test_headers_of_what_was_declined_say_how_often() -> None:
    headers = wire.dead_headers("retry", "", ORIGIN, 0, 16, 5, None, 15)
    assert dict(headers)["surgetank-declined"] == b"15"
    told = wire.history(headers)
    assert told is not None
    assert told.declined == 15


def test_dead_headers_leave_out_what_is_all() -> None:
    headers = wire.dead_headers("id_missing", "", ORIGIN, 0, 0, 5, None)
    assert wire.OPEN not in dict(headers)
    told = wire.history(headers)
    assert told is not None
    assert (told.positions, told.reason, told.hop) == (None, "id_missing", 0)


def test_never_moved() -> None:
    assert wire.history(()) is None
    assert wire.history((("traceparent", b"00-"), ("surgetank-hop", b"1"))) is None


def test_other_headers_pass_through() -> None:
    before = (("traceparent", b"00-a"), *wire.dead_headers("x", "", ORIGIN, 0, 1, 5, [7]), ("mine", b"1"))
    ours = wire.dead_headers("y", "", ORIGIN, 0, 2, 5, None)
    assert wire.with_headers(before, ours) == (("traceparent", b"00-a"), ("mine", b"1"), *ours)


BAD_HEADERS = [
    {wire.ORIGIN: b""},
    {wire.ORIGIN: b"t:1"},
    {wire.ORIGIN: b"t:1:2:3"},
    {wire.ORIGIN: b":1:2"},
    {wire.ORIGIN: b"\xff:1:2"},
    {wire.ORIGIN: b"t:-1:2"},
    {wire.ORIGIN: b"t:1:" + b"9" * 19},
    {wire.ORIGIN: b"t:1:2", wire.HOP: b"x"},
    {wire.ORIGIN: b"t:1:2", wire.HOP: b""},
    {wire.ORIGIN: b"t:1:2", wire.ATTEMPTS: b"1.5"},
    {wire.ORIGIN: b"t:1:2", wire.FIRST_SEEN: b"9" * 5000},
    {wire.ORIGIN: b"t:1:2", wire.OPEN: bytes(1251)},
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_bad_headers(headers: dict[str, bytes]) -> None:
    assert reason_of(wire.history, tuple(headers.items())) == "header_invalid"


@given(st.sets(st.integers(0, 9_999)))
def test_positions_come_back(positions: set[int]) -> None:
    bits = wire.bitset(sorted(positions))
    assert len(bits) <= 1_250
    assert wire.positions_of(bits) == sorted(positions)


# --- registered content


@pytest.mark.parametrize("encode", [msgpack.packb, lambda value: json.dumps(value).encode()])
def test_registered(encode: Callable[[Any], bytes]) -> None:
    fields = {"name": {"required": True, "max_chars": 20}, "note": {}}
    got = wire.decode_registered(encode({"channel": "notice", "content": {"text": "hi"}, "fields": fields, "new": 1}))
    assert (got.channel, got.content) == ("notice", {"text": "hi"})
    assert got.fields == {"name": wire.FieldRule(True, 20), "note": wire.FieldRule(False, None)}
    assert wire.decode_registered(encode({"channel": "notice", "content": {}})).fields == {}


BAD_REGISTERED: list[Any] = [
    [],
    {},
    {"channel": "notice"},
    {"channel": "", "content": {}},
    {"channel": 1, "content": {}},
    {"channel": "notice", "content": "hi"},
    {"channel": "notice", "content": {"raw": b"bytes"}},
    {"channel": "notice", "content": {}, "fields": []},
    {"channel": "notice", "content": {}, "fields": {"name": {"max_chars": 0}}},
    {"channel": "notice", "content": {}, "fields": {"name": {"required": "yes"}}},
    {"channel": "notice", "content": {"text": "x" * 200_000}},
]


@pytest.mark.parametrize("value", BAD_REGISTERED, ids=range(len(BAD_REGISTERED)))
def test_bad_registered(value: Any) -> None:
    assert reason_of(wire.decode_registered, msgpack.packb(value)) == "registered_invalid"


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"x" * 129])
def test_bad_content_id(key: bytes | None) -> None:
    assert reason_of(wire.content_id, key) == "registered_invalid"


def test_content_id() -> None:
    assert wire.content_id("模板".encode()) == "模板"


# --- control


def test_command_comes_back() -> None:
    command = wire_control.Command(id="c-1", command="cancel", tenant="team", campaign="spring", at=5, expires=6)
    key, value = wire_control.encode_command(command)
    assert key == b"cancel/team/spring"
    assert msgpack.unpackb(value) == {
        "v": 1, "id": "c-1", "command": "cancel", "tenant": "team", "campaign": "spring", "at": 5, "expires": 6,
    }  # fmt: skip
    assert wire_control.decode_command(value) == command
    slashed = wire_control.Command(id="1", command="cancel", tenant="a/b", campaign="c/d", at=1, expires=2)
    assert wire_control.encode_command(slashed)[0] == b"cancel/a%2Fb/c%2Fd"


def test_keys_of_different_campaigns_differ() -> None:
    """Compaction keeps one record a key: a shared key would lose a command."""
    pairs = [("a/b", "c"), ("a", "b/c"), (None, "a/b/c"), ("a%2Fb", "c"), ("a", "c"), (None, "c"), ("None", "c")]
    commands = [wire_control.Command(id="1", command="cancel", tenant=t, campaign=c, at=1, expires=2) for t, c in pairs]
    assert len({wire_control.encode_command(command)[0] for command in commands}) == len(pairs)


TARGETS: dict[str, dict[str, str]] = {
    "tier basic": {"tier": "basic"},
    "channel a/b": {"channel": "a/b"},
    "account b of channel a": {"channel": "a", "account": "b"},
    "tenant a": {"tenant": "a"},
    "campaign a": {"campaign": "a"},
    "campaign b of tenant a": {"tenant": "a", "campaign": "b"},
}


@pytest.mark.parametrize("said", TARGETS)
def test_pause_and_resume_come_back_under_one_key(said: str) -> None:
    on = wire_control.Target(**TARGETS[said])  # type: ignore[arg-type]
    assert str(on) == said
    keys = set()
    for name in ("pause", "resume"):
        command = wire_control.Command(id="1", command=name, on=on, at=1, expires=2)
        key, value = wire_control.encode_command(command)
        assert wire_control.decode_command(value) == command
        keys.add(key)
    assert len(keys) == 1
    others = [wire_control.Target(**other) for other in TARGETS.values() if other != TARGETS[said]]  # type: ignore[arg-type]
    commands = [wire_control.Command(id="1", command="pause", on=other, at=1, expires=2) for other in others]
    assert not keys & {wire_control.encode_command(command)[0] for command in commands}


@pytest.mark.parametrize("on", [None, {}, {"account": "a"}, {"tier": "urgent"}, {"tier": "basic", "channel": "a"}])
def test_a_pause_of_nothing_there_can_be(on: object) -> None:
    pause = {"id": "1", "command": "pause", "on": on, "at": 1, "expires": 2}
    assert reason_of(wire_control.decode_command, msgpack.packb(pause)) == "command_invalid"
    assert reason_of(wire_control.decode_command, msgpack.packb({**pause, "on": "x"})) == "command_invalid"


def test_reply_comes_back() -> None:
    reply = wire_control.Reply(reply_to="c/1", worker="host-1/2", recipients=70, at=9)
    key, value = wire_control.encode_reply(reply)
    assert key == b"reply/c%2F1/host-1%2F2"
    assert msgpack.unpackb(value) == {"v": 1, "reply_to": "c/1", "worker": "host-1/2", "recipients": 70, "at": 9}
    assert wire_control.decode_reply(value) == reply


COMMAND: dict[str, Any] = {"id": "1", "command": "cancel", "campaign": "c", "at": 1, "expires": 2}


@pytest.mark.parametrize(
    "changes",
    [{"v": 2}, {"id": ""}, {"command": "explode"}, {"campaign": None}, {"at": -1}, {"expires": "soon"}, {"tenant": 1}],
)
def test_bad_command(changes: dict[str, Any]) -> None:
    assert wire_control.decode_command(msgpack.packb(COMMAND)).tenant is None
    assert reason_of(wire_control.decode_command, msgpack.packb(COMMAND | changes)) == "command_invalid"


def test_bad_reply() -> None:
    assert reason_of(wire_control.decode_reply, msgpack.packb({"reply_to": "1"})) == "command_invalid"


def reason_of(read: Callable[[Any], Any], value: Any) -> str:
    with pytest.raises(Reject) as caught:
        read(value)
    assert caught.value.reason in REASONS
    return caught.value.reason
