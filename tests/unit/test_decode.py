"""Every reason decode can give, each from a record that has just this fault, in both encodings."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgpack
import msgspec
import pytest

from engine.decode import decode, decode_many, decode_map, unknown_keys
from engine.errors import Reject
from engine.send import MAX_RECORD_BYTES, REASONS, Recipient, Send

SEND: dict[str, Any] = {"id": "o-1", "channel": "notice", "to": ["u1"], "content": {"type": "text", "text": "hi"}}
ABSENT = object()


def record(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**SEND, **changes}.items() if value is not ABSENT}


def as_msgpack(send: Any) -> bytes:
    packed: bytes = msgpack.packb(send)
    return packed


def as_json(send: Any) -> bytes:
    return json.dumps(send, ensure_ascii=False).encode()


def packed_with(key: str, raw: bytes) -> bytes:
    """SEND in msgpack, with the raw bytes as the value of one more key."""
    return bytes([0x80 | len(SEND) + 1]) + as_msgpack(SEND)[1:] + as_msgpack(key) + raw


def reason_of(value: bytes | None) -> str:
    with pytest.raises(Reject) as caught:
        decode(value)
    assert caught.value.reason in REASONS
    return caught.value.reason


@pytest.mark.parametrize("encode", [as_msgpack, as_json])
def test_whole_send(encode: Any) -> None:
    send = decode(
        encode(
            record(
                v=1,
                to=["u1", {"id": "u2", "data": {"name": "李"}}, {"id": "u3"}],
                account="corp",
                tenant="team",
                campaign="",
                not_before=1,
                due=2,
                deadline=3,
                meta={"order": [1, None, "é"]},
            )
        )
    )
    assert (send.id, send.channel, send.v, send.account, send.tenant) == ("o-1", "notice", 1, "corp", "team")
    assert (send.campaign, send.not_before, send.due, send.deadline) == ("", 1, 2, 3)
    first, second, third = send.to
    assert isinstance(second, Recipient)
    assert isinstance(third, Recipient)
    assert (first, second.id, third.id) == ("u1", "u2", "u3")
    assert decode_map(second.data) == {"name": "李"}
    assert decode_map(third.data) == {}
    assert decode_map(send.content) == SEND["content"]
    assert msgspec.msgpack.decode(send.meta) == {"order": [1, None, "é"]}


@pytest.mark.parametrize("encode", [as_msgpack, as_json])
def test_defaults(encode: Any) -> None:
    send = decode(encode(SEND))
    assert (send.v, send.account, send.tenant, send.campaign) == (1, None, None, None)
    assert (send.not_before, send.due, send.deadline) == (None, None, None)
    assert bytes(send.meta) == b"\xc0"


def test_nil_is_absent_for_optional_keys() -> None:
    nils = dict.fromkeys(("account", "tenant", "campaign", "not_before", "due", "deadline", "meta"))
    assert as_facts(decode(as_msgpack(record(**nils)))) == as_facts(decode(as_msgpack(SEND)))


def as_facts(send: Send) -> tuple[Any, ...]:
    return tuple(bytes(v) if isinstance(v, msgspec.Raw) else v for v in msgspec.structs.astuple(send))


NAME = "x" * 128
WIDE = "é" * 64  # 128 bytes
LIMITS = [
    {"id": NAME, "channel": NAME, "account": NAME, "tenant": NAME, "campaign": NAME},
    {"id": WIDE, "channel": WIDE, "account": WIDE, "tenant": WIDE, "campaign": WIDE},
    {"to": [NAME, WIDE, {"id": NAME, "data": {"k": "x" * 4087}}, {"id": WIDE}]},
    {"to": [str(n) for n in range(10_000)]},
    {"not_before": 0, "due": 2**53 - 1, "deadline": 2**53 - 1},
    {"not_before": 5, "due": 5, "deadline": 5},
    {"meta": "x" * 4000},
    {"meta": False},
    {"content": {}},
    {"content": {"text": "x" * 65_000}},
]


@pytest.mark.parametrize("encode", [as_msgpack, as_json])
@pytest.mark.parametrize("changes", LIMITS, ids=range(len(LIMITS)))
def test_at_the_limit(encode: Any, changes: dict[str, Any]) -> None:
    assert decode(encode(record(**changes))).v == 1


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("version_unknown", {"v": 2}),
    ("version_unknown", {"v": 0}),
    ("version_unknown", {"v": "1"}),
    ("version_unknown", {"v": 1.0}),
    ("version_unknown", {"v": True}),
    ("version_unknown", {"v": None}),
    ("id_missing", {"id": ABSENT}),
    ("id_invalid", {"id": ""}),
    ("id_invalid", {"id": 7}),
    ("id_invalid", {"id": None}),
    ("id_invalid", {"id": "x" * 129}),
    ("id_invalid", {"id": "é" * 64 + "x"}),
    ("id_invalid", {"id": "é" * 65}),
    ("channel_missing", {"channel": ABSENT}),
    ("channel_invalid", {"channel": []}),
    ("channel_invalid", {"channel": "é" * 65}),
    ("account_invalid", {"account": 7}),
    ("account_invalid", {"account": ""}),
    ("account_invalid", {"account": "é" * 65}),
    ("tenant_invalid", {"tenant": {}}),
    ("tenant_invalid", {"tenant": "é" * 65}),
    ("campaign_invalid", {"campaign": 7}),
    ("campaign_invalid", {"campaign": "é" * 65}),
    ("to_missing", {"to": ABSENT}),
    ("to_invalid", {"to": "u1"}),
    ("to_invalid", {"to": None}),
    ("to_invalid", {"to": {"id": "u1"}}),
    ("to_invalid", {"to": ["u1", 7]}),
    ("to_invalid", {"to": [None]}),
    ("to_empty", {"to": []}),
    ("to_too_many", {"to": ["u"] * 10_001}),
    ("recipient_invalid", {"to": ["u1", ""]}),
    ("recipient_invalid", {"to": ["é" * 65]}),
    ("recipient_invalid", {"to": ["u1", "é" * 65]}),
    ("recipient_invalid", {"to": [{"data": {}}]}),
    ("recipient_invalid", {"to": [{"id": 7}]}),
    ("recipient_invalid", {"to": [{"id": "é" * 65}]}),
    ("data_invalid", {"to": [{"id": "u1", "data": []}]}),
    ("data_invalid", {"to": [{"id": "u1", "data": 123}]}),  # in msgpack the byte that starts JSON
    ("data_invalid", {"to": [{"id": "u1", "data": None}]}),
    ("data_invalid", {"to": [{"id": "u1", "data": {"k": "x" * 4096}}]}),
    ("content_missing", {"content": ABSENT}),
    ("content_invalid", {"content": "hi"}),
    ("content_invalid", {"content": 123}),
    ("content_invalid", {"content": None}),
    ("content_too_large", {"content": {"text": "x" * 65_536}}),
    ("not_before_invalid", {"not_before": -1}),
    ("not_before_invalid", {"not_before": 1.5}),
    ("due_invalid", {"due": "tomorrow"}),
    ("due_invalid", {"due": True}),
    ("deadline_invalid", {"deadline": 2**53}),
    ("deadline_invalid", {"deadline": 2**64 - 1}),
    ("times_contradict", {"not_before": 10, "deadline": 9}),
    ("times_contradict", {"not_before": 10, "due": 9}),
    ("times_contradict", {"due": 10, "deadline": 9}),
    ("meta_too_large", {"meta": "x" * 4096}),
    ("too_large", {"content": {"text": "x" * MAX_RECORD_BYTES}}),
]


@pytest.mark.parametrize("encode", [as_msgpack, as_json])
@pytest.mark.parametrize(("reason", "changes"), FAULTS, ids=range(len(FAULTS)))
def test_fault(encode: Any, reason: str, changes: dict[str, Any]) -> None:
    assert reason_of(encode(record(**changes))) == reason


BROKEN = [
    ("empty", None),
    ("empty", b""),
    ("not_a_map", b"\xc0"),
    ("not_a_map", b"[]"),
    ("not_a_map", b'"{}"'),
    ("not_a_map", b" {}"),
    ("not_a_map", b"\xef\xbb\xbf{}"),
    ("malformed", b"{"),
    ("malformed", b"{}}"),
    ("malformed", b'{"id":"'),
    ("malformed", b'{"id":"o-1",}'),
    ("malformed", b"{'id':1}"),
    ("malformed", as_json(record(meta=float("nan")))),
    ("malformed", as_json(record(meta=float("inf")))),
    ("malformed", as_json(SEND).replace(b"o-1", b"\\ud800")),
    ("malformed", as_json(SEND).replace(b"o-1", b"\xed\xa0\x80")),
    ("malformed", as_json(SEND).replace(b"hi", b"\xff")),
    ("malformed", as_json(SEND).replace(b"hi", b"\x01")),
    ("malformed", as_json(SEND) + b"{}"),
    ("malformed", b"\x80\xc0"),
    ("malformed", b"\xdf\xff\xff\xff\xff"),
    ("malformed", packed_with("to", b"\xdd\x7f\xff\xff\xff\xa1a")),
    ("malformed", packed_with("meta", b"\xc1")),
    ("malformed", packed_with("meta", b"\xa1\xff")),
    ("malformed", packed_with("meta", b"\xa3\xed\xa0\x80")),
    ("malformed", packed_with("meta", b"\xa2\xc0\x80")),
    ("malformed", packed_with("meta", b"\xa2\xc3x")),
    ("malformed", packed_with("meta", b"\xa3\xe0\x80\x80")),
    ("malformed", packed_with("meta", b"\xa3\xe1\x80x")),
    ("malformed", packed_with("meta", b"\xa4\xf0\x80\x80\x80")),
    ("malformed", packed_with("meta", b"\xa4\xf0\x90\x80x")),
    ("malformed", packed_with("meta", b"\xa4\xf4\x90\x80\x80")),
    ("malformed", packed_with("meta", b"\xa4\xf5\x80\x80\x80")),
    ("malformed", packed_with("unknown", b"\xdb\xff\xff\xff\xff")),
    ("malformed", as_msgpack(SEND) + b"\x00"),
    ("key_invalid", b"\x81\x01\x02"),
    ("key_invalid", packed_with("meta", b"\x81\xc0\xc0")),
    ("key_invalid", packed_with("meta", b"\x81\x90\xc0")),
    ("key_invalid", packed_with("meta", b"\x81\xc4\x01k\xc0")),
    ("key_invalid", packed_with("meta", b"\x81\xcb" + bytes(8) + b"\xc0")),
    ("extension", packed_with("meta", b"\xd4\x05\x00")),
    ("extension", as_msgpack(record(content={"at": msgpack.Timestamp(0)}))),
    ("too_deep", packed_with("unknown", b"\x91" * 64 + b"\xc0")),
    ("too_deep", packed_with("meta", b"\x81\xa1k" * 64 + b"\xc0")),
    ("too_deep", packed_with("unknown", b"\x91" * 1_000_000)),
    ("too_deep", as_json(SEND)[:-1] + b',"meta":' + b"[" * 64 + b"]" * 64 + b"}"),
    ("too_deep", as_json(SEND)[:-1] + b',"meta":' + b"[" * 1_000_000),
    ("meta_invalid", as_json(SEND)[:-1] + b',"meta":1e999}'),
    ("meta_invalid", as_json(SEND)[:-1] + b',"meta":' + b"9" * 400 + b"}"),
]


@pytest.mark.parametrize(("reason", "value"), BROKEN, ids=range(len(BROKEN)))
def test_broken(reason: str, value: bytes | None) -> None:
    assert reason_of(value) == reason


def test_depth_of_64_passes() -> None:
    assert decode(packed_with("meta", b"\x91" * 63 + b"\xc0")).id == "o-1"
    assert decode(as_json(SEND)[:-1] + b',"meta":' + b"[" * 63 + b"]" * 63 + b"}").id == "o-1"


@pytest.mark.parametrize("cut", range(len(as_msgpack(SEND))))
def test_every_cut_msgpack(cut: int) -> None:
    assert reason_of(as_msgpack(SEND)[:cut]) == ("malformed" if cut else "empty")


@pytest.mark.parametrize("cut", range(len(as_json(SEND))))
def test_every_cut_json(cut: int) -> None:
    assert reason_of(as_json(SEND)[:cut]) == ("malformed" if cut else "empty")


def test_first_fault_is_named() -> None:
    """The order is part of what producers see: version, names, recipients, content, times, meta."""
    faults: dict[str, Any] = {
        "v": 2, "id": 1, "channel": 1, "account": 1, "tenant": 1, "campaign": 1, "to": 1, "content": 1,
        "not_before": -1, "due": -1, "deadline": -1, "meta": "x" * 4096,
    }  # fmt: skip
    named = []
    while faults:
        named.append(reason_of(as_msgpack(record(**faults))))
        faults.pop(next(iter(faults)))
    assert named == [
        "version_unknown", "id_invalid", "channel_invalid", "account_invalid", "tenant_invalid", "campaign_invalid",
        "to_invalid", "content_invalid", "not_before_invalid", "due_invalid", "deadline_invalid", "meta_too_large",
    ]  # fmt: skip


def test_detail_says_where() -> None:
    with pytest.raises(Reject, match=r"to\[3\]: 130 bytes; at most 128"):
        decode(as_msgpack(record(to=["a", "b", "c", "é" * 65])))
    with pytest.raises(Reject, match="not UTF-8 at byte"):
        decode(as_msgpack(SEND).replace(b"hi", b"\xffi"))


@pytest.mark.parametrize("encode", [as_msgpack, as_json])
def test_unknown_keys_are_counted_and_ignored(encode: Any) -> None:
    value = encode(record(colour="red", ids=1, meta={"colour": 1}, Id=3))
    assert unknown_keys(value) == 3
    assert as_facts(decode(value))[:3] == as_facts(decode(encode(SEND)))[:3]
    assert unknown_keys(encode(SEND)) == 0


def test_last_of_a_repeated_key_counts() -> None:
    assert decode(packed_with("id", b"\xa1z")).id == "z"
    assert decode(as_json(SEND)[:-1] + b',"id":"z"}').id == "z"


def test_decode_many_keeps_order_and_counts() -> None:
    good, bad = as_msgpack(record(x=1)), b"\xc0"
    decoded = decode_many([good, bad, None, as_json(record(y=1, z=2))])
    kinds = [item.reason if isinstance(item, Reject) else item.id for item in decoded.sends]
    assert kinds == ["o-1", "not_a_map", "empty", "o-1"]
    assert decoded.unknown_keys == 3


PLAIN_FAULTS = [
    msgpack.packb({"k": b"bytes"}),
    msgpack.packb({"k": float("nan")}),
    msgpack.packb({"k": [float("-inf")]}),
    b"\x81\xa1k\xca\x7f\x80\x00\x00",  # a 4-byte infinity
    b'{"k":1e999}',
    b'{"k":"\\udc00"}',
    b"[]",
    b"\x91\x01",
]


@pytest.mark.parametrize("raw", PLAIN_FAULTS, ids=range(len(PLAIN_FAULTS)))
def test_decode_map_refuses_what_json_cannot_say(raw: bytes) -> None:
    with pytest.raises(Reject) as caught:
        decode_map(raw, "data_invalid")
    assert caught.value.reason == "data_invalid"


def test_decode_map_reads_numbers() -> None:
    assert decode_map(msgpack.packb({"a": 1.5, "b": -(2**63), "c": 2**64 - 1, "d": None, "e": True})) == {
        "a": 1.5, "b": -(2**63), "c": 2**64 - 1, "d": None, "e": True,
    }  # fmt: skip
    assert decode_map(b"\x81\xa1k\xca" + struct.pack(">f", 0.5)) == {"k": 0.5}
    assert decode_map(msgspec.Raw(b"")) == {}
