"""The one thread of a process that writes to the embedded log.

In: appends and small changes (positions, topics), each with a future. Out: the futures, after the commit that holds
them. Invariant: a future is resolved only once its work is on disk; whatever waits at the same time shares one
transaction and its one disk flush. Never: reorders the appends of one partition.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from engine.errors import LogUnavailable, RecordRefused
from engine.logs import Headers, Partition, Record
from engine.logs.checks import check_record
from engine.logs.sqlite_batch import Columns, pack
from engine.logs.sqlite_store import Store, find_ends

GROUP_RECORDS = 20_000  # most records one transaction takes from those waiting
BATCH_RECORDS = 1_000
BATCH_BYTES = 1 << 20
NEW_PARTITIONS = 1  # of a topic nobody has created: one process reads all, more would only cost

Change = Callable[[sqlite3.Connection], Any]


class Topic(NamedTuple):
    """A topic as it stands in the file; ``partitions`` are row ids, by number."""

    name: str
    compacted: bool
    partitions: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Work:
    records: Sequence[Record]
    change: Change | None
    now_ms: int
    future: asyncio.Future[Any]


class _Open(NamedTuple):
    """What this transaction appends to one partition."""

    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]


def find_topic(db: sqlite3.Connection, name: str) -> Topic | None:
    """The topic named so, or None."""
    row = db.execute("SELECT id, compacted FROM topic WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    numbers = db.execute("SELECT id FROM partition WHERE topic = ? ORDER BY number", (row[0],)).fetchall()
    return Topic(name, bool(row[1]), tuple(id for (id,) in numbers))


def make_topic(
    db: sqlite3.Connection, name: str, partitions: int, *, compacted: bool = False, retention_ms: int | None = None
) -> Topic:
    """Create a topic that is not there."""
    statement = "INSERT INTO topic (name, partitions, compacted, retention_ms) VALUES (?, ?, ?, ?)"
    row = db.execute(statement, (name, partitions, compacted, retention_ms)).lastrowid
    insert = "INSERT INTO partition (topic, number) VALUES (?, ?) RETURNING id"
    ids = [db.execute(insert, (row, number)).fetchone()[0] for number in range(partitions)]
    return Topic(name, compacted, tuple(ids))


def find_or_make_topic(db: sqlite3.Connection, name: str) -> Topic:
    """The topic named so, created when it is not there."""
    found = find_topic(db, name)
    if found is None:
        found = make_topic(db, name, NEW_PARTITIONS)
    return found


class Appends:
    """The appends of one transaction, gathered per partition."""

    def __init__(self, db: sqlite3.Connection, topics: dict[str, Topic], spread: Iterator[int]) -> None:
        self._db = db
        self._topics = topics
        self._spread = spread
        self._open: dict[int, _Open] = {}

    def add(self, records: Sequence[Record], now_ms: int) -> None:
        """All of ``records`` or none: raises RecordRefused before any is taken."""
        places = [self._place(record) for record in records]
        for place, record in zip(places, records, strict=True):
            _, value, key, headers, _, timestamp_ms = record
            place.timestamps_ms.append(now_ms if timestamp_ms is None else timestamp_ms)
            place.keys.append(key)
            place.values.append(value)
            place.headers.append(headers)

    def flush(self) -> dict[int, int]:
        """Give every record its offset and write it. Returns the ends of the partitions (row ids) written to."""
        full = {partition: columns for partition, columns in self._open.items() if columns.values}
        nexts = find_ends(self._db, list(full))
        self._db.executemany(
            "INSERT INTO batch (partition, first, last, newest_ms, data) VALUES (?, ?, ?, ?, ?)",
            [row for partition, columns in full.items() for row in _rows(partition, nexts[partition], columns)],
        )
        ends = {partition: nexts[partition] + len(columns.values) for partition, columns in full.items()}
        self._db.execute(
            "UPDATE partition SET next = json_extract(value, '$[1]') FROM json_each(?)"
            " WHERE partition.id = json_extract(value, '$[0]')",
            (json.dumps([*ends.items()]),),
        )
        return ends

    def _place(self, record: Record) -> _Open:
        check_record(record)
        topic = self._topics.get(record.topic)
        if topic is None:
            topic = self._topics[record.topic] = find_or_make_topic(self._db, record.topic)
        if record.key is None and topic.compacted:
            raise RecordRefused(f"topic {topic.name} is compacted: every record needs a key")
        partition = topic.partitions[self._number(record, topic)]
        place = self._open.get(partition)
        if place is None:
            place = self._open[partition] = _Open([], [], [], [])
        return place

    def _number(self, record: Record, topic: Topic) -> int:
        partitions = len(topic.partitions)
        if record.partition is not None:
            if not 0 <= record.partition < partitions:
                raise RecordRefused(
                    f"topic {topic.name} has no partition {record.partition}: it has 0 to {partitions - 1}"
                )
            return record.partition
        if partitions == 1:
            return 0
        return (zlib.crc32(record.key) if record.key is not None else next(self._spread)) % partitions


def _rows(partition: int, offset: int, columns: _Open) -> Iterator[tuple[int, int, int, int, bytes]]:
    """The batches of one partition from ``offset`` on, cut at BATCH_RECORDS and about BATCH_BYTES."""
    low = size = 0
    total = len(columns.values)
    for high, value in enumerate(columns.values, 1):
        size += len(value or b"")
        if high == total or high - low == BATCH_RECORDS or size >= BATCH_BYTES:
            cut = slice(low, high)
            first, last = offset + low, offset + high - 1
            kept = (columns.timestamps_ms[cut], columns.keys[cut], columns.values[cut], columns.headers[cut])
            yield partition, first, last, max(kept[0]), pack(Columns(range(first, last + 1), *kept))
            low, size = high, 0


class Writer:
    """The thread; ``submit`` from the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._topics: dict[str, Topic] = {}
        self._spread = count()
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-write", daemon=True)
        self._closed = False
        self._thread.start()

    async def append(self, records: Sequence[Record], now_ms: int) -> None:
        """Returns when ``records`` are on disk."""
        await self._submit(records, None, now_ms)

    async def put(self, record: Record, now_ms: int) -> tuple[Partition, int]:
        """Where ``record`` stands, once it is on disk."""

        def put(db: sqlite3.Connection) -> tuple[int, int, int] | RecordRefused:
            appends = Appends(db, self._topics, self._spread)
            try:
                appends.add([record], now_ms)
            except RecordRefused as error:  # returned: what is raised here would undo the whole transaction
                return error
            ((id, end),) = appends.flush().items()
            (number,) = db.execute("SELECT number FROM partition WHERE id = ?", (id,)).fetchone()
            return id, number, end

        id, number, end = await self.change(put)
        self._store.notify({id: end})
        return Partition(record.topic, number), end - 1

    async def change(self, change: Change) -> Any:
        """What ``change`` returned, once its transaction is on disk."""
        return await self._submit((), change, 0)

    async def close(self) -> None:
        """Write what waits, then end."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _submit(self, records: Sequence[Record], change: Change | None, now_ms: int) -> Any:
        if self._closed:
            raise LogUnavailable(f"{self._store.path} is closed")
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(_heard)
        self._queue.put(_Work(records, change, now_ms, future))
        # Shielded: work once queued is done; a caller that stops waiting must not have its future set twice.
        return await asyncio.shield(future)

    def _run(self) -> None:
        more = True
        while more:
            group, more = self._gather()
            if group:
                self._settle(group, *self._attempt(group))

    def _gather(self) -> tuple[list[_Work], bool]:
        """Wait for work; then all that waits, up to a bound. False: nothing comes any more."""
        work = self._queue.get()
        group: list[_Work] = []
        records = 0
        while work is not None:
            group.append(work)
            records += len(work.records)
            if records >= GROUP_RECORDS:
                return group, True
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return group, True
        return group, False

    def _attempt(self, group: list[_Work]) -> tuple[list[Any], dict[int, int]]:
        """Each one's result, or the error it ends with; the ends of the partitions (row ids) appended to."""
        try:
            with self._store.writing() as db:
                return self._transact(db, group)
        except Exception as error:  # noqa: BLE001 - the thread's outer edge: every caller gets it
            self._topics.clear()  # some may have been created by what was rolled back
            return [error] * len(group), {}

    def _transact(self, db: sqlite3.Connection, group: list[_Work]) -> tuple[list[Any], dict[int, int]]:
        appends = Appends(db, self._topics, self._spread)
        results: list[Any] = [None] * len(group)
        for index, work in enumerate(group):
            try:
                appends.add(work.records, work.now_ms)
            except RecordRefused as error:
                results[index] = error
        ends = appends.flush()
        for index, work in enumerate(group):
            if work.change is not None:
                results[index] = work.change(db)
        return results, ends

    def _settle(self, group: list[_Work], results: list[Any], ends: Mapping[int, int]) -> None:
        self._store.notify(ends)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for work, result in zip(group, results, strict=True):
            by_loop.setdefault(work.future.get_loop(), []).append((work.future, result))
        for loop, ended in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, ended)


def _heard(future: asyncio.Future[Any]) -> None:
    """Its caller may have stopped waiting: a failure nobody hears of is no defect for asyncio to report."""
    if not future.cancelled():
        future.exception()


def _resolve(ended: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in ended:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
