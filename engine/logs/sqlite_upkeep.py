"""What keeps the embedded log's file from growing for ever: retention and compaction. Run by the file's engine only.

Retention: a batch goes when every group has committed past it and either its newest record is older than the
retention or the file is larger than its bound; always from the front of a partition. What a group has not read stays,
however old. Freed pages are used again; the file itself does not shrink.

Compaction, of compacted topics: of the records of one key the newest stays; a tombstone stays for a day. A batch keeps
its range of offsets and loses records. Each transaction is short, so that appends get their turn.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import NamedTuple

from engine.logs.sqlite_batch import Columns, pack, unpack
from engine.logs.sqlite_store import Store

LOGGER = logging.getLogger(__name__)
ROWS_AT_ONCE = 200
TOMBSTONE_MS = 86_400_000
NEVER = 1 << 62

# The front of a partition: what every group (if any) is past, up to the first batch that is not old.
EXPIRE = """
DELETE FROM batch WHERE id IN (
    SELECT id FROM batch
    WHERE partition = :partition AND last < :floor AND newest_ms < :before AND first < coalesce(
        (SELECT min(first) FROM batch WHERE partition = :partition AND newest_ms >= :before), :never
    )
    ORDER BY first LIMIT :rows
)
"""
# What every group is past, oldest first over all partitions: ids ascend with the time of the append.
SHRINK = """
DELETE FROM batch WHERE id IN (
    SELECT batch.id FROM batch
    JOIN partition ON partition.id = batch.partition
    JOIN topic ON topic.id = partition.topic
    WHERE NOT compacted AND last < coalesce(
        (SELECT min(position.next) FROM position WHERE position.partition = batch.partition), :never
    )
    ORDER BY batch.id LIMIT :rows
)
"""


class _Partition(NamedTuple):
    id: int
    compacted: bool
    retention_ms: int | None
    next: int
    floor: int  # the first offset that some group has not committed


class Upkeep:
    """Retention and compaction of one file; ``run`` on a thread, one at a time."""

    def __init__(self, store: Store, retention_ms: int, max_bytes: int | None) -> None:
        self._store = store
        self._retention_ms = retention_ms
        self._max_bytes = max_bytes
        self._compacted: dict[int, tuple[int, int]] = {}  # partition -> (end, records left) of its last compaction

    def run(self, now_ms: int) -> None:
        """Do what is due at ``now_ms`` (wall time)."""
        with self._store.reading() as db:
            partitions = _partitions(db)
        for partition in partitions:
            if partition.compacted:
                self._compact(partition, now_ms)
            else:
                age = self._retention_ms if partition.retention_ms is None else partition.retention_ms
                self._expire(partition, now_ms - age)
        if self._max_bytes is not None:
            self._shrink(self._max_bytes)

    def _expire(self, partition: _Partition, before_ms: int) -> None:
        where = {"partition": partition.id, "floor": partition.floor, "before": before_ms, "never": NEVER}
        while self._delete(EXPIRE, where) == ROWS_AT_ONCE:
            pass

    def _shrink(self, most: int) -> None:
        while (size := self._store.size()) > most:
            if not self._delete(SHRINK, {"never": NEVER}):
                LOGGER.warning("%s uses %d of %d bytes; what is left was not read yet", self._store.path, size, most)
                return

    def _delete(self, statement: str, where: dict[str, int]) -> int:
        with self._store.writing() as db:
            return db.execute(statement, {**where, "rows": ROWS_AT_ONCE}).rowcount

    def _compact(self, partition: _Partition, now_ms: int) -> None:
        end, left = self._compacted.get(partition.id, (0, 0))
        if partition.next - end <= left:  # fewer new records than were left: not yet worth it
            return
        newest, rows = self._survey(partition)
        left = 0
        for start in range(0, len(rows), ROWS_AT_ONCE):
            with self._store.writing() as db:
                for row in rows[start : start + ROWS_AT_ONCE]:
                    left += _thin_out(db, row, newest, now_ms - TOMBSTONE_MS)
        self._compacted[partition.id] = (partition.next, left)

    def _survey(self, partition: _Partition) -> tuple[dict[bytes | None, int], list[int]]:
        """The newest offset of each key, and the rows looked at."""
        newest: dict[bytes | None, int] = {}
        rows = []
        with self._store.reading() as db:
            statement = "SELECT id, first, data FROM batch WHERE partition = ? ORDER BY first"
            for id, first, data in db.execute(statement, (partition.id,)):
                columns = unpack(first, data)
                newest.update(zip(columns.keys, columns.offsets, strict=True))
                rows.append(id)
        return newest, rows


def _partitions(db: sqlite3.Connection) -> list[_Partition]:
    rows = db.execute(
        "SELECT partition.id, compacted, retention_ms, partition.next, coalesce(min(position.next), ?) FROM partition"
        " JOIN topic ON topic.id = topic LEFT JOIN position ON position.partition = partition.id GROUP BY partition.id",
        (NEVER,),
    )
    return [_Partition(*row) for row in rows]


def _thin_out(db: sqlite3.Connection, row: int, newest: dict[bytes | None, int], tombstones_before_ms: int) -> int:
    """Drop what is superseded from one row; how many records are left in it."""
    first, data = db.execute("SELECT first, data FROM batch WHERE id = ?", (row,)).fetchone()
    records = list(zip(*unpack(first, data), strict=True))
    kept = [
        (offset, timestamp_ms, key, value, headers)
        for offset, timestamp_ms, key, value, headers in records
        if newest[key] == offset and (value is not None or timestamp_ms >= tombstones_before_ms)
    ]
    if not kept:
        db.execute("DELETE FROM batch WHERE id = ?", (row,))
    elif len(kept) < len(records):
        db.execute("UPDATE batch SET data = ? WHERE id = ?", (pack(Columns(*zip(*kept, strict=True))), row))
    return len(kept)
