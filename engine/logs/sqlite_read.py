"""Consumers and readers of the embedded log: a cursor with a group's positions, and one without."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from engine.errors import LogUnavailable, LogUnusable, StaleEpoch
from engine.logs import AssignmentListener, Chunk, Partition, Position
from engine.logs.checks import check_metadata
from engine.logs.sqlite_cursor import Cursor, Place, bounds, lasts, place_at

if TYPE_CHECKING:
    from engine.logs.sqlite import SqliteLog

LOGGER = logging.getLogger(__name__)


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
        check_metadata(positions, self._log.metadata_limit)
        strange = [partition for partition in positions if partition not in self._ids]
        if strange:
            raise StaleEpoch(f"group {self._group} does not own {_spoken(strange)}")
        rows = [(self._group, self._ids[partition], *position) for partition, position in positions.items()]
        try:
            async with asyncio.timeout(timeout_s):
                await self._log.writer.change(lambda db: _store_positions(db, rows))
        except TimeoutError as error:
            raise LogUnavailable(f"{self._log.path}: no commit within {timeout_s} s") from error

    def pause(self, partitions: Collection[Partition] | None = None) -> None:
        """Until ``resume`` a poll returns nothing."""
        if self._cursor is not None:
            self._cursor.pause(self._ids if partitions is None else partitions)

    def resume(self, partitions: Collection[Partition] | None = None) -> None:
        """Records again."""
        if self._cursor is not None:
            self._cursor.resume(self._ids if partitions is None else partitions)

    def lag(self) -> dict[Partition, int]:
        """Records not yet polled, as last seen."""
        return self._cursor.lag() if self._cursor is not None else {}

    async def renew(self) -> None:
        """Nothing: the file has no membership that could be stuck."""

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

    async def start(self, topics: Sequence[str], from_end: bool, at: Mapping[Partition, int]) -> None:
        """Stand at the beginning or the end of every partition, or ``at`` a place."""
        ids = await self._log.partitions(topics)

        def places(db: sqlite3.Connection) -> dict[Partition, Place]:
            return {one: place_at(db, id, at.get(one, bounds(db, id)[from_end])) for one, id in ids.items()}

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
        ends = await self._log.read(lasts, cursor.places)
        return all(polled[partition] > last for partition, last in ends.items())

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
