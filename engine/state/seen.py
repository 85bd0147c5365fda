"""The ids seen: (tenant, channel, id) -> where the send first stood, for the dedupe window.

A table in memory (ext.seen) answers at once; a SQLite file makes it outlive the process. What was claimed or freed
since the last ``take`` goes into one row (a *segment*: packed entries), so a flush costs one small transaction however
many ids it holds, and a segment past the window is one delete. Callers flush before they commit the offsets the claims
belong to.

Cost: a claim about 0.2 us (0.1 us in ext.intake), 86..140 bytes of memory an id; at most ``max_ids`` are kept, the
oldest go first (counted: the window is then shorter than configured). An id of a send still open is never forgotten.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from engine.send import Origin
from engine.state.file import open_file
from ext.seen import SeenTable
from ext.sends import dedupe_scope

APPLICATION_ID = 0x53544453  # "STDS"
SCHEMA = 2
TABLES = """
CREATE TABLE secret (key BLOB NOT NULL);
INSERT INTO secret VALUES (randomblob(16));
CREATE TABLE place (number INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL);
CREATE TABLE segment (sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, entries BLOB NOT NULL);
"""


class Seen:
    """One process's dedupe table. Not for concurrent use, except that ``write`` may run on another thread."""

    def __init__(self, path: Path, window_ms: int, max_ids: int) -> None:
        self.window_ms = window_ms
        self.max_ids = max_ids
        self.shortened = 0  # ids forgotten before their window was over, because of max_ids
        self._segments: deque[tuple[int, int, bytes]] = deque()  # (sequence, at_ms, entries), oldest first
        self._places: dict[tuple[str, int], int] = {}
        self._names: list[tuple[str, int]] = []
        self._sequence = 0
        self._written_places = 0
        self._db = open_file(path, APPLICATION_ID, SCHEMA, TABLES, "dedupe")
        (secret,) = self._db.execute("SELECT key FROM secret").fetchone()
        self.table = SeenTable(secret)
        self._load()

    def __len__(self) -> int:
        return len(self.table)

    def key_of(self, tenant: str, channel: str, id: str) -> bytes:
        """The id's 128-bit key."""
        return self.table.key_of(dedupe_scope(tenant, channel), id.encode())

    def claim(self, key: bytes, origin: Origin, hop: int = 0) -> Origin | None:
        """Take ``key`` for ``origin``; None when it is ours now (or was: a redelivery), else the first origin: the same
        one when the send has moved on meanwhile, to a later hop."""
        taken = self.table.claim(key, self.place(origin.topic, origin.partition), hop, origin.offset)
        if taken is None:
            return None
        place, _, offset = taken
        return Origin(*self._names[place], offset)

    def claim_move(self, key: bytes, place: Origin, hop: int, takes_over: bool) -> bool:
        """Whether the record at ``place``, moved ``hop`` times, is the one to go on of those with this key.

        No: one of as many moves, or more, has come before. Those of fewer it ``takes_over``: it is what became of them.
        So the furthest record is never given up for another.
        """
        number = self.place(place.topic, place.partition)
        taken = self.table.claim(key, number, hop, place.offset)
        if taken is None:
            return True
        held_number, held_hop, held_offset = taken
        if held_hop >= hop or not takes_over:
            return False
        self.table.free(key, held_number, held_offset)
        return self.table.claim(key, number, hop, place.offset) is None

    def free(self, key: bytes, origin: Origin) -> None:
        """Give the id back: its send ended with nobody accepted. Does nothing when another origin holds it."""
        self.table.free(key, self.place(origin.topic, origin.partition), origin.offset)

    def place(self, topic: str, partition: int) -> int:
        """The number that stands for the partition in the table."""
        number = self._places.get((topic, partition))
        if number is None:
            number = self._places[topic, partition] = len(self._names)
            self._names.append((topic, partition))
        return number

    def take(self, now_ms: int, oldest_open_ms: int | None) -> Segment | None:
        """What must be written now, with what may be forgotten; hand it to ``write``. None: nothing to do."""
        sequence = self._sequence
        entries = self.table.take()
        if entries:
            self._sequence += 1
            self._segments.append((sequence, now_ms, entries))
        forget = self._evict(now_ms, now_ms if oldest_open_ms is None else oldest_open_ms)
        if not entries and forget is None:
            return None
        places = [(n, *self._names[n]) for n in range(self._written_places, len(self._names))]
        self._written_places = len(self._names)
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
            sequence, at_ms, entries = self._segments[0]
            expired = at_ms < now_ms - self.window_ms
            if not expired and len(self.table) <= self.max_ids:
                break
            self._segments.popleft()
            forgotten = self.table.forget(sequence, entries)
            self.shortened += 0 if expired else forgotten
            last = sequence
        return last

    def _load(self) -> None:
        for number, topic, partition in self._db.execute("SELECT number, topic, partition FROM place ORDER BY number"):
            self._places[topic, partition] = number
            self._names.append((topic, partition))
        self._written_places = len(self._names)
        for sequence, at_ms, entries in self._db.execute("SELECT * FROM segment ORDER BY sequence"):
            self._segments.append((sequence, at_ms, entries))
            self.table.replay(sequence, entries)
            self._sequence = sequence + 1


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
