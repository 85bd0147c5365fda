"""The file of the embedded log: opening, its schema, its lock, its connections.

Invariant: within a partition, batches neither overlap nor leave offsets out; a row's range never changes, though
compaction may thin out what lies in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep

from engine.errors import EngineError, LogUnavailable, LogUnusable

APPLICATION_ID = 0x53544C47  # "STLG"
SCHEMA = 1
BUSY_MS = 5_000  # how long a writer waits for another process's transaction
RETRY_S = 0.0005  # between two looks whether it is over: SQLite's own waits grow to 100 ms, a transaction takes 2 ms
WAL_PAGES = 32_000  # a quarter of a GiB: a writer moves them to the file itself where no engine runs that does
MEMORY = ":memory:"
TABLES = """
CREATE TABLE topic (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    retention_ms INTEGER
);
CREATE TABLE partition (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL REFERENCES topic (id),
    number INTEGER NOT NULL,
    next INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
CREATE TABLE batch (
    id INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL REFERENCES partition (id),
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    newest_ms INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (partition, first)
);
CREATE TABLE position (
    group_name TEXT NOT NULL,
    partition INTEGER NOT NULL REFERENCES partition (id),
    next INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    PRIMARY KEY (group_name, partition)
) WITHOUT ROWID;
"""

Waker = Callable[[Collection[int]], None]


def find_ends(db: sqlite3.Connection, ids: Sequence[int] | None = None) -> dict[int, int]:
    """Row id of a partition (None: of all) -> its log's end. One row of JSON: each row fetched alone would cost a turn
    of the GIL."""
    statement = (
        "SELECT json_group_array(json_array(id, next)) FROM partition"
        " WHERE ?1 IS NULL OR id IN (SELECT value FROM json_each(?1))"
    )
    (ends,) = db.execute(statement, (None if ids is None else json.dumps(ids),)).fetchone()
    return dict(json.loads(ends))


def explain(error: sqlite3.Error, path: str) -> EngineError:
    """What a caller can do about it: damage stops us, everything else (busy, disk full, I/O) may pass."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return LogUnusable(f"{path} is not a surgetank log: it is no SQLite file")
    if code == sqlite3.SQLITE_CORRUPT:
        return LogUnusable(f"{path} is damaged: {error}")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return LogUnusable(f"{path} cannot be opened for reading and writing: {error}")
    return LogUnavailable(f"{path}: {error}")


class Store:
    """One log file, or one log in memory. Its connections may be used from any thread, one at a time each."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._in_memory = path.startswith(MEMORY)
        self._lock_file: int | None = None
        self._write_lock = threading.RLock()
        self._idle: list[sqlite3.Connection] = []
        self._wakers: set[Waker] = set()
        self._ends: dict[int, int] = {}  # of partitions (row ids), as far as it was told
        self._users = 0
        self.engine_held = False
        self._writer = self._connect()
        try:
            self._initialise()
            self._writer.execute("PRAGMA busy_timeout = 0")  # ``_begin`` waits instead
        except BaseException:
            self._writer.close()
            raise

    # One Store is shared by everything that opens the same :memory: name in this process.
    _memory: dict[str, Store] = {}  # noqa: RUF012
    _memory_guard = threading.Lock()

    @classmethod
    def open(cls, path: str, *, engine: bool) -> Store:
        """Open or create. Raises LogUnusable (foreign, damaged, newer, held by another engine), LogUnavailable."""
        try:
            with cls._memory_guard:
                store = cls._memory.get(path) or cls(path)
                if path.startswith(MEMORY):
                    cls._memory[path] = store
                store._users += 1
        except sqlite3.Error as error:
            raise explain(error, path) from error
        except OSError as error:
            raise LogUnusable(f"{path} cannot be opened: {error}") from error
        if engine:
            try:
                store._take_engine()
            except BaseException:
                store.close(engine=False)
                raise
        return store

    def close(self, *, engine: bool) -> None:
        """Give it back; the last one closes it. What lies in memory is gone then."""
        with self._memory_guard:
            if engine:
                self.engine_held = False
                if self._lock_file is not None:
                    os.close(self._lock_file)
                    self._lock_file = None
            self._users -= 1
            if self._users:
                return
            self._memory.pop(self.path, None)
        for db in self._idle:
            db.close()
        self._writer.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer, here or in another process, interleaves with."""
        with self._write_lock, self._translated():
            self._begin()
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        until = monotonic() + BUSY_MS / 1000
        while True:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() >= until:
                    raise
            sleep(RETRY_S)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A consistent view."""
        if self._in_memory:  # one connection for all: views exclude each other
            with self._write_lock, self._translated():
                yield self._writer
            return
        with self._translated():
            db = self._idle.pop() if self._idle else self._connect()
            try:
                db.execute("BEGIN")
                yield db
            finally:
                if db.in_transaction:
                    db.execute("COMMIT")
                self._idle.append(db)

    def size(self) -> int:
        """Bytes in use, freed pages not counted."""
        with self.reading() as db:
            pages, free, page = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
            )
        used: int = (pages - free) * page
        return used

    def checkpoint(self) -> None:
        """Move what was committed from the WAL into the file; writers go on meanwhile. In memory there is no WAL."""
        if self._in_memory:
            return
        with self._translated():
            db = self._idle.pop() if self._idle else self._connect()
            try:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                self._idle.append(db)

    def version(self, db: sqlite3.Connection) -> int:
        """A number that changes when anybody has committed on another connection."""
        with self._translated():
            number: int = db.execute("PRAGMA data_version").fetchone()[0]
            return number

    def look(self, db: sqlite3.Connection) -> None:
        """Notice what was appended, by whomever."""
        with self._translated():
            self.notify(find_ends(db))

    def on_append(self, waker: Waker) -> None:
        """Call ``waker`` (any thread) with the partitions (row ids) that have become longer."""
        self._wakers.add(waker)

    def off_append(self, waker: Waker) -> None:
        """No longer."""
        self._wakers.discard(waker)

    def end(self, partition: int) -> int:
        """Where the partition (row id) ends, as far as it was told: also of one nobody reads at present."""
        return self._ends.get(partition, 0)

    def notify(self, ends: Mapping[int, int]) -> None:
        """Where partitions (row ids) end now. Whoever waits for records of others is left alone: to look in vain costs
        a view, on a thread of its own."""
        longer = {partition for partition, end in ends.items() if end > self._ends.get(partition, 0)}
        if longer:
            self._ends |= {partition: ends[partition] for partition in longer}
            for waker in tuple(self._wakers):
                waker(longer)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def watch(self) -> sqlite3.Connection | None:
        """A connection for ``version``; None in memory, where nobody else can write."""
        return None if self._in_memory else self._connect()

    def _connect(self) -> sqlite3.Connection:
        if not self._in_memory:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        name = MEMORY if self._in_memory else self.path
        db = sqlite3.connect(name, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            db.execute("PRAGMA journal_size_limit = 67108864")
        except BaseException:
            db.close()
            raise
        return db

    def _initialise(self) -> None:
        db = self._writer
        if self._marks() == (0, 0):
            self._refuse_foreign()
            db.execute("PRAGMA page_size = 8192")
        self._refuse_foreign()
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        try:
            if self._marks() == (0, 0):
                for statement in TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _marks(self) -> tuple[int, int]:
        application, version = (
            self._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        return application, version

    def _refuse_foreign(self) -> None:
        application, version = self._marks()
        if application != APPLICATION_ID:
            tables = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables or application or version:
                raise LogUnusable(f"{self.path} is not a surgetank log: it is the SQLite file of another program")
        elif version > SCHEMA:
            raise LogUnusable(
                f"{self.path} was made by a newer surgetank (schema {version}, this one knows up to {SCHEMA})"
            )

    def _take_engine(self) -> None:
        if self._in_memory:
            if self.engine_held:
                raise LogUnusable(f"{self.path} is already used by an engine in this process")
            self.engine_held = True
            return
        # A file of its own: closing any handle of the database file would drop SQLite's own locks on it.
        name = self.path + ".lock"
        lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise LogUnusable(
                f"{self.path} is held by another engine (process {holder}); one engine per file, several need Kafka"
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        self._lock_file, self.engine_held = lock, True
