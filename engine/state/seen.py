"""The ids seen: (tenant, channel, id) -> where the send first stood, for the dedupe window.

A table in memory answers at once; a SQLite file makes it outlive the process. What was claimed or freed since the last
``flush`` goes into one row (a *segment*: packed entries), so a flush costs one small transaction however many ids it
holds, and a segment past the window is one delete. Callers flush before they commit the offsets the claims belong to.

Cost: a claim about 0.5 us and about 200 bytes of memory; at most ``max_ids`` are kept, the oldest go first (counted:
the window is then shorter than configured). An id of a send still open is never forgotten.
"""

from __future__ import annotations

import sqlite3
import struct
from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from engine.errors import LogUnusable
from engine.send import Origin

ENTRY = struct.Struct("<16sIIq")  # key, topic-partition number, hop, offset (FREED: no longer taken)
FREED = -1
APPLICATION_ID = 0x53544453  # "STDS"
SCHEMA = 1
TABLES = """
CREATE TABLE place (number INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL);
CREATE TABLE segment (sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, entries BLOB NOT NULL);
"""


def key_of(tenant: str, channel: str, id: str) -> bytes:
    """The 128-bit key; lengths keep the three apart."""
    return blake2b(f"{len(tenant)} {len(channel)} {tenant}{channel}{id}".encode(), digest_size=16).digest()


class Seen:
    """One process's dedupe table. Not for concurrent use, except that ``write`` may run on another thread."""

    def __init__(self, path: Path, window_ms: int, max_ids: int) -> None:
        self.window_ms = window_ms
        self.max_ids = max_ids
        self.shortened = 0  # ids forgotten before their window was over, because of max_ids
        self._taken: dict[bytes, tuple[int, int, int, int]] = {}  # key -> (place, hop, offset, segment)
        self._segments: deque[tuple[int, int, list[bytes]]] = deque()  # (sequence, at_ms, keys), oldest first
        self._places: dict[tuple[str, int], int] = {}
        self._names: list[tuple[str, int]] = []
        self._fresh: list[bytes] = []  # packed entries since the last take
        self._fresh_keys: list[bytes] = []
        self._sequence = 0
        self._written_places = 0
        self._db = _open(path)
        self._load()

    def __len__(self) -> int:
        return len(self._taken)

    def claim(self, key: bytes, origin: Origin, hop: int = 0) -> Origin | None:
        """Take ``key`` for ``origin``; None when it is ours now (or was: a redelivery), else the first origin."""
        place = self._places.get(origin[:2])
        if place is None:
            place = self._place(origin.topic, origin.partition)
        entry = (place, hop, origin.offset, self._sequence)
        taken = self._taken.setdefault(key, entry)
        if taken is entry:
            self._fresh.append(ENTRY.pack(key, place, hop, origin.offset))
            self._fresh_keys.append(key)
            return None
        if taken[0] == place and taken[2] == origin.offset:
            return None
        topic, partition = self._names[taken[0]]
        return Origin(topic, partition, taken[2])

    def free(self, key: bytes, origin: Origin) -> None:
        """Give the id back: its send ended with nobody accepted. Does nothing when another origin holds it."""
        taken = self._taken.get(key)
        place = self._place(origin.topic, origin.partition)
        if taken is not None and taken[0] == place and taken[2] == origin.offset:
            del self._taken[key]
            self._fresh.append(ENTRY.pack(key, place, 0, FREED))

    def take(self, now_ms: int, oldest_open_ms: int | None) -> Segment | None:
        """What must be written now, with what may be forgotten; hand it to ``write``. None: nothing to do."""
        sequence = self._sequence
        entries = b"".join(self._fresh)
        if entries:
            self._sequence += 1
            self._segments.append((sequence, now_ms, self._fresh_keys))
            self._fresh, self._fresh_keys = [], []
        forget = self._evict(now_ms, now_ms if oldest_open_ms is None else oldest_open_ms)
        places = [(n, *self._names[n]) for n in range(self._written_places, len(self._names))]
        self._written_places = len(self._names)
        if not entries and forget is None:
            return None
        return Segment(sequence, now_ms, entries, places, forget)

    def write(self, segment: Segment) -> None:
        """Make it durable; blocks on the disk. Raises sqlite3.Error; writing the same segment again is safe."""
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO place VALUES (?, ?, ?)", segment.places)
            if segment.entries:
                row = (segment.sequence, segment.at_ms, segment.entries)
                self._db.execute("INSERT OR REPLACE INTO segment VALUES (?, ?, ?)", row)
            if segment.forget is not None:
                self._db.execute("DELETE FROM segment WHERE sequence <= ?", (segment.forget,))

    def close(self) -> None:
        """Close the file; what was not written is lost."""
        self._db.close()

    def _evict(self, now_ms: int, oldest_open_ms: int) -> int | None:
        """Forget whole segments past the window or over max_ids; returns the last one's number."""
        last = None
        while self._segments and self._segments[0][1] < oldest_open_ms:
            sequence, at_ms, keys = self._segments[0]
            expired = at_ms < now_ms - self.window_ms
            if not expired and len(self._taken) <= self.max_ids:
                break
            self._segments.popleft()
            for key in keys:
                if key in self._taken and self._taken[key][3] == sequence:  # not freed and claimed anew since
                    del self._taken[key]
                    self.shortened += not expired
            last = sequence
        return last

    def _place(self, topic: str, partition: int) -> int:
        number = self._places.get((topic, partition))
        if number is None:
            number = self._places[topic, partition] = len(self._names)
            self._names.append((topic, partition))
        return number

    def _load(self) -> None:
        for number, topic, partition in self._db.execute("SELECT number, topic, partition FROM place ORDER BY number"):
            self._places[topic, partition] = number
            self._names.append((topic, partition))
        self._written_places = len(self._names)
        for sequence, at_ms, entries in self._db.execute("SELECT * FROM segment ORDER BY sequence"):
            self._segments.append((sequence, at_ms, list(self._replay(sequence, entries))))
            self._sequence = sequence + 1

    def _replay(self, sequence: int, entries: bytes) -> Iterator[bytes]:
        for key, place, hop, offset in ENTRY.iter_unpack(entries):
            if offset == FREED:
                self._taken.pop(key, None)
            else:
                self._taken[key] = (place, hop, offset, sequence)
                yield key


class Segment:
    """What one flush writes."""

    __slots__ = ("at_ms", "entries", "forget", "places", "sequence")

    def __init__(
        self, sequence: int, at_ms: int, entries: bytes, places: list[tuple[int, str, int]], forget: int | None
    ) -> None:
        self.sequence = sequence
        self.at_ms = at_ms
        self.entries = entries
        self.places = places
        self.forget = forget


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        raise LogUnusable(f"{path}: cannot be opened: {error}") from error
    try:
        application, schema = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if empty and application == 0:
            db.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA};" + TABLES)
        elif application != APPLICATION_ID:
            raise LogUnusable(f"{path}: not a surgetank dedupe file; move it away or set another `state`")
        elif schema != SCHEMA:
            raise LogUnusable(f"{path}: dedupe file of version {schema}; this engine reads version {SCHEMA}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        db.close()
        raise LogUnusable(f"{path}: not a usable dedupe file: {error}") from error
    except LogUnusable:
        db.close()
        raise
    return db
