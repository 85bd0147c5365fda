"""Where a consumer or reader of the embedded log stands, and how it reads on.

In: places. Out: chunks, ascending per partition, taken from the partitions in turn. Invariant: where a cursor stands
changes on the event loop only; threads read and hand back. Never: holds more than about one fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import LogUnavailable
from engine.logs import Chunk, Partition, Record
from engine.logs.sqlite_batch import unpack
from engine.logs.sqlite_store import find_ends

if TYPE_CHECKING:
    from engine.logs.sqlite import SqliteLog

FETCH_RECORDS = 2_000  # of all partitions together, before whole batches are rounded up
FETCH_BYTES = 8 << 20
BEFORE_ALL = -1


class Place(NamedTuple):
    """Where a cursor stands in one partition."""

    id: int  # row of the partition
    row: int  # first offset of the last batch fetched
    next: int  # the next offset to fetch
    end: int  # the log's end, as last seen


class Fetched(NamedTuple):
    """What one fetch found."""

    places: dict[Partition, Place]
    chunks: list[Chunk]


class Cursor:
    """Reads a set of partitions onwards from their places. Not for concurrent polls."""

    def __init__(self, log: SqliteLog, epoch: int) -> None:
        self._log = log
        self._epoch = epoch
        self.places: dict[Partition, Place] = {}
        self._ready: deque[Chunk] = deque()
        self._turn = 0
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._closed = False
        self._paused: set[Partition] = set()
        self._fetching: asyncio.Task[Fetched] | None = None
        self._store = log.store
        self._store.on_append(self._wake)

    async def close(self) -> None:
        """Stop listening for news; a poll that waits ends."""
        self._closed = True
        if self._fetching is not None:
            await asyncio.wait({self._fetching})
        self._store.off_append(self._wake)
        self._ready.clear()
        self._news.set()

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """At most ``max_records`` records, or none after ``timeout_s``."""
        if max_records < 1:
            raise ValueError(f"max_records is {max_records}: at least 1")
        deadline = self._loop.time() + timeout_s
        while not self._closed:
            if taken := self._take(max_records):
                return taken
            if len(self._paused) < len(self.places) and await self._fetch(deadline):
                continue
            if self._loop.time() >= deadline:
                return []
            await self._wait_for_news(deadline)
        raise LogUnavailable("the log was closed")

    def pause(self, partitions: Collection[Partition]) -> None:
        """Polls return nothing of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Collection[Partition]) -> None:
        """They do again."""
        self._paused.difference_update(partitions)
        self._news.set()

    def lag(self) -> dict[Partition, int]:
        """Records not yet polled, as last seen."""
        end = self._store.end
        lag = {partition: max(place.end, end(place.id)) - place.next for partition, place in self.places.items()}
        for chunk in self._ready:
            lag[Partition(chunk.topic, chunk.partition)] += len(chunk.offsets)
        return lag

    def polled(self) -> dict[Partition, int]:
        """The next offset that a poll would hand out, at least."""
        nexts = {partition: place.next for partition, place in self.places.items()}
        for chunk in reversed(self._ready):
            nexts[Partition(chunk.topic, chunk.partition)] = chunk.offsets[0]
        return nexts

    def _wake(self, partitions: Collection[int]) -> None:
        """Of any thread."""
        ours = any(place.id in partitions for place in tuple(self.places.values()))
        if ours and not self._news.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def _fetch(self, deadline: float) -> bool:
        """True when there are records. A fetch that outlives the deadline is kept for the next poll, not begun anew."""
        if self._fetching is None:
            self._news.clear()
            self._turn += 1
            wanted = {partition: place for partition, place in self.places.items() if partition not in self._paused}
            reading = self._log.read(_fetch, wanted, self._turn, self._epoch)
            self._fetching = asyncio.create_task(reading)
        fetching = self._fetching
        await asyncio.wait({fetching}, timeout=max(0.0, deadline - self._loop.time()))
        if not fetching.done():
            return False
        self._fetching = None
        moved, chunks = fetching.result()
        self.places |= moved
        self._ready.extend(chunks)
        return bool(chunks)

    async def _wait_for_news(self, deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._news.wait()
        self._news.clear()

    def _take(self, max_records: int) -> list[Chunk]:
        taken: list[Chunk] = []
        kept: list[Chunk] = []
        while max_records and self._ready:
            chunk = self._ready.popleft()
            if (chunk.topic, chunk.partition) in self._paused:
                kept.append(chunk)
                continue
            if len(chunk.offsets) > max_records:
                self._ready.appendleft(chunk.part(slice(max_records, None)))
                chunk = chunk.part(slice(max_records))
            taken.append(chunk)
            max_records -= len(chunk.offsets)
        self._ready.extendleft(reversed(kept))
        return taken


def _fetch(db: sqlite3.Connection, places: Mapping[Partition, Place], turn: int, epoch: int) -> Fetched:
    """About FETCH_RECORDS records, shared among the partitions that have any; whole batches."""
    ends = find_ends(db, [place.id for place in places.values()])
    moved = {partition: place._replace(end=ends[place.id]) for partition, place in places.items()}
    ready = [partition for partition, place in moved.items() if place.next < place.end]
    chunks: list[Chunk] = []
    for index in range(len(ready)):
        partition = ready[(turn + index) % len(ready)]
        share = FETCH_RECORDS // len(ready) + 1
        moved[partition], found = _fetch_one(db, partition, moved[partition], share, FETCH_BYTES // len(ready), epoch)
        chunks += found
    return Fetched(moved, chunks)


def _fetch_one(
    db: sqlite3.Connection, partition: Partition, place: Place, records: int, size: int, epoch: int
) -> tuple[Place, list[Chunk]]:
    chunks: list[Chunk] = []
    rows = db.execute(
        "SELECT first, last, data FROM batch WHERE partition = ? AND first > ? ORDER BY first", (place.id, place.row)
    )
    for first, last, data in rows:
        offsets, timestamps_ms, keys, values, headers = unpack(first, data)
        chunk = Chunk(*partition, epoch, offsets, timestamps_ms, keys, values, headers)
        if first < place.next:  # a position within a batch
            low = sum(offset < place.next for offset in chunk.offsets)
            chunk = chunk.part(slice(low, None))
        if chunk.offsets:
            chunks.append(chunk)
        place = place._replace(row=first, next=max(place.next, last + 1))
        records -= len(chunk.offsets)
        size -= len(data)
        if records <= 0 or size <= 0:
            return place, chunks
    # The last batches may be gone altogether (retention, compaction): nothing is left before the end.
    return place._replace(next=place.end), chunks


def place_at(db: sqlite3.Connection, id: int, offset: int) -> Place:
    """The place from which ``offset`` is the next record."""
    (end,) = db.execute("SELECT next FROM partition WHERE id = ?", (id,)).fetchone()
    (row,) = db.execute("SELECT max(first) FROM batch WHERE partition = ? AND first <= ?", (id, offset)).fetchone()
    return Place(id, BEFORE_ALL if row is None else row - 1, offset, end)


def bounds(db: sqlite3.Connection, id: int) -> tuple[int, int]:
    """The first offset still there and the one after the last."""
    (end,) = db.execute("SELECT next FROM partition WHERE id = ?", (id,)).fetchone()
    (first,) = db.execute("SELECT min(first) FROM batch WHERE partition = ?", (id,)).fetchone()
    return (end if first is None else first), end


def lasts(db: sqlite3.Connection, places: Mapping[Partition, Place]) -> dict[Partition, int]:
    """The last offset that is still there, per partition; BEFORE_ALL when none is."""
    found = {}
    for partition, place in places.items():
        (last,) = db.execute("SELECT max(last) FROM batch WHERE partition = ?", (place.id,)).fetchone()
        found[partition] = BEFORE_ALL if last is None else last
    return found


def find_record(db: sqlite3.Connection, partition: Partition, offset: int) -> Record | None:
    """The record at that offset; None when it is not there."""
    row = db.execute(
        "SELECT first, data FROM batch JOIN partition ON partition.id = batch.partition"
        " JOIN topic ON topic.id = partition.topic"
        " WHERE name = ? AND number = ? AND first <= ? AND last >= ?",
        (*partition, offset, offset),
    ).fetchone()
    for at, timestamp_ms, key, value, headers in zip(*unpack(*row), strict=True) if row else ():
        if at == offset:
            return Record(partition.topic, value, key, headers, partition.number, timestamp_ms)
    return None
