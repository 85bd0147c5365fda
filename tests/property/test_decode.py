"""Whatever the bytes, decode ends well; valid sends come out as they went in; hostile ones stay within memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.decode import decode, decode_many, decode_map
from engine.errors import Reject
from engine.send import MAX_RECORD_BYTES, REASONS, Recipient
from ext.scan import ScanError, Scanner

# --- strategies

TEXT = st.text(max_size=20)
NAMES = st.text(min_size=1, max_size=32)  # at most 128 bytes
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
MAPS = st.dictionaries(TEXT, PLAIN, max_size=4)
RECIPIENTS = NAMES | st.fixed_dictionaries({"id": NAMES}, optional={"data": MAPS})
TIMES = st.lists(st.integers(0, 2**53 - 1), min_size=3, max_size=3).map(sorted)


@st.composite
def sends(draw: st.DrawFn) -> dict[str, Any]:
    """A valid send."""
    required = {"id": NAMES, "channel": NAMES, "to": st.lists(RECIPIENTS, min_size=1, max_size=5), "content": MAPS}
    names = {"account": NAMES, "tenant": NAMES, "campaign": st.text(max_size=32), "meta": PLAIN, "v": st.just(1)}
    send: dict[str, Any] = draw(st.fixed_dictionaries(required, optional=names))
    times = dict(zip(("not_before", "due", "deadline"), draw(TIMES), strict=True))
    return send | {key: at for key, at in times.items() if draw(st.booleans())}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """A valid send with a value or two replaced, and sometimes a byte changed or the end cut off."""
    send = draw(sends())
    for key in draw(st.lists(st.sampled_from(sorted(send)), max_size=2)):
        send[key] = draw(ANY)
    value: bytes = msgpack.packb(send)
    if draw(st.booleans()):
        with suppress(TypeError, ValueError):
            value = json.dumps(send, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        value = value[:at] + draw(st.binary(max_size=3)) + value[at + draw(st.integers(0, 2)) :]
    return value


# --- properties


@given(sends(), st.booleans())
def test_valid_sends_come_out_as_they_went_in(send: dict[str, Any], as_json: bool) -> None:
    got = decode(json.dumps(send).encode() if as_json else msgpack.packb(send))
    for key in ("id", "channel", "account", "tenant", "campaign", "not_before", "due", "deadline"):
        assert getattr(got, key) == send.get(key)
    assert decode_map(got.content) == send["content"]
    assert msgspec.msgpack.decode(got.meta) == send.get("meta")
    for one, sent in zip(got.to, send["to"], strict=True):
        if isinstance(one, Recipient):
            assert (one.id, decode_map(one.data)) == (sent["id"], sent.get("data", {}))
        else:
            assert one == sent


@given(st.binary(max_size=200) | nearly())
def test_a_send_or_a_reason(value: bytes) -> None:
    (send,) = decode_many([value]).sends
    if isinstance(send, Reject):
        assert send.reason in REASONS
        assert send.detail != "larger than allowed"
    else:
        msgspec.msgpack.decode(send.meta)


def plain_model(value: bytes) -> bool:
    """What the scanner should say, told by a decoder that builds everything."""

    def fits(item: Any, depth: int) -> bool:
        if isinstance(item, dict):
            return depth < 64 and all(isinstance(k, str) and fits(v, depth + 1) for k, v in item.items())
        if isinstance(item, list):
            return depth < 64 and all(fits(inner, depth + 1) for inner in item)
        return not isinstance(item, msgpack.ExtType | msgpack.Timestamp)

    try:
        built = msgpack.unpackb(value, strict_map_key=False, object_pairs_hook=Pairs)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return False
    return isinstance(built, dict) and fits(built, 0)


class Pairs(dict[Any, Any]):
    """A map whose keys may be anything, even what cannot be hashed; repeated keys are kept apart as one bad key."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        strings = {k: v for k, v in pairs if isinstance(k, str)}
        super().__init__(strings)
        if any(not isinstance(k, str) for k, _ in pairs):
            self[0] = None


@given(st.binary(max_size=60) | nearly().filter(lambda v: v[:1] != b"{") | ANY.map(msgpack.packb))
@example(b"\x81\xa1a" + b"\x91" * 63 + b"\xc0")
@example(b"\x81\xa1a" + b"\x91" * 64 + b"\xc0")
@example(b"\x82\xa1a\x80\xa1a\x90")
def test_scanner_agrees_with_a_decoder_that_builds_all(value: bytes) -> None:
    if value[:1] != b"{":
        assert scans(value) == plain_model(value)


def scans(value: bytes) -> bool:
    try:
        Scanner(()).scan(value)
    except ScanError:
        return False
    return True


# --- memory

HEAD = {"id": "o", "channel": "c", "to": ["u"], "content": {}}


def filled(key: str, raw: bytes) -> bytes:
    head: bytes = msgpack.packb(HEAD)
    name: bytes = msgpack.packb(key)
    return bytes([head[0] + 1]) + head[1:] + name + raw


def filled_json(key: str, raw: bytes) -> bytes:
    return json.dumps(HEAD).encode()[:-1] + b',"' + key.encode() + b'":' + raw + b"}"


def array(item: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def json_array(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "declared array": lambda: filled("to", b"\xdd\xff\xff\xff\xff"),
    "declared map": lambda: filled("content", b"\xdf\xff\xff\xff\xff"),
    "declared text": lambda: filled("id", b"\xdb\xff\xff\xff\xff"),
    "declared array, bytes there": lambda: filled("to", b"\xdd\x00\x0f\x42\x40" + b"\xa1u" * 400_000),
    "deep": lambda: filled("meta", b"\x91" * 1_000_000),
    "deep json": lambda: filled_json("meta", b"[" * 1_000_000),
    "one-letter recipients": lambda: filled("to", array(b"\xa1u", 10_000)),
    "one-letter recipients json": lambda: filled_json("to", json_array(b'"u"', 10_000)),
    "small recipients": lambda: filled("to", array(b"\xa2uu", 10_000)),
    "wide letters": lambda: filled("to", array(b"\xa3\xe4\xb8\xad", 10_000)),
    "wide one-letter recipients json": lambda: filled_json("to", json_array("Ā".encode().join([b'"', b'"']), 10_000)),
    "wide letters json": lambda: filled_json("to", json_array("中".encode().join([b'"', b'"']), 10_000)),
    "wide letters, the last a number json": lambda: filled_json(
        "to", json_array("Ā".encode().join([b'"', b'"']), 9_999)[:-1] + b",1]"
    ),
    "maps with wide letters": lambda: filled("to", array(b"\x81\xa2id\xa2\xc4\x80", 10_000)),
    "maps with wide letters json": lambda: filled_json("to", json_array('{"id":"Ā"}'.encode(), 10_000)),
    "wide one-letter recipients": lambda: filled("to", array(b"\xa2\xc4\x80", 10_000)),
    "wide one-letter recipients, the last too long": lambda: filled(
        "to", b"\xdc\x27\x10" + b"\xa2\xc4\x80" * 9_999 + b"\xd9\x82" + b"\xc3\xa9" * 65
    ),
    "wide one-letter recipients, the last a number": lambda: filled(
        "to", b"\xdc\x27\x10" + b"\xa2\xc4\x80" * 9_999 + b"\x01"
    ),
    "wide one-letter recipients, then no content": lambda: filled(
        "content", b"\xc0\xa2to" + array(b"\xa2\xc4\x80", 10_000)
    ).replace(b"\x85", b"\x86", 1),
    "recipient maps": lambda: filled("to", array(b"\x81\xa2id\xa1u", 10_000)),
    "recipient maps with data": lambda: filled("to", array(b"\x82\xa2id\xa1u\xa4data\x80", 10_000)),
    "recipients then a bad one": lambda: filled(
        "to", array(b"\xa1u", 9_999)[:3] + b"\x27\x10" + b"\xa1u" * 9_999 + b"\x01"
    ),
    "too many": lambda: filled("to", array(b"\xa1u", 500_000)),
    "too many json": lambda: filled_json("to", json_array(b'"u"', 400_000)),
    "numbers for recipients": lambda: filled("to", array(b"\x01", 1_000_000)),
    "numbers for recipients json": lambda: filled_json("to", json_array(b"1", 900_000)),
    "lists for recipients": lambda: filled("to", array(b"\x90", 1_000_000)),
    "small number of lists": lambda: filled("to", array(b"\x90", 10_000)),
    "small number of lists json": lambda: filled_json("to", json_array(b"[]", 10_000)),
    "lists for id": lambda: filled("id", array(b"\x90", 1_000_000)),
    "lists for id json": lambda: filled_json("id", json_array(b"[]", 600_000)),
    "lists in content": lambda: filled("content", b"\x81\xa1k" + array(b"\x90", 65_000)),
    "lists in meta json": lambda: filled_json("meta", json_array(b"[]", 1_300)),
    "lists under an unknown key": lambda: filled("unknown", array(b"\x90", 1_900_000)),
    "many unknown keys": lambda: b"\xde\xff\xff" + b"".join(b"\xa3%03x\xc0" % (n % 4096) for n in range(65_535)),
    "long number json": lambda: filled_json("due", b"9" * 2_000_000),
    "long number in meta json": lambda: filled_json("meta", b"9" * 4_000),
    "escapes json": lambda: filled_json("id", b'"' + b"\\u00e9" * 300_000 + b'"'),
    "escaped recipients json": lambda: filled_json("to", json_array(b'"\\u4e2d"', 10_000)),
    "quotes json": lambda: b'{"' * 1_000_000,
    "backslashes json": lambda: b'{"' + b"\\" * 2_000_000,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_memory_stays_within_20_times_the_record(make: Callable[[], bytes]) -> None:
    value = make()
    assert len(value) <= MAX_RECORD_BYTES
    tracemalloc.start()
    with suppress(Reject):
        decode(value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 20 * len(value) + 16 * 1024, f"{peak / len(value):.1f} times {len(value):,}"
