"""The embedded log: topics, partitions, offsets and groups in one SQLite file, for one engine on one machine.

Producers in other processes share the file; an append is on disk (WAL, synchronous = FULL) when it returns. Topics
nobody created come into being with one partition when they are first named. A path of ``:memory:`` (or
``:memory:NAME``) is a log in memory, shared by all that open it in this process until the last one closes it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from engine.clock import Clock
from engine.errors import LogUnavailable
from engine.logs import AssignmentListener, Consumer, Partition, Position, Reader, Record, TopicDifference, TopicSpec
from engine.logs.checks import MAX_METADATA
from engine.logs.sqlite_cursor import find_record
from engine.logs.sqlite_read import SqliteConsumer, SqliteReader
from engine.logs.sqlite_store import Store
from engine.logs.sqlite_upkeep import Upkeep
from engine.logs.sqlite_write import Writer, find_or_make_topic, make_topic

LOGGER = logging.getLogger(__name__)
READ_THREADS = 8
WATCH_S = 0.002  # how soon another process's append is noticed
UPKEEP_S = 60.0
CHECKPOINT_S = 1.0  # small ones: a large one would hold an append up for 70 ms
WEEK_MS = 7 * 86_400_000
T = TypeVar("T")


class SqliteLog:
    """One process's access to the file. See ``engine.logs.Log``.

    ``retention_ms``: records older than this go once every group has committed past them; ``max_bytes`` bounds the
    file in the same way (committed records go, oldest first, as soon as it is exceeded); None: no bound.
    """

    def __init__(
        self,
        path: str,
        *,
        engine: bool,
        first_start: Literal["earliest", "latest"] = "earliest",
        retention_ms: int = WEEK_MS,
        max_bytes: int | None = None,
        metadata_limit: int = MAX_METADATA,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self.engine = engine
        self.first_start = first_start
        self.metadata_limit = metadata_limit
        self.groups: set[str] = set()  # consumed here, at present
        self._clock = clock or Clock()
        self._retention_ms = retention_ms
        self._max_bytes = max_bytes
        self._store: Store | None = None

    async def start(self) -> None:
        """Open the file, or create it."""
        self._store = await asyncio.to_thread(Store.open, self.path, engine=self.engine)
        self.writer = Writer(self._store)
        self.pool = ThreadPoolExecutor(READ_THREADS, "log-read")
        self._open: list[SqliteConsumer | SqliteReader] = []
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._upkeep = Upkeep(self._store, self._retention_ms, self._max_bytes)
        self._upkeep_task = asyncio.create_task(self._keep_up()) if self.engine else None

    async def close(self) -> None:
        """Write what waits, leave every group, close the file."""
        if self._store is None:
            return
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            await asyncio.gather(self._upkeep_task, return_exceptions=True)
        for one in tuple(self._open):
            await one.close()
        await self.writer.close()
        store, self._store = self._store, None
        self._stopping.set()
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.join)
        await asyncio.to_thread(self.pool.shutdown)
        await asyncio.to_thread(store.close, engine=self.engine)

    @property
    def store(self) -> Store:
        """The open file. Raises LogUnavailable when it is not open."""
        if self._store is None:
            raise LogUnavailable(f"{self.path} is not open")
        return self._store

    async def append(self, records: Sequence[Record]) -> None:
        """Append all. Raises RecordRefused (nothing of ``records`` written), LogUnavailable, LogUnusable."""
        if self._store is None:
            raise LogUnavailable(f"{self.path} is not open")
        await self.writer.append(records, self._clock.wall_ms())

    async def put(self, record: Record) -> tuple[Partition, int]:
        """Append one; returns where it stands."""
        if self._store is None:
            raise LogUnavailable(f"{self.path} is not open")
        return await self.writer.put(record, self._clock.wall_ms())

    async def fetch(self, places: Sequence[tuple[Partition, int]]) -> list[Record | None]:
        """The records at exactly these offsets."""
        return await self.read(_fetch, places)

    def consumer(self, group: str, topics: Sequence[str], listener: AssignmentListener) -> Consumer:
        """The one member of ``group``; it owns every partition of ``topics``."""
        return SqliteConsumer(self, group, topics, listener)

    async def reader(
        self, topics: Sequence[str], *, from_end: bool = False, at: Mapping[Partition, int] | None = None
    ) -> Reader:
        """A reader over all partitions of ``topics``."""
        reader = SqliteReader(self)
        await reader.start(topics, from_end, at or {})
        return reader

    async def committed(self, group: str) -> dict[Partition, Position]:
        """The group's committed positions."""
        return await self.read(_committed, group)

    async def check_topics(self, wanted: Sequence[TopicSpec]) -> list[TopicDifference]:
        """What differs; replication means nothing here."""
        return await self.read(_differences, wanted)

    async def create_topics(self, wanted: Sequence[TopicSpec]) -> list[str]:
        """Create the missing ones."""

        def create(db: sqlite3.Connection) -> list[str]:
            known = {name for (name,) in db.execute("SELECT name FROM topic")}
            missing = {spec.name: spec for spec in wanted if spec.name not in known}
            for spec in missing.values():
                make_topic(db, spec.name, spec.partitions, compacted=spec.compacted, retention_ms=spec.retention_ms)
            return list(missing)

        created: list[str] = await self.writer.change(create)
        return created

    async def trim(self, ends: Mapping[Partition, int]) -> None:
        """Delete what lies below, by whole appends."""

        def trim(db: sqlite3.Connection) -> None:
            for (topic, number), end in ends.items():
                db.execute(TRIM, {"topic": topic, "number": number, "end": end})

        await self.writer.change(trim)

    async def keep_up(self) -> None:
        """Apply retention and compaction now; the engine does so by itself every minute."""
        await self.work(self._upkeep.run, self._clock.wall_ms())

    # What the consumers and readers of this log use.

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function`` on a thread of the pool."""
        if self._store is None:
            raise LogUnavailable(f"{self.path} is not open")
        return await asyncio.get_running_loop().run_in_executor(self.pool, lambda: function(*args))

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(db, *args)`` on a thread of the pool, in one consistent view."""

        def view() -> T:
            with self.store.reading() as db:
                return function(db, *args)

        return await self.work(view)

    async def partitions(self, topics: Sequence[str]) -> dict[Partition, int]:
        """All partitions of ``topics`` with their row ids; topics that are not there are created."""

        def find(db: sqlite3.Connection) -> dict[Partition, int]:
            found = [find_or_make_topic(db, name) for name in topics]
            return {Partition(topic.name, number): id for topic in found for number, id in enumerate(topic.partitions)}

        partitions: dict[Partition, int] = await self.writer.change(find)
        return partitions

    def opened(self, one: SqliteConsumer | SqliteReader) -> None:
        """It is to be closed with the log."""
        self._open.append(one)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="log-watch", daemon=True)
            self._watcher.start()

    def closed(self, one: SqliteConsumer | SqliteReader) -> None:
        """It was closed."""
        if one in self._open:
            self._open.remove(one)

    def _watch(self) -> None:
        """Notice what other processes append."""
        store = self.store
        db = store.watch()
        if db is None:
            return
        try:
            seen = None
            while not self._stopping.wait(WATCH_S):
                version = store.version(db)
                if version != seen:
                    seen = version
                    store.look(db)
        finally:
            db.close()

    async def _keep_up(self) -> None:
        while True:
            try:
                await self.keep_up()
            except LogUnavailable as error:
                LOGGER.warning("retention of %s put off: %s", self.path, error)
            due = asyncio.get_running_loop().time() + UPKEEP_S
            while asyncio.get_running_loop().time() < due:
                await asyncio.sleep(CHECKPOINT_S)
                await self._checkpoint()

    async def _checkpoint(self) -> None:
        try:
            await self.work(self.store.checkpoint)
        except LogUnavailable as error:
            LOGGER.warning("checkpoint of %s put off: %s", self.path, error)


TRIM = """
DELETE FROM batch WHERE last < :end AND partition = (
    SELECT partition.id FROM partition JOIN topic ON topic.id = topic WHERE topic.name = :topic AND number = :number
)
"""


def _fetch(db: sqlite3.Connection, places: Sequence[tuple[Partition, int]]) -> list[Record | None]:
    return [find_record(db, partition, offset) for partition, offset in places]


def _committed(db: sqlite3.Connection, group: str) -> dict[Partition, Position]:
    rows = db.execute(
        "SELECT topic.name, number, position.next, metadata FROM position"
        " JOIN partition ON partition.id = position.partition JOIN topic ON topic.id = topic WHERE group_name = ?",
        (group,),
    )
    return {Partition(topic, number): Position(offset, metadata) for topic, number, offset, metadata in rows}


def _differences(db: sqlite3.Connection, wanted: Sequence[TopicSpec]) -> list[TopicDifference]:
    differences = []
    for spec in wanted:
        statement = "SELECT partitions, compacted, retention_ms FROM topic WHERE name = ?"
        row = db.execute(statement, (spec.name,)).fetchone()
        if row is None:
            differences.append(TopicDifference(spec.name, "topic", "present", ""))
            continue
        pairs = [("partitions", spec.partitions, row[0]), ("cleanup.policy", policy(spec.compacted), policy(row[1]))]
        if spec.retention_ms is not None:
            pairs.append(("retention.ms", spec.retention_ms, "default" if row[2] is None else row[2]))
        differences += [
            TopicDifference(spec.name, key, str(want), str(found)) for key, want, found in pairs if want != found
        ]
    return differences


def policy(compacted: object) -> str:
    """The word Kafka has for it."""
    return "compact" if compacted else "delete"
