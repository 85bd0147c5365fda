"""JSONL and CSV become sends in wire format; a line that is none says why and costs only itself."""

from __future__ import annotations

import io

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cli.input import Line, read_lines
from engine.decode import decode
from engine.errors import Reject
from engine.send import MAX_RECORD_BYTES, Send

GOOD = b'{"id":"1","channel":"c","to":["a","b"],"content":{"type":"text","text":"hi"}}'
HEADER = "id,channel,to,text,content,tenant,due,meta,data.name\n"


def jsonl(text: bytes) -> list[Line]:
    return list(read_lines("f", io.BytesIO(text), "jsonl"))


def rows(text: str) -> list[Line]:
    return list(read_lines("f", io.BytesIO(text.encode()), "csv"))


def told(line: Line) -> str:
    assert isinstance(line.send, Reject)
    return str(line.send)


def test_a_line_becomes_the_msgpack_send_the_engine_reads() -> None:
    (line,) = jsonl(GOOD)
    assert msgspec.msgpack.decode(line.value) == msgspec.json.decode(GOOD)
    assert decode(line.value) == line.send
    assert isinstance(line.send, Send)
    assert line.send.to == ["a", "b"]


def test_lines_are_numbered_blank_ones_too() -> None:
    lines = jsonl(b"\xef\xbb\xbf" + GOOD + b"\r\n\n   \nnope\n" + GOOD)
    assert [line.number for line in lines] == [1, 4, 5]
    assert [isinstance(line.send, Reject) for line in lines] == [False, True, False]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "not_a_map"),
        (b"[]", "not_a_map"),
        (b'{"id":', "malformed"),
        (b'{"id":"\xff"}', "malformed"),
        (GOOD.replace(b'"1"', b'""'), "id_invalid"),
        (GOOD.replace(b'["a","b"]', b"[]"), "to_empty"),
        (GOOD.replace(b'"content"', b'"contents"'), "content_missing"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "too_deep"),
    ],
)
def test_a_bad_line_is_refused_with_the_engines_reason(line: bytes, reason: str) -> None:
    bad, good = jsonl(line + b"\n" + GOOD)
    assert told(bad).startswith(reason)
    assert bad.value == b""
    assert good.number == 2


def test_a_line_longer_than_a_record_is_skipped_without_being_held() -> None:
    long, good = jsonl(b'{"id":"' + b"x" * (5 * MAX_RECORD_BYTES) + b'"}\n' + GOOD)
    assert told(long).startswith("too_large")
    assert (good.number, isinstance(good.send, Send)) == (2, True)
    assert good.end == 5 * MAX_RECORD_BYTES + 10 + len(GOOD)


def test_a_number_too_large_for_msgpack_stays_json() -> None:
    (line,) = jsonl(GOOD.replace(b'"hi"', b"1" + b"0" * 30))
    assert line.value[:1] == b"{"
    assert decode(line.value) == line.send


@given(st.binary(max_size=200))
def test_any_bytes_are_lines_or_refusals(text: bytes) -> None:
    for line in jsonl(text):
        assert isinstance(line.send, Reject) == (line.value == b"")


# --- CSV


def test_a_row_becomes_a_send() -> None:
    (line,) = rows(HEADER + '7,c,a|b,"hello\nworld",,t,2026-01-01T00:00:00Z,"{""n"":1}",Bob\n')
    assert msgspec.msgpack.decode(line.value) == {
        "id": "7", "channel": "c", "tenant": "t", "content": {"type": "text", "text": "hello\nworld"},
        "to": [{"id": "a", "data": {"name": "Bob"}}, {"id": "b", "data": {"name": "Bob"}}],
        "due": 1_767_225_600_000, "meta": {"n": 1},
    }  # fmt: skip
    assert isinstance(line.send, Send)


def test_empty_cells_are_as_if_absent() -> None:
    (line,) = rows(HEADER + '7,c,a,,"{""template"":""x""}",,1767225600000,,\n')
    assert msgspec.msgpack.decode(line.value) == {
        "id": "7", "channel": "c", "content": {"template": "x"}, "to": ["a"], "due": 1_767_225_600_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("7,c,a,hi,,,soon,,", "due_invalid: 'soon' is neither"),
        ("7,c,a,hi,,,2026-01-01T00:00:00,,", "due_invalid"),
        ("7,c,a,hi,{},,,,", "content_invalid: give either"),
        ("7,c,a,,{,,,,", "content_invalid: `content` is not JSON"),
        ("7,c,a,hi,,,,{,", "malformed: `meta` is not JSON"),
        ("7,c,a,hi", "malformed: 4 cells where the header has 9"),
        ("7,c,,hi,,,,,", "to_empty"),
        ("7,c,a||b,hi,,,,,", "recipient_invalid"),
        (",c,a,hi,,,,,", "id_missing"),
        ("7,c,a,,,,,,", "content_missing"),
    ],
)
def test_a_bad_row_is_refused(row: str, said: str) -> None:
    bad, good = rows(HEADER + row + "\n8,c,a,hi,,,,,\n")
    assert told(bad).startswith(said)
    assert (bad.number, good.number) == (2, 3)
    assert isinstance(good.send, Send)


def test_rows_over_several_lines_are_told_by_their_first() -> None:
    lines = rows(HEADER + '7,c,a,"x\ny\nz",,,,,\n\n8,c,,hi,,,,,\n')
    assert [line.number for line in lines] == [2, 6]


def test_bytes_that_are_not_utf8_cost_their_row_only() -> None:
    stream = io.BytesIO(HEADER.encode() + b"7,c,a,\xff,,,,,\n8,c,a,hi,,,,,\n")
    bad, good = read_lines("f", stream, "csv")
    assert told(bad).startswith("malformed")
    assert isinstance(good.send, Send)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("id,chanel,to", "did you mean \"channel\"?"),
        ("id,channel,to,data.", "unknown column 'data.'"),
        ("id,channel", "no column to"),
        ("", "no column id, channel, to"),
        ("id,channel,to,to", "column to is there twice"),
        ("7,c,a", "unknown column '7'"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_used_ends_the_command(header: str, said: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        rows(header + "\n1,2,3\n")
    assert said in caught.value.message
    assert caught.value.message.startswith("f:1: ")
