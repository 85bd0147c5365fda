"""Attempt records, on the topic surgetank.attempts (pure): what a call on a channel with ``repeats = "never"`` was
about to do, and how it ended. Documented in docs/wire-format.md.

In: structs, or the bytes of a record. Out: bytes, or a struct, or Reject("malformed").
Invariant: what is written here can be read here; rows of a call are numbered the same in both records.
Never: decides anything; looks at clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from engine.errors import Reject
from engine.send import WIRE_VERSION, Outcome

MAX_DATA_BYTES = 1 << 20  # of the recipients' own values; with more of them the call cannot be made again exactly
END = b"/end"  # of the second record's key
_encode = msgspec.msgpack.Encoder().encode


class Member(NamedTuple):
    """One send's rows, in the call's order."""

    topic: str
    partition: int
    offset: int
    positions: Sequence[int]


class Attempt(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A call that is about to be made. ``at``: ms since the epoch. ``content``: the key of its prepared content.
    ``data``: recipients' own values, or nobody has any; None: there are, and too many to keep."""

    v: int = WIRE_VERSION
    batch: str
    channel: str
    account: str
    at: int
    content: bytes
    ids: Sequence[str]
    data: Sequence[Mapping[str, Any] | None] | None
    members: Sequence[Member]


class Ended(NamedTuple):
    """How a row has ended."""

    outcome: Outcome
    code: str
    reason: str


class End(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What is known of how the call ended: rows (None: all) that have ended, and rows that were surely not delivered
    and go their usual way. Of the others nothing is known yet."""

    v: int = WIRE_VERSION
    batch: str
    platform_id: str
    ended: Sequence[tuple[Ended, Sequence[int] | None]]
    free: Sequence[int] | None


_attempt = msgspec.msgpack.Decoder(Attempt).decode
_end = msgspec.msgpack.Decoder(End).decode


def encode_attempt(attempt: Attempt) -> tuple[bytes, bytes]:
    """Key and value."""
    if attempt.data and len(_encode(attempt.data)) > MAX_DATA_BYTES:
        attempt = msgspec.structs.replace(attempt, data=None)
    return attempt.batch.encode(), _encode(attempt)


def encode_end(end: End) -> tuple[bytes, bytes]:
    """Key and value."""
    return end.batch.encode() + END, _encode(end)


def keys_of(batch: str) -> tuple[bytes, bytes]:
    """Of both its records."""
    return batch.encode(), batch.encode() + END


def decode(key: bytes, value: bytes) -> Attempt | End:
    """Read either. Raises Reject("malformed")."""
    try:
        read: Attempt | End = _end(value) if key.endswith(END) else _attempt(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Reject("malformed", str(error)) from None
    if isinstance(read, Attempt) and sum(len(member.positions) for member in read.members) != len(read.ids):
        raise Reject("malformed", "rows and members do not agree")
    return read
