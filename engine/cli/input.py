"""Lines of a JSONL or CSV file -> sends in wire format (msgpack), each with the place it came from.

A line that is no send is handed on as its Reject; it costs nothing else. JSONL: one send a line, as on the wire.
CSV: a header, then one send a row; see ``COLUMNS``. Empty cells are as if the column were not there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from datetime import datetime
from difflib import get_close_matches
from functools import partial
from typing import Any, BinaryIO, Literal, NamedTuple

import click
import msgspec

from engine.decode import decode
from engine.errors import Reject
from engine.send import MAX_RECORD_BYTES, Send

COLUMNS = {
    "id": "idempotency key",
    "channel": "channel",
    "to": "recipients, with | between them",
    "text": 'short for the content {"type":"text","text":...}',
    "content": "content as JSON",
    "account": "sending account",
    "tenant": "tenant",
    "campaign": "campaign",
    "not_before": "ms since the epoch, or ISO 8601 with a zone",
    "due": "likewise",
    "deadline": "likewise",
    "meta": "JSON",
}
TEXTS = ("id", "channel", "account", "tenant", "campaign")
TIMES = ("not_before", "due", "deadline")
Format = Literal["jsonl", "csv"]


class Line(NamedTuple):
    """One line of input. ``end``: bytes of the file read so far."""

    file: str
    number: int
    value: bytes  # wire format; empty when refused
    send: Send | Reject
    end: int


def read_lines(name: str, stream: BinaryIO, form: Format) -> Iterator[Line]:
    """Every line but blank ones. Raises click.UsageError for a CSV header that cannot be used."""
    return _jsonl(name, stream) if form == "jsonl" else _csv(name, stream)


def _jsonl(name: str, stream: BinaryIO) -> Iterator[Line]:
    number, end = 0, 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        end += len(line)
        if len(line) > MAX_RECORD_BYTES:
            end += _skip_line(stream, line)
            yield Line(name, number, b"", Reject("too_large", f"more than {MAX_RECORD_BYTES:,} bytes"), end)
        elif stripped := line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip():
            yield _line(name, number, end, partial(_from_json, stripped))


def _skip_line(stream: BinaryIO, part: bytes) -> int:
    """Read on to the line's end; returns the bytes read."""
    skipped = 0
    while part and not part.endswith(b"\n"):
        part = stream.readline(MAX_RECORD_BYTES)
        skipped += len(part)
    return skipped


def _line(name: str, number: int, end: int, make: Callable[[], bytes]) -> Line:
    try:
        value = make()
        return Line(name, number, value, decode(value), end)
    except Reject as reject:
        return Line(name, number, b"", reject, end)


def _from_json(value: bytes) -> bytes:
    if not value.startswith(b"{"):
        raise Reject("not_a_map", "a line must be a JSON object")
    decode(value)  # for its words; msgpack below is what the engine gets
    try:
        return msgspec.msgpack.encode(msgspec.json.decode(value))
    except OverflowError:
        return value  # a number msgpack has no room for: JSON is as good on the wire


def _csv(name: str, stream: BinaryIO) -> Iterator[Line]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True)
    header = _header(name, rows)
    number, end = rows.line_num, 0
    while True:
        first = number + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            number = rows.line_num
            yield Line(name, first, b"", Reject("malformed", f"not CSV: {error}"), end)
            continue
        number = rows.line_num
        end += sum(map(len, row)) + len(row)  # near enough for a progress bar
        if any(row):
            yield _line(name, first, end, partial(_from_row, header, row))


def _header(name: str, rows: Any) -> list[str]:
    try:
        header = [column.strip() for column in next(rows, [])]
    except csv.Error as error:
        raise click.UsageError(f"{name}:1: not CSV: {error}") from error
    for column in header:
        if column not in COLUMNS and not (column.startswith("data.") and len(column) > len("data.")):
            close = get_close_matches(column, COLUMNS, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"valid are {', '.join(COLUMNS)}, data.NAME"
            raise click.UsageError(f"{name}:1: unknown column {column!r}; {hint}")
    if missing := [column for column in ("id", "channel", "to") if column not in header]:
        raise click.UsageError(f"{name}:1: no column {', '.join(missing)}; the first line must name the columns")
    if twice := {column for column in header if header.count(column) > 1}:
        raise click.UsageError(f"{name}:1: column {', '.join(sorted(twice))} is there twice")
    return header


def _from_row(header: list[str], row: list[str]) -> bytes:
    if len(row) != len(header):
        raise Reject("malformed", f"{len(row)} cells where the header has {len(header)}")
    cells = {column: cell for column, cell in zip(header, row, strict=True) if cell != ""}
    if "text" in cells and "content" in cells:
        raise Reject("content_invalid", "give either `text` or `content`")
    send: dict[str, Any] = {
        name: cells[name] for name in ("id", "channel", "account", "tenant", "campaign") if name in cells
    }
    if "text" in cells:
        send["content"] = {"type": "text", "text": cells["text"]}
    for name in ("content", "meta"):
        if name in cells:
            send[name] = _json(name, cells[name])
    send |= {name: _time(name, cells[name]) for name in TIMES if name in cells}
    data = {column.removeprefix("data."): cell for column, cell in cells.items() if column.startswith("data.")}
    ids = cells.get("to", "").split("|") if "to" in cells else []
    send["to"] = [{"id": id, "data": data} for id in ids] if data else ids
    try:
        return msgspec.msgpack.encode(send)
    except UnicodeEncodeError:
        raise Reject("malformed", "not UTF-8 text") from None


def _json(name: str, cell: str) -> Any:
    try:
        return msgspec.json.decode(cell)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        reason = "content_invalid" if name == "content" else "malformed"
        raise Reject(reason, f"`{name}` is not JSON: {error}") from None


def _time(name: str, cell: str) -> int:
    if cell.isdecimal():
        return int(cell)
    try:
        when = datetime.fromisoformat(cell)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise Reject(f"{name}_invalid", f"{cell!r} is neither ms since the epoch nor ISO 8601 with a zone")
    return int(when.timestamp() * 1000)
