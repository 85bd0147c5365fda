"""Consumers and readers of the embedded log.

In: positions. Out: chunks, ascending per partition, taken from the partitions in turn. Invariant: where a cursor
stands changes on the event loop only; threads read and hand back. Never: holds more than about one fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import LogUnavailable, LogUnusable, StaleEpoch
from engine.logs import AssignmentListener, Chunk, Partition, Position
from engine.logs.checks import check_metadata
from engine.logs.sqlite_store import find_ends, unpack

if TYPE_CHECKING:
    from engine.logs.sqlite import SqliteLog

LOGGER = logging.getLogger(__name__)
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
        self._paused = False
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
            if self._ready and not self._paused:
                return self._take(max_records)
            if not self._paused and await self._fetch(deadline):
                continue
            if self._loop.time() >= deadline:
                return []
            await self._wait_for_news(deadline)
        raise LogUnavailable("the log was closed")

    def pause(self, paused: bool) -> None:
        """Polls return nothing while paused."""
        self._paused = paused
        self._news.set()

    def lag(self) -> dict[Partition, int]:
        """Records not yet polled, as last seen."""
        lag = {partition: place.end - place.next for partition, place in self.places.items()}
        for chunk in self._ready:
            lag[Partition(chunk.topic, chunk.partition)] += len(chunk.offsets)
        return lag

    def polled(self) -> dict[Partition, int]:
        """The next offset that a poll would hand out, at least."""
        nexts = {partition: place.next for partition, place in self.places.items()}
        for chunk in reversed(self._ready):
            nexts[Partition(chunk.topic, chunk.partition)] = chunk.offsets[0]
        return nexts

    def _wake(self) -> None:
        if not self._news.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def _fetch(self, deadline: float) -> bool:
        """True when there are records. A fetch that outlives the deadline is kept for the next poll, not begun anew."""
        if self._fetching is None:
            self._news.clear()
            self._turn += 1
            reading = self._log.read(_fetch, self.places, self._turn, self._epoch)
            self._fetching = asyncio.create_task(reading)
        fetching = self._fetching
        await asyncio.wait({fetching}, timeout=max(0.0, deadline - self._loop.time()))
        if not fetching.done():
            return False
        self._fetching = None
        self.places, chunks = fetching.result()
        self._ready.extend(chunks)
        return bool(chunks)

    async def _wait_for_news(self, deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._news.wait()
        self._news.clear()

    def _take(self, max_records: int) -> list[Chunk]:
        taken = []
        while max_records and self._ready:
            chunk = self._ready.popleft()
            if len(chunk.offsets) > max_records:
                self._ready.appendleft(_part(chunk, slice(max_records, None)))
                chunk = _part(chunk, slice(max_records))
            taken.append(chunk)
            max_records -= len(chunk.offsets)
        return taken


def _part(chunk: Chunk, part: slice) -> Chunk:
    topic, partition, epoch, offsets, timestamps_ms, keys, values, headers = chunk
    cut = (offsets[part], timestamps_ms[part], keys[part], values[part], headers[part])
    return Chunk(topic, partition, epoch, *cut)


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
            chunk = _part(chunk, slice(low, None))
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


class SqliteConsumer:
    """The one member of a group. See ``engine.logs.Consumer``."""

    EPOCH = 1  # nothing is ever taken away before the end

    def __init__(self, log: SqliteLog, group: str, topics: Sequence[str], listener: AssignmentListener) -> None:
        self._log = log
        self._group = group
        self._topics = tuple(topics)
        self._listener = listener
        self._cursor: Cursor | None = None
        self._ids: dict[Partition, int] = {}

    async def start(self) -> None:
        """Take every partition, from its committed position or else from where first_start says."""
        if not self._log.engine:
            raise LogUnusable(f"{self._log.path}: only the engine of the file consumes; others append and read")
        if self._group in self._log.groups:
            raise LogUnusable(f"{self._log.path}: group {self._group} has a member already; several need Kafka")
        self._log.groups.add(self._group)
        try:
            ids = await self._log.partitions(self._topics)
            first = await self._log.writer.change(lambda db: self._first_start(db, ids))
            if first:
                LOGGER.info("group %s starts at the %s of %s", self._group, self._log.first_start, _spoken(first))
            positions = await self._log.committed(self._group)
            owned = {partition: positions[partition] for partition in ids}
            cursor = Cursor(self._log, self.EPOCH)
            cursor.places = await self._log.read(_places, ids, owned)
        except BaseException:
            self._log.groups.discard(self._group)
            raise
        self._ids, self._cursor = ids, cursor
        self._log.opened(self)
        await self._listener.assigned(owned, self.EPOCH)

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """See Consumer.poll."""
        if self._cursor is None:
            raise LogUnavailable(f"{self._log.path}: group {self._group} is not joined")
        return await self._cursor.poll(max_records, timeout_s)

    async def commit(self, positions: Mapping[Partition, Position], timeout_s: float = 5.0) -> None:
        """Store positions. Raises StaleEpoch after close, LogUnavailable when the disk did not follow in time."""
        check_metadata(positions)
        strange = [partition for partition in positions if partition not in self._ids]
        if strange:
            raise StaleEpoch(f"group {self._group} does not own {_spoken(strange)}")
        rows = [(self._group, self._ids[partition], *position) for partition, position in positions.items()]
        try:
            async with asyncio.timeout(timeout_s):
                await self._log.writer.change(lambda db: _store_positions(db, rows))
        except TimeoutError as error:
            raise LogUnavailable(f"{self._log.path}: no commit within {timeout_s} s") from error

    def pause(self) -> None:
        """Until ``resume`` a poll returns nothing."""
        if self._cursor is not None:
            self._cursor.pause(True)

    def resume(self) -> None:
        """Records again."""
        if self._cursor is not None:
            self._cursor.pause(False)

    def lag(self) -> dict[Partition, int]:
        """Records not yet polled, as last seen."""
        return self._cursor.lag() if self._cursor is not None else {}

    async def close(self) -> None:
        """Hand the partitions back."""
        cursor, self._cursor = self._cursor, None
        if cursor is None:
            return
        try:
            await self._listener.revoked(tuple(self._ids))
        finally:
            await cursor.close()
            self._ids = {}
            self._log.groups.discard(self._group)
            self._log.closed(self)

    def _first_start(self, db: sqlite3.Connection, ids: Mapping[Partition, int]) -> list[Partition]:
        """Give partitions without a position one, at once: a crash before the first commit must not move it."""
        known = {id for (id,) in db.execute("SELECT partition FROM position WHERE group_name = ?", (self._group,))}
        fresh = {partition: id for partition, id in ids.items() if id not in known}
        latest = self._log.first_start == "latest"
        _store_positions(db, [(self._group, id, bounds(db, id)[latest], "") for id in fresh.values()])
        return list(fresh)


def _places(
    db: sqlite3.Connection, ids: Mapping[Partition, int], positions: Mapping[Partition, Position]
) -> dict[Partition, Place]:
    return {partition: place_at(db, id, positions[partition].offset) for partition, id in ids.items()}


def _store_positions(db: sqlite3.Connection, rows: list[tuple[str, int, int, str]]) -> None:
    db.executemany(
        "INSERT INTO position (group_name, partition, next, metadata) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (group_name, partition) DO UPDATE SET next = excluded.next, metadata = excluded.metadata",
        rows,
    )


def _spoken(partitions: Sequence[Partition]) -> str:
    return ", ".join(f"{topic}/{number}" for topic, number in partitions)


class SqliteReader:
    """Reads without a group. See ``engine.logs.Reader``."""

    def __init__(self, log: SqliteLog) -> None:
        self._log = log
        self._cursor: Cursor | None = None

    async def start(self, topics: Sequence[str], *, from_end: bool) -> None:
        """Stand at the beginning or the end of every partition."""
        ids = await self._log.partitions(topics)

        def places(db: sqlite3.Connection) -> dict[Partition, Place]:
            return {partition: place_at(db, id, bounds(db, id)[from_end]) for partition, id in ids.items()}

        cursor = Cursor(self._log, 0)
        cursor.places = await self._log.read(places)
        self._cursor = cursor
        self._log.opened(self)

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """See Reader.poll."""
        return await self._open().poll(max_records, timeout_s)

    async def at_end(self) -> bool:
        """True when everything that stands in the topics now has been polled."""
        cursor = self._open()
        polled = cursor.polled()
        lasts = await self._log.read(_lasts, cursor.places)
        return all(polled[partition] > last for partition, last in lasts.items())

    async def close(self) -> None:
        """Stop reading."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.close()
            self._log.closed(self)

    def _open(self) -> Cursor:
        if self._cursor is None:
            raise LogUnavailable(f"{self._log.path}: the reader is closed")
        return self._cursor


def _lasts(db: sqlite3.Connection, places: Mapping[Partition, Place]) -> dict[Partition, int]:
    """The last offset that is still there, per partition; BEFORE_ALL when none is."""
    lasts = {}
    for partition, place in places.items():
        (last,) = db.execute("SELECT max(last) FROM batch WHERE partition = ?", (place.id,)).fetchone()
        lasts[partition] = BEFORE_ALL if last is None else last
    return lasts
