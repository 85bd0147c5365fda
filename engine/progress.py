"""What a commit says of one partition besides its position: the map of what is done above it, and where that map stands
(shell).

In: snapshots of a ledger; a pointer found in a commit. Out: a Note to commit, whose map, where it does not fit into the
commit, has been written to the progress topic and acknowledged; or the map a pointer led to.
Invariant: no commit that may be in effect names a slot that is written. There are two: the effective commit names at
most one, and while a commit's fate is unknown none but that one is made (``doubt``).
Never: leaves out a part of the map, unless the topic takes no record so large.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import structlog

from engine import wire_map
from engine.backoff import Backoff
from engine.errors import LogUnavailable, MapUnreadable, RecordRefused
from engine.logs import Log, Partition, Position, Record
from engine.wire_map import Map, Pointer
from ext.ledger import Ledger, Snapshot

logger = structlog.get_logger("surgetank.progress")
IN_THREAD = 50_000  # offsets: a larger map would hold the loop for 0.1 ms and more
PUT_S = 10.0
RESTORE_S = 30.0  # a broker that gives us no map gives us no records either
LEAST = 1024  # characters, or bytes of a record: what every log takes; a pointer has 60


class Note(NamedTuple):
    """What is committed of one partition."""

    position: Position
    snapshot: Snapshot
    slot: int | None  # the slot it names
    size: int  # bytes of the map


class Keep:
    """Where the maps of one group's partitions are kept."""

    def __init__(self, log: Log, prefix: str, group: str, characters: int, most: int) -> None:
        self.log = log
        self.topic = f"{prefix}.progress"
        self.group = group
        self.characters = characters  # of metadata, at most
        self.most = most  # bytes of a map, at most

    def key(self, partition: Partition, nonce: bytes, slot: int) -> bytes:
        """Of the record: nobody else's, as long as nonces are drawn."""
        names = (self.group, partition.topic, str(partition.number), nonce.hex(), "AB"[slot])
        return "/".join(names).encode()

    async def put(self, record: Record) -> tuple[Partition, int]:
        """Write it; raises LogUnavailable (fate unknown), RecordRefused."""
        try:
            async with asyncio.timeout(PUT_S):
                return await self.log.put(record)
        except TimeoutError as error:
            raise LogUnavailable(f"{self.topic}: not acknowledged within {PUT_S:g} s") from error

    def refused(self, error: RecordRefused) -> None:
        """The topic takes less than we thought."""
        self.most = max(self.most // 2, LEAST)
        logger.warning("the progress topic takes no map so large", topic=self.topic, error=str(error), most=self.most)

    def too_long(self, error: RecordRefused) -> None:
        """The broker takes less metadata than was configured."""
        self.characters = max(self.characters // 2, LEAST)
        logger.warning("the broker takes no such metadata", error=str(error), most=self.characters)


class Progress:
    """One partition under one assignment."""

    def __init__(self, keep: Keep, ledger: Ledger, before: bytes = b"") -> None:
        """``before``: the nonce its last owner wrote maps under, if it did."""
        self.ledger = ledger
        self.doubt: Note | None = None  # a commit that may be in effect, or not: the next one to make
        self.size = 0  # bytes of the map committed last
        self._keep = keep
        self._nonce = secrets.token_bytes(wire_map.NONCE_BYTES)
        self._wrote = False
        self._named: int | None = None  # the slot the effective commit names
        self._before = [before] if before else []

    async def note(self, snapshot: Snapshot) -> Note:
        """What to commit; the map is acknowledged where it does not fit. Raises LogUnavailable, RecordRefused."""
        keep = self._keep
        room = wire_map.room_for(keep.characters)
        arguments = snapshot, self._nonce if self._wrote else b"", room, max(keep.most, room)
        if snapshot.span < IN_THREAD:
            made = wire_map.encode(*arguments)
        else:
            made = await asyncio.to_thread(wire_map.encode, *arguments)
        if len(made) <= room:
            return Note(Position(snapshot.offset, wire_map.as_text(made)), snapshot, None, len(made))
        self._wrote = True
        slot = 1 if self._named == 0 else 0
        partition, offset = await self._put(made, slot)
        pointer = Pointer(self._nonce, slot, partition.number, offset, wire_map.crc_of(made))
        text = wire_map.as_text(wire_map.encode_pointer(snapshot, pointer))
        return Note(Position(snapshot.offset, text), snapshot, slot, len(made))

    async def _put(self, made: bytes, slot: int) -> tuple[Partition, int]:
        keep = self._keep
        key = keep.key(self.ledger.partition, self._nonce, slot)
        try:
            return await keep.put(Record(keep.topic, wire_map.as_record(made), key))
        except LogUnavailable:
            # It may be written yet, after a later one of the same key: that one would go at the next compaction.
            self._before.append(self._nonce)
            self._nonce = secrets.token_bytes(wire_map.NONCE_BYTES)
            raise
        except RecordRefused as error:
            keep.refused(error)
            raise

    def committed(self, note: Note) -> None:
        """It is in effect."""
        self.doubt, self._named, self.size = None, note.slot, note.size
        self.ledger.commit(note.snapshot)

    def gone(self) -> Iterator[Record]:
        """Tombstones for the maps that no commit can name any more, once one of ours is in effect."""
        for nonce in self._before:
            for slot in (0, 1):
                yield Record(self._keep.topic, None, self._keep.key(self.ledger.partition, nonce, slot))

    def forgotten(self) -> None:
        """They are written."""
        self._before.clear()


async def fetch(keep: Keep, pointers: Mapping[Partition, tuple[int, Pointer]]) -> dict[Partition, Map | MapUnreadable]:
    """The maps that commits (at these positions) point to. About 20 ms, and 3 ms a map."""
    places = [(Partition(keep.topic, pointer.partition), pointer.offset) for _, pointer in pointers.values()]
    try:
        records = await _records(keep, places)
    except LogUnavailable as error:
        return dict.fromkeys(pointers, MapUnreadable("unreachable", str(error)))
    return await asyncio.to_thread(_read_all, keep, pointers, records)


async def _records(keep: Keep, places: list[tuple[Partition, int]]) -> list[Record | None]:
    backoff = Backoff(0.2, 5.0)
    try:
        async with asyncio.timeout(RESTORE_S):
            while True:
                try:
                    return await keep.log.fetch(places)
                except LogUnavailable as error:
                    logger.warning("maps wait for the log", error=str(error), again_in_s=backoff.next_s)
                await backoff.wait()
    except TimeoutError as error:
        raise LogUnavailable(f"{keep.topic}: no answer within {RESTORE_S:g} s") from error


def _read_all(
    keep: Keep, pointers: Mapping[Partition, tuple[int, Pointer]], records: list[Record | None]
) -> dict[Partition, Map | MapUnreadable]:
    found: dict[Partition, Map | MapUnreadable] = {}
    for (partition, (position, pointer)), record in zip(pointers.items(), records, strict=True):
        try:
            found[partition] = _read(keep.key(partition, pointer.nonce, pointer.slot), position, pointer, record)
        except MapUnreadable as error:
            found[partition] = error
    return found


def _read(key: bytes, position: int, pointer: Pointer, record: Record | None) -> Map:
    if record is None or record.value is None:
        raise MapUnreadable("missing", f"nothing stands at {pointer.partition}:{pointer.offset}")
    if record.key != key:
        raise MapUnreadable("mismatch", f"the map of {record.key!r} stands there")
    return wire_map.decode_record(record.value, position, pointer.crc)
