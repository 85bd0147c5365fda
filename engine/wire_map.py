"""What a commit says of one partition besides its position: a map of what is done above it, or where that map stands.

Pure. The format is public, versioned, and described in docs/wire-format.md (Progress).
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode, b64encode
from typing import NamedTuple

from engine.errors import MapUnreadable
from ext.ledger import BITSET, RUNS, Snapshot

PREFIX = "st1:"
FAMILY = "st"  # what the prefix of every version begins with
NONCE_BYTES = 8
DEFLATED = 2  # added to RUNS or BITSET
POINTER = 4
NONCE = 8  # flag: a nonce follows
CRC = struct.Struct("<I")
MAX_PAYLOAD = 40 << 20  # a bitset of the longest map has 32 MiB
FAST_FROM = 64 << 10  # bytes: larger ones are deflated at the fastest level, 10 ns a byte instead of 40


class Map(NamedTuple):
    """What is done above a position, as ``Ledger.restore`` takes it."""

    stamp_ms: int
    codec: int
    payload: bytes
    nonce: bytes  # of the writer; empty: it has never written to the progress topic


class Pointer(NamedTuple):
    """The map is a record of the progress topic."""

    nonce: bytes  # of the writer, and its slot: parts of the record's key
    slot: int
    partition: int
    offset: int
    crc: int


def encode(snapshot: Snapshot, nonce: bytes, room: int, most: int) -> bytes:
    """The map as bytes: plain when that takes at most ``room``, else the smallest of all codecs.

    At most ``most`` bytes: what would need more speaks of as many offsets as fit. Cost: 2 ns an offset, and deflate.
    """
    if snapshot.empty:
        return _seal(RUNS, nonce, snapshot, snapshot.payload(RUNS)) if nonce else b""
    note = _smallest(snapshot, nonce, room, snapshot.span)
    span = snapshot.span
    while len(note) > most:
        span //= 2
        note = _smallest(snapshot, nonce, room, span)
    return note


def encode_pointer(snapshot: Snapshot, pointer: Pointer) -> bytes:
    """What the metadata says when the map stands elsewhere."""
    where = bytes([pointer.slot]) + _varint(pointer.partition) + _varint(pointer.offset) + CRC.pack(pointer.crc)
    return _seal(POINTER, pointer.nonce, snapshot, where)


def as_text(note: bytes) -> str:
    """As it stands in the metadata of a commit."""
    return PREFIX + b64encode(note).decode() if note else ""


def as_record(note: bytes) -> bytes:
    """As it stands on the progress topic."""
    return PREFIX.encode() + note


def room_for(characters: int) -> int:
    """Bytes of a note that fit into so many characters of metadata."""
    return max(0, (characters - len(PREFIX)) // 4 * 3)


def crc_of(note: bytes) -> int:
    """What a pointer to this note says."""
    crc: int = CRC.unpack_from(note)[0]
    return crc


def decode_text(text: str, position: int) -> Map | Pointer | None:
    """What a commit's metadata says; None: nothing. Raises MapUnreadable."""
    if not text:
        return None
    _check_version(text[: len(PREFIX)])
    try:
        note = b64decode(text[len(PREFIX) :], validate=True)
    except ValueError as error:
        raise MapUnreadable("damaged", str(error)) from error
    if b64encode(note) != text[len(PREFIX) :].encode():  # bits of the last character that stand for nothing
        raise MapUnreadable("damaged", "not as it was written")
    return _decode(note, position)


def decode_record(value: bytes, position: int, crc: int) -> Map:
    """The record a pointer led to. Raises MapUnreadable."""
    _check_version(value[: len(PREFIX)].decode("latin-1"))
    note = value[len(PREFIX) :]
    if len(note) < CRC.size or crc_of(note) != crc:
        raise MapUnreadable("mismatch", "another map stands there")
    found = _decode(note, position)
    if not isinstance(found, Map):
        raise MapUnreadable("damaged", "a pointer to a pointer")
    return found


def _check_version(prefix: str) -> None:
    if prefix == PREFIX:
        return
    if prefix.startswith(FAMILY) and prefix.endswith(":"):
        raise MapUnreadable("version", prefix)
    raise MapUnreadable("foreign", prefix)


def _decode(note: bytes, position: int) -> Map | Pointer:
    if len(note) <= CRC.size or crc_of(note) != zlib.crc32(note[CRC.size :]):
        raise MapUnreadable("damaged", "checksum")
    try:
        return _read(_Reader(note, CRC.size), position)
    except (IndexError, struct.error, zlib.error) as error:
        raise MapUnreadable("damaged", str(error)) from error


def _read(reader: _Reader, position: int) -> Map | Pointer:
    kind = reader.byte()
    nonce = reader.take(NONCE_BYTES) if kind & NONCE else b""
    offset, stamp = reader.varint(), reader.varint()
    if stamp >= 1 << 64:
        raise MapUnreadable("damaged", "no timestamp")
    if offset != position:
        raise MapUnreadable("other_position", f"{offset}, committed with {position}")
    kind &= ~NONCE
    if kind == POINTER and nonce:
        return Pointer(nonce, reader.byte(), reader.varint(), reader.varint(), CRC.unpack(reader.rest())[0])
    if kind not in (RUNS, BITSET, RUNS | DEFLATED, BITSET | DEFLATED):
        raise MapUnreadable("damaged", f"kind {kind}")
    payload = reader.rest()
    return Map((stamp >> 1) ^ -(stamp & 1), kind & BITSET, _inflate(payload) if kind & DEFLATED else payload, nonce)


def _smallest(snapshot: Snapshot, nonce: bytes, room: int, span: int) -> bytes:
    runs, bitset = snapshot.sizes()
    plain = RUNS if runs <= bitset else BITSET
    note = _seal(plain, nonce, snapshot, snapshot.payload(plain, span))
    if len(note) <= room:
        return note
    # The other codec may deflate better, unless it is out of reach.
    codecs = [RUNS] * (runs < 4 * bitset) + [BITSET] * (bitset < 8 * runs)
    notes = [_seal(codec | DEFLATED, nonce, snapshot, _deflate(snapshot.payload(codec, span))) for codec in codecs]
    return min(note, *notes, key=len)


def _seal(kind: int, nonce: bytes, snapshot: Snapshot, payload: bytes) -> bytes:
    stamp = snapshot.stamp_ms
    head = bytes([kind | NONCE if nonce else kind]) + nonce
    body = head + _varint(snapshot.offset) + _varint(stamp << 1 if stamp >= 0 else ~(stamp << 1)) + payload
    return CRC.pack(zlib.crc32(body)) + body


def _deflate(payload: bytes) -> bytes:
    deflater = zlib.compressobj(1 if len(payload) >= FAST_FROM else 6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(payload) + deflater.flush()


def _inflate(payload: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(payload, MAX_PAYLOAD)
    if not inflater.eof or inflater.unused_data:
        raise MapUnreadable("damaged", f"does not end, or is larger than {MAX_PAYLOAD} bytes")
    return plain


def _varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


class _Reader:
    """Takes a note apart. Raises IndexError where it is cut off."""

    def __init__(self, note: bytes, at: int) -> None:
        self._note = note
        self._at = at

    def byte(self) -> int:
        self._at += 1
        return self._note[self._at - 1]

    def take(self, count: int) -> bytes:
        taken = self._note[self._at : self._at + count]
        if len(taken) < count:
            raise IndexError("cut off")
        self._at += count
        return taken

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise IndexError("a number without end")

    def rest(self) -> bytes:
        return self._note[self._at :]
