"""The records and headers surgetank writes, and reads back: receipts, headers of moved records, registered content
(pure). The format is documented in docs/wire-format.md; sends are read by ``engine.decode``, commands by
``engine.wire_control``. Longer than most files, so that what stands on the wire stands in one place.

In: structs, or the bytes of a record. Out: bytes, or a struct, or Reject with a reason of ``engine.send.REASONS``.
Invariant: what is written here can be read here; what cannot be read raises Reject and nothing else.
Never: decides anything; looks at clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw

from engine.errors import Reject
from engine.send import MAX_CONTENT_BYTES, MAX_RECIPIENTS, NIL, WIRE_VERSION, Id, Origin, Outcome
from ext.scan import ScanError, Scanner

MAX_RECEIPT_BYTES = 256 * 1024
MAX_PART_BYTES = MAX_RECEIPT_BYTES - 8 * 1024  # of a receipt's sends: its other facts never need so much
MAX_TOLD_CHARS = 512  # of a platform's reason, in receipts and headers
NO_META = Raw(NIL)

Headers = tuple[tuple[str, bytes], ...]

_encode = msgspec.msgpack.Encoder().encode
Read = TypeVar("Read")


# --- maps kept raw

JSON_START = b"{"[0]  # never the first byte of a msgpack map
BROKEN = (msgspec.DecodeError, UnicodeDecodeError)

_scan_plain = Scanner((), plain=True).scan
_map_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode
_map_json = msgspec.json.Decoder(dict[str, Any]).decode


def decode_map(raw: Raw | bytes, reason: str = "content_invalid") -> dict[str, Any]:
    """Read a map kept raw: `content`, a recipient's `data`, in either encoding; empty is {}.

    Holds only what JSON can say: no bytes, no NaN, no infinity. Raises Reject(``reason``).
    May take 100 times the map's size in memory (a list of empty lists does).
    """
    value = bytes(raw)
    if not value:
        return {}
    try:
        _scan_plain(value)
        return _map_json(value) if value[0] == JSON_START else _map_msgpack(value)
    except (ScanError, *BROKEN) as error:
        raise Reject(reason, str(error)) from None


# --- receipts


class ReceiptSend(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a receipt says of one send. ``to`` None: all its recipients. ``id`` None: the record could not be read."""

    id: str | None
    origin: Origin
    to: Sequence[str] | None
    attempts: int
    queued_ms: int
    meta: Raw = NO_META  # one msgpack value, never empty


class ReceiptFacts(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What all sends of a receipt share. ``at``: ms since the epoch. None: not known, or not given.

    ``code``, ``reason`` and ``platform_id`` have been through ``tellable``.
    """

    v: int = WIRE_VERSION
    tier: str
    channel: str | None
    account: str | None
    tenant: str | None
    campaign: str | None
    outcome: Outcome
    code: str
    reason: str
    batch: str
    platform_id: str
    at: int


class Receipt(ReceiptFacts, frozen=True, gc=False, kw_only=True):
    """A receipts record, read."""

    sends: list[ReceiptSend]


_FACTS = len(ReceiptFacts.__struct_fields__)
_NO_CALL = b"\xa5batch\xa0\xabplatform_id\xa0\xa2at\x00"
_decode_receipt = msgspec.msgpack.Decoder(Receipt).decode


def encode_receipts(facts: ReceiptFacts, parts: Iterable[bytes]) -> list[bytes]:
    """The records that tell it, one for each part: `sends` as msgpack, by ``receipt_parts``."""
    shared = _opened(facts) + b"\xa5sends"
    return [shared + part for part in parts]


def receipt_head(facts: ReceiptFacts) -> bytes:
    """The records that tell it up to what ext.receipts writes: the batch, and all after it."""
    return _opened(msgspec.structs.replace(facts, batch="", platform_id="", at=0)).removesuffix(_NO_CALL)


def _opened(facts: ReceiptFacts) -> bytes:
    """A map that has one key more: the sends, which are to follow."""
    return bytes((0x80 | (_FACTS + 1),)) + _encode(facts)[1:]


def receipt_parts(sends: Sequence[ReceiptSend]) -> list[bytes]:
    """The sends as msgpack, cut so that each part fits a record. Cost: about 0.3 us a send."""
    return _parts(sends, MAX_PART_BYTES)


def decode_receipt(value: bytes) -> Receipt:
    """Read a receipts record. Raises Reject("malformed")."""
    try:
        return _decode_receipt(value)
    except (*BROKEN, RecursionError) as error:
        raise Reject("malformed", str(error)) from None


def tellable(text: str) -> str:
    """A platform's words cut to size; JSON may hold half characters that no encoding takes."""
    return text if len(text) <= MAX_TOLD_CHARS and text.isascii() else _cut(text)


def _cut(text: str) -> str:
    return text[:MAX_TOLD_CHARS].encode("utf-8", "replace").decode()


def _parts(sends: Sequence[ReceiptSend], limit: int) -> list[bytes]:
    part = _encode(sends)
    if len(part) <= limit:
        return [part]
    if len(sends) > 1:
        half = len(sends) // 2
        return _parts(sends[:half], limit) + _parts(sends[half:], limit)
    to = sends[0].to
    if to is None or len(to) < 2:  # cannot be: ids, names and meta have limits of their own
        return [part]
    half = len(to) // 2
    halves = [msgspec.structs.replace(sends[0], to=some) for some in (to[:half], to[half:])]
    return _parts(halves, limit)


def meta_msgpack(meta: Raw) -> Raw:
    """A send's `meta` as receipts carry it: one msgpack value, nil when there is none."""
    return meta if meta else NO_META


# --- headers of records that were moved

REASON = "surgetank-reason"
DETAIL = "surgetank-detail"
ORIGIN = "surgetank-origin"
ATTEMPTS = "surgetank-attempts"
FIRST_SEEN = "surgetank-first-seen"
HOP = "surgetank-hop"
OPEN = "surgetank-open"
UNTIL = "surgetank-until"
BACK = "surgetank-back"
DECLINED = "surgetank-declined"
NUMBERS = (HOP, FIRST_SEEN, ATTEMPTS, UNTIL, BACK, DECLINED)
MOST_DIGITS = 18  # within int64
REPLAY = "replay"  # the reason of a letter sent again
OURS = frozenset((REASON, DETAIL, ORIGIN, ATTEMPTS, FIRST_SEEN, HOP, OPEN, UNTIL, BACK, DECLINED))


class History(NamedTuple):
    """All that the headers of a moved record say. ``positions`` in `to` that are still open; None: all."""

    origin: Origin
    hop: int
    first_seen_ms: int
    attempts: int
    positions: list[int] | None
    reason: str
    detail: str
    until_ms: int = 0  # not sent before
    back_ms: int = 0  # not taken in from a later topic before; 0, of both: at once
    declined: int = 0  # times: see OpenSend.decline


def headers_of(history: History) -> Headers:
    """Our headers for a record to be moved."""
    origin = history.origin
    headers = [
        (REASON, tellable(history.reason).encode()),
        (DETAIL, tellable(history.detail).encode()),
        (ORIGIN, f"{origin.topic}:{origin.partition}:{origin.offset}".encode()),
        (ATTEMPTS, b"%d" % history.attempts),
        (FIRST_SEEN, b"%d" % history.first_seen_ms),
        (HOP, b"%d" % history.hop),
    ]
    if history.positions is not None:
        headers.append((OPEN, bitset(history.positions)))
    for name, number in ((UNTIL, history.until_ms), (BACK, history.back_ms), (DECLINED, history.declined)):
        if number:
            headers.append((name, b"%d" % number))
    return tuple(headers)


def dead_headers(
    reason: str,
    detail: str,
    origin: Origin,
    hop: int,
    attempts: int,
    first_seen_ms: int,
    positions: Sequence[int] | None,
    declined: int = 0,
) -> Headers:
    """Our headers for the dead topic."""
    listed = None if positions is None else list(positions)
    return headers_of(History(origin, hop, first_seen_ms, attempts, listed, reason, detail, declined=declined))


def hop_of(headers: Headers) -> int:
    """How often the record was moved; 0 too when its header says nothing readable."""
    return _readable(headers, HOP)


def with_headers(headers: Headers, ours: Headers) -> Headers:
    """The record's headers with ours in place of older ones of ours; the rest (traceparent) as they came."""
    return tuple([header for header in headers if header[0] not in OURS]) + ours


def history(headers: Headers) -> History | None:
    """What our headers say; None for a record that was never moved. Raises Reject("header_invalid")."""
    ours = {name: value or b"" for name, value in headers if name in OURS}  # Kafka knows null values
    if ORIGIN not in ours:
        return None
    numbers = [_digits(ours[name], name) if name in ours else 0 for name in NUMBERS]
    hop, first_seen_ms, attempts, until_ms, back_ms, declined = numbers
    positions = positions_of(ours[OPEN]) if OPEN in ours else None
    reason, detail = _text(ours.get(REASON, b"")), _text(ours.get(DETAIL, b""))
    origin = _origin(ours[ORIGIN])
    return History(origin, hop, first_seen_ms, attempts, positions, reason, detail, until_ms, back_ms, declined)


def reason(headers: Headers) -> str:
    """Why a record was moved; empty: it was not, or its header says nothing readable."""
    return _text(_last(headers, REASON))


def until_ms(headers: Headers) -> int:
    """Before when it is not sent; 0: at once, too when its header says nothing readable."""
    return _readable(headers, UNTIL)


def back_ms(headers: Headers) -> int:
    """When a record may be taken in from a later topic; 0: at once, too when its header says nothing readable."""
    return _readable(headers, BACK)


def bitset(positions: Sequence[int]) -> bytes:
    """Bit ``p % 8`` of byte ``p // 8`` stands for position p of `to`; at most 1,250 bytes."""
    bits = bytearray(max(positions, default=-1) // 8 + 1)
    for position in positions:
        bits[position >> 3] |= 1 << (position & 7)
    return bytes(bits)


def positions_of(bits: bytes) -> list[int]:
    """The positions of a bitset, ascending. Raises Reject("header_invalid")."""
    if len(bits) > MAX_RECIPIENTS // 8:
        raise Reject("header_invalid", f"{OPEN}: {len(bits)} bytes; at most {MAX_RECIPIENTS // 8}")
    return [at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]


def _origin(value: bytes) -> Origin:
    parts = value.split(b":")
    if len(parts) != 3 or not 0 < len(parts[0]) <= 249 or not parts[0].isascii():
        raise Reject("header_invalid", f"{ORIGIN}: not topic:partition:offset")
    topic, partition, offset = parts
    return Origin(topic.decode(), _digits(partition, ORIGIN), _digits(offset, ORIGIN))


def _readable(headers: Headers, wanted: str) -> int:
    value = _last(headers, wanted)
    return int(value) if value.isdigit() and len(value) <= MOST_DIGITS else 0


def _last(headers: Headers, wanted: str) -> bytes:
    found = b""
    for name, value in headers:
        if name == wanted:
            found = value or b""  # Kafka knows null values
    return found


def _digits(value: bytes, name: str) -> int:
    if not value.isdigit() or len(value) > MOST_DIGITS:
        raise Reject("header_invalid", f"{name}: not a number")
    return int(value)


def _text(value: bytes) -> str:
    return value[: MAX_TOLD_CHARS * 4].decode("utf-8", "replace")


# --- registered content


class FieldRule(msgspec.Struct, frozen=True, gc=False):
    """What a template wants of one field."""

    required: bool = False
    max_chars: Annotated[int, Meta(ge=1)] | None = None


class Registered(msgspec.Struct, frozen=True, gc=False):
    """A record of the content topic; its key is the content's id."""

    channel: Id
    content: dict[str, Any]
    fields: dict[str, FieldRule] = {}


def content_id(key: bytes | None) -> str:
    """The id a content record is about. Raises Reject("registered_invalid")."""
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError as error:
        raise Reject("registered_invalid", f"key: {error}") from None
    if not 0 < len(name.encode()) <= 128:
        raise Reject("registered_invalid", "the key, a content's id, is not 1..128 bytes")
    return name


def decode_registered(value: bytes) -> Registered:
    """Read a registered content, msgpack or JSON. Raises Reject("registered_invalid")."""
    if len(value) > MAX_CONTENT_BYTES * 2:
        raise Reject("registered_invalid", f"{len(value):,} bytes; at most {MAX_CONTENT_BYTES * 2:,}")
    return _convert(decode_map(value, "registered_invalid"), Registered, "registered_invalid")


def _convert(value: dict[str, Any], struct: type[Read], reason: str) -> Read:
    try:
        return msgspec.convert(value, struct)
    except msgspec.ValidationError as error:
        raise Reject(reason, str(error)) from None
