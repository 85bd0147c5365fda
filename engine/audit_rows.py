"""What the audit knows of one record of the log, read with msgpack and json alone (pure).

In: the bytes, key and headers of records as docs/wire-format.md has them. Out: rows to sort by origin.
Invariant: nothing here uses what the engine reads and writes these records with: a fault of that must not hide itself.
Never: raises for what cannot be read; such a record is a row too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
import msgspec

from engine.logs import Headers

KEY = struct.Struct(">IIQ")  # topic (a number of ours), partition, offset
MAX_RECIPIENTS = 10_000


class Sent(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A record of a tier's or a later topic. ``to`` [""]: not readable, counted as one recipient."""

    tier: str
    hop: int
    settled: bool  # its group has committed past it
    positions: tuple[int, ...] | None  # of ``to`` that are still open; None: all
    seen_ms: int  # first seen
    id: str | None
    to: list[str]
    channel: str | None
    tenant: str | None
    campaign: str | None
    not_before: int
    due: int | None
    deadline: int | None


class Told(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """One send of a receipt. ``to`` None: all its recipients."""

    id: str | None
    to: list[str] | None
    outcome: str
    batch: str
    at_ms: int
    tier: str
    channel: str | None
    campaign: str | None


class Kept(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """A record of the dead topic: those ``positions`` of ``to`` (None: all)."""

    positions: tuple[int, ...] | None
    reason: str


Row = Sent | Told | Kept
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Row).decode


class History(NamedTuple):
    """What the headers of a moved record say."""

    origin: tuple[str, int, int]
    hop: int
    seen_ms: int | None
    positions: tuple[int, ...] | None
    reason: str


def history(headers: Headers) -> History | None:
    """None for a record that was never moved, or whose headers cannot be read."""
    ours = {name.removeprefix("surgetank-"): value for name, value in headers if name.startswith("surgetank-")}
    try:
        origin = _origin(*ours["origin"].decode("ascii").split(":"))
        hop, seen = int(ours.get("hop", b"0")), ours.get("first-seen")
        positions = tuple(_bits(ours["open"])) if "open" in ours else None
        return History(origin, hop, int(seen) if seen else None, positions, _text(ours.get("reason", b"")))
    except (KeyError, ValueError, TypeError):
        return None


def sent(value: bytes | None, tier: str, settled: bool, stamp_ms: int, moved: History | None) -> Sent:
    """A send as it stands, or the row of one that cannot be read."""
    hop, positions = (moved.hop, moved.positions) if moved else (0, None)
    seen_ms = moved.seen_ms if moved and moved.seen_ms is not None else stamp_ms
    body = _map(value)
    to = _recipients(body.get("to"))
    if to is None:
        return Sent(tier, hop, settled, None, seen_ms, None, [""], None, None, None, 0, None, None)
    id, channel, tenant, campaign = (_string(body.get(name)) for name in ("id", "channel", "tenant", "campaign"))
    not_before, due, deadline = (_number(body.get(name)) for name in ("not_before", "due", "deadline"))
    return Sent(
        tier, hop, settled, positions, seen_ms, id, to, channel, tenant, campaign, not_before or 0, due, deadline
    )


def told(value: bytes | None) -> Iterator[tuple[tuple[str, int, int], Told]]:
    """Each send of a receipts record, with its origin. Raises ValueError for a record that is none."""
    body = _map(value)
    try:
        tier, outcome, batch, at_ms = str(body["tier"]), str(body["outcome"]), str(body["batch"]), int(body["at"])
        channel, campaign = _string(body.get("channel")), _string(body.get("campaign"))
        for id, origin, to, *_ in body["sends"]:
            names = None if to is None else [str(name) for name in to]
            yield _origin(*origin), Told(_string(id), names, outcome, batch, at_ms, tier, channel, campaign)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a receipt: {error!r}") from error


def _map(value: bytes | None) -> Mapping[str, Any]:
    """The map a value holds; empty for any other value."""
    if not value:
        return {}
    try:
        if value[:1] == b"{":
            read = json.loads(value)
            if b"\\u" in value:
                json.dumps(read, ensure_ascii=False).encode()  # half a character is none
        else:
            read = msgpack.unpackb(value, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return {}
    return read if isinstance(read, dict) else {}


def _origin(topic: object, partition: Any, offset: Any) -> tuple[str, int, int]:
    """Raises ValueError or TypeError for what is none."""
    place = (str(topic), int(partition), int(offset))
    if not (0 <= place[1] < 1 << 32 and 0 <= place[2] < 1 << 63):
        raise ValueError(f"no place on a log: {place}")
    return place


def _recipients(to: object) -> list[str] | None:
    if not isinstance(to, list) or not 0 < len(to) <= MAX_RECIPIENTS:
        return None
    names = [_string(one.get("id") if isinstance(one, dict) else one) for one in to]
    known = [name for name in names if name is not None]
    return known if len(known) == len(names) else None


def _bits(bits: bytes) -> Iterator[int]:
    return (at * 8 + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def names_at(to: Sequence[str], positions: Sequence[int] | None) -> Sequence[str]:
    """The recipients at ``positions``; None: all of them."""
    return to if positions is None else [to[at] for at in positions if at < len(to)]
