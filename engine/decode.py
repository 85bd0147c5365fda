"""Stage decode (pure): the bytes of one record become a send.

In: a record's value. Out: a Send, or Reject with a reason of ``engine.send.REASONS``.
Invariant: for any bytes whatever it ends with one of the two, in time linear in the record and within 20 times its
size + 16 KiB of memory; what it let pass has only maps with string keys, valid UTF-8 and at most 64 levels.
Never: looks at clocks or config, does I/O, reads what `content` and `data` say
(``engine.wire.decode_map`` does, when asked).

A pass over the bytes (ext.scan) comes first, then the typed decoder straight into the struct. Only what fails there is
read once more, key by key in a fixed order, to name the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
from msgspec import UNSET, Raw, UnsetType

from engine.errors import Reject
from engine.send import (
    MAX_CONTENT_BYTES,
    MAX_DATA_BYTES,
    MAX_ID_BYTES,
    MAX_META_BYTES,
    MAX_RECIPIENTS,
    MAX_RECORD_BYTES,
    NIL,
    WIRE_VERSION,
    CampaignId,
    Id,
    Ms,
    Recipient,
    Send,
)
from engine.wire import BROKEN, JSON_START, decode_map
from ext.recipients import Recipients, RecipientsError
from ext.scan import ScanError, Scanner, first_byte

__all__ = ["Decoded", "decode", "decode_many", "decode_map", "unknown_keys"]

ALWAYS_FITS = MAX_ID_BYTES // 4  # this many characters are within the limit whatever they are

_scan = Scanner(Send.__struct_fields__).scan
_json = msgspec.json.Decoder(Send).decode
_encode = msgspec.msgpack.Encoder().encode


class _Packed(Send, frozen=True, gc=False):
    """A send whose recipients are not looked into."""

    to: Raw  # type: ignore[assignment]


_msgpack = msgspec.msgpack.Decoder(_Packed).decode


class Decoded(NamedTuple):
    """What ``decode_many`` made of a run of records, in their order."""

    sends: list[Send | Reject]
    unknown_keys: int  # top-level keys that mean nothing in this version; their records are sends all the same


def decode(value: bytes | None) -> Send:
    """Decode one record. Raises Reject. Cost: about 1 us for 240 bytes of msgpack and one recipient."""
    _well_formed(value)
    return _typed(value)  # type: ignore[arg-type]  # None was refused


def decode_many(values: Iterable[bytes | None]) -> Decoded:
    """Decode a run of records; a bad one costs only itself."""
    sends: list[Send | Reject] = []
    unknown = 0
    for value in values:
        try:
            unknown += _well_formed(value)
            sends.append(_typed(value))  # type: ignore[arg-type]
        except Reject as reject:
            sends.append(reject)
    return Decoded(sends, unknown)


def unknown_keys(value: bytes) -> int:
    """How many top-level keys mean nothing in this version (a JSON key written with escapes counts as unknown).

    Raises Reject. Cost: about 0.2 us for 240 bytes.
    """
    return _well_formed(value)


def _well_formed(value: bytes | None) -> int:
    if not value:
        raise Reject("empty", "a tombstone" if value is None else "no bytes")
    if len(value) > MAX_RECORD_BYTES:
        raise Reject("too_large", f"{len(value):,} bytes; at most {MAX_RECORD_BYTES:,}")
    try:
        return _scan(value)
    except ScanError as error:
        raise Reject(error.what, str(error)) from None


def _typed(value: bytes) -> Send:
    json = value[0] == JSON_START
    try:
        send = _json(value) if json else _packed(value)
    except (*BROKEN, RecipientsError) as error:
        _explain(value, str(error))
    # The decoder has counted characters and found numbers in range; bytes, sizes and order are left.
    if (
        _may_be_long(send, json)
        or len(send.content) > MAX_CONTENT_BYTES
        or len(send.meta) > MAX_META_BYTES
        or not _is_map(send.content, json)
    ) and _unfit(send, json):
        del send  # else it and its second reading are in memory together
        _explain(value, "larger than allowed")
    if send.deadline is not None or send.due is not None:
        _check_times(send.not_before, send.due, send.deadline)
    if json:
        meta = bytes(send.meta)
        if meta != NIL:  # absent; no JSON is written so
            msgspec.structs.force_setattr(send, "meta", _meta_msgpack(meta))
    return send


def _packed(value: bytes) -> Send:
    """Of msgpack; its recipients stay where they are."""
    packed = _msgpack(value)
    to: Any = Recipients(value, packed.to)
    return Send(
        packed.id, packed.channel, to, packed.content, packed.v, packed.account, packed.tenant, packed.campaign,
        packed.not_before, packed.due, packed.deadline, packed.meta,
    )  # fmt: skip


def _too_long(text: str) -> bool:
    return len(text) > ALWAYS_FITS and not text.isascii() and len(text.encode()) > MAX_ID_BYTES


def _may_be_long(send: Send, json: bool) -> bool:
    """The common case at once: every name short, one recipient, a plain id. True: look closer."""
    if len(send.id) > ALWAYS_FITS or len(send.channel) > ALWAYS_FITS:
        return True
    account, tenant, campaign, to = send.account, send.tenant, send.campaign, send.to
    if (account and len(account) > ALWAYS_FITS) or (tenant and len(tenant) > ALWAYS_FITS):
        return True
    if campaign and len(campaign) > ALWAYS_FITS:
        return True
    return json and (len(to) > 1 or to[0].__class__ is not str or len(to[0]) > ALWAYS_FITS)


def _unfit(send: Send, json: bool) -> bool:
    names = (send.id, send.channel, send.account, send.tenant, send.campaign)
    return (
        any(name is not None and _too_long(name) for name in names)
        or (json and _recipient_unfit(send.to))
        or len(send.content) > MAX_CONTENT_BYTES
        or len(send.meta) > MAX_META_BYTES
        or not _is_map(send.content, json)
    )


def _recipient_unfit(to: Sequence[str | Recipient]) -> bool:
    for recipient in to:
        if recipient.__class__ is str:
            if len(recipient) > ALWAYS_FITS and _too_long(recipient):
                return True
        elif _too_long(recipient.id) or not _data_fits(recipient.data):  # type: ignore[union-attr]
            return True
    return False


def _data_fits(data: Raw) -> bool:
    return not data or (len(data) <= MAX_DATA_BYTES and _is_map(data, json=True))


def _is_map(raw: Raw, json: bool) -> bool:
    first = first_byte(raw)
    return first == JSON_START if json else first & 0xF0 == 0x80 or first in (0xDE, 0xDF)


def _check_times(not_before: int | None, due: int | None, deadline: int | None) -> None:
    start = not_before or 0
    if deadline is not None and deadline < start:
        raise Reject("times_contradict", f"deadline {deadline} is before not_before {start}")
    if due is not None and due < start:
        raise Reject("times_contradict", f"due {due} is before not_before {start}")
    if due is not None and deadline is not None and due > deadline:
        raise Reject("times_contradict", f"due {due} is after deadline {deadline}")


def _meta_msgpack(meta: bytes) -> Raw:
    try:
        return Raw(_encode(msgspec.json.decode(meta)))
    except (*BROKEN, OverflowError) as error:
        raise Reject("meta_invalid", str(error)) from None


# --- why: only for records that are refused


class _Loose(msgspec.Struct, gc=False):
    """The same keys, none of them looked into."""

    v: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    channel: Raw | UnsetType = UNSET
    account: Raw | UnsetType = UNSET
    tenant: Raw | UnsetType = UNSET
    campaign: Raw | UnsetType = UNSET
    to: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    not_before: Raw | UnsetType = UNSET
    due: Raw | UnsetType = UNSET
    deadline: Raw | UnsetType = UNSET
    meta: Raw | UnsetType = UNSET


class _AnyMap(msgspec.Struct, gc=False):
    """A map not looked into."""


class _Reader:
    """Typed reading of single values in one encoding."""

    def __init__(self, decoder: Callable[[Any], Any], json: bool) -> None:
        self.json = json
        self.record = decoder(_Loose)
        self.version = decoder(int)
        self.name = decoder(Id)
        self.optional_name = decoder(Id | None)
        self.campaign = decoder(CampaignId | None)
        self.time = decoder(Ms | None)
        self.kinds = decoder(list[str | _AnyMap])  # not of Raw: that takes 64 bytes for each byte of a list of nils
        self.recipients = decoder(list[Id | Recipient])

    def is_list(self, raw: Raw) -> bool:
        return first_byte(raw) == b"["[0]


_READERS = {
    False: _Reader(msgspec.msgpack.Decoder, json=False),
    True: _Reader(msgspec.json.Decoder, json=True),
}


def _explain(value: bytes, error: str) -> NoReturn:
    """Raise for the first fault in this order: version, names, recipients, content, times, meta."""
    reader = _READERS[value[0] == JSON_START]
    try:
        loose: _Loose = reader.record.decode(value)
    except BROKEN as broken:
        raise Reject("malformed", str(broken)) from None
    _explain_version(reader, loose.v)
    for name in ("id", "channel", "account", "tenant", "campaign"):
        _explain_name(reader, name, getattr(loose, name))
    _explain_recipients(reader, value, loose.to)
    _explain_content(reader, loose.content)
    times = [_explain_time(reader, name, getattr(loose, name)) for name in ("not_before", "due", "deadline")]
    _check_times(*times)
    if loose.meta is not UNSET and len(loose.meta) > MAX_META_BYTES:
        raise Reject("meta_too_large", f"{len(loose.meta):,} bytes; at most {MAX_META_BYTES:,}")
    raise Reject("malformed", error)


def _explain_version(reader: _Reader, raw: Raw | UnsetType) -> None:
    version = WIRE_VERSION if raw is UNSET else _read(reader.version, raw, "version_unknown", "v")
    if version != WIRE_VERSION:
        raise Reject("version_unknown", f"{version}; this engine reads {WIRE_VERSION}")


def _explain_name(reader: _Reader, name: str, raw: Raw | UnsetType) -> None:
    required = name in ("id", "channel")
    if raw is UNSET:
        if required:
            raise Reject(f"{name}_missing")
        return
    optional = reader.campaign if name == "campaign" else reader.optional_name
    text = _read(reader.name if required else optional, raw, f"{name}_invalid", name)
    if text is not None and _too_long(text):
        raise Reject(f"{name}_invalid", f"{name}: {len(text.encode())} bytes; at most {MAX_ID_BYTES}")


def _explain_recipients(reader: _Reader, value: bytes, raw: Raw | UnsetType) -> None:
    if raw is UNSET:
        raise Reject("to_missing")
    if not reader.json:
        try:
            Recipients(value, raw)
        except RecipientsError as error:
            raise Reject(error.reason, str(error)) from None
        return
    if not reader.is_list(raw):
        raise Reject("to_invalid", "not a list")
    count = len(_read(reader.kinds, raw, "to_invalid", "to"))
    if not count:
        raise Reject("to_empty")
    if count > MAX_RECIPIENTS:
        raise Reject("to_too_many", f"{count:,}; at most {MAX_RECIPIENTS:,}")
    for position, recipient in enumerate(_read(reader.recipients, raw, "recipient_invalid", "to")):
        name = recipient if isinstance(recipient, str) else recipient.id
        if _too_long(name):
            raise Reject("recipient_invalid", f"to[{position}]: {len(name.encode())} bytes; at most {MAX_ID_BYTES}")
        if isinstance(recipient, Recipient) and not _data_fits(recipient.data):
            raise Reject("data_invalid", f"to[{position}]: data is not a map of at most {MAX_DATA_BYTES:,} bytes")


def _explain_content(reader: _Reader, raw: Raw | UnsetType) -> None:
    if raw is UNSET:
        raise Reject("content_missing")
    if not _is_map(raw, reader.json):
        raise Reject("content_invalid", "not a map")
    if len(raw) > MAX_CONTENT_BYTES:
        raise Reject("content_too_large", f"{len(raw):,} bytes; at most {MAX_CONTENT_BYTES:,}")


def _explain_time(reader: _Reader, name: str, raw: Raw | UnsetType) -> int | None:
    return None if raw is UNSET else _read(reader.time, raw, f"{name}_invalid", name)


def _read(decoder: Any, raw: Raw, reason: str, what: str) -> Any:
    try:
        return decoder.decode(raw)
    except BROKEN as error:
        raise Reject(reason, f"{what}: {error}") from None
