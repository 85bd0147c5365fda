"""What has been used of each limit, so that a restart does not use it again (shell).

One row says how much is *open*: granted, and maybe used since it was written. The others say what was used until when,
in at most about a thousand slots a limit. What a limit ever used is at most the sum of both, whatever moment the
process ends at; a restart counts what was open as used at that moment. Times are wall time, ms.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.state.file import open_file

APPLICATION_ID = 0x53545553  # "STUS"
SCHEMA = 1
SLOTS = 1_000
TABLES = """
CREATE TABLE counted (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, open INTEGER NOT NULL);
CREATE TABLE used (
    number INTEGER NOT NULL, slot INTEGER NOT NULL, at_ms INTEGER NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (number, slot)
) WITHOUT ROWID;
"""


class Use(NamedTuple):
    """So much was used by then."""

    at_ms: int
    amount: int


class Row(NamedTuple):
    """What is written of one limit: used since the last time, and what is open from now on."""

    limit: int  # of ``number``
    keep_ms: int  # how long a use matters
    used: Use
    open: int


class Uses:
    """The file. Two threads may use it: one that writes, and one that does everything else."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_file(path, APPLICATION_ID, SCHEMA, TABLES, "limits")

    def number(self, name: str) -> int:
        """The limit of that name, made when there is none."""
        with self._lock, self._db:
            self._db.execute("INSERT OR IGNORE INTO counted (name, open) VALUES (?, 0)", (name,))
            (number,) = self._db.execute("SELECT number FROM counted WHERE name = ?", (name,)).fetchone()
        return int(number)

    def load(self, limit: int, since_ms: int) -> tuple[list[Use], int]:
        """Uses after ``since_ms``, oldest first, and what was open."""
        with self._lock:
            rows = self._db.execute(
                "SELECT at_ms, amount FROM used WHERE number = ? AND at_ms > ? ORDER BY slot", (limit, since_ms)
            ).fetchall()
            (open_,) = self._db.execute("SELECT open FROM counted WHERE number = ?", (limit,)).fetchone()
        return [Use(*row) for row in rows], int(open_)

    def everything(self) -> dict[str, tuple[list[Use], int]]:
        """All that is known, by the limits' names: uses, oldest first, and what was open."""
        numbers = self._db.execute("SELECT name, number FROM counted").fetchall()
        return {name: self.load(number, 0) for name, number in numbers}

    def write(self, rows: Sequence[Row]) -> None:
        """All of it in one transaction, on disk when it returns. Raises sqlite3.Error; then nothing is written."""
        with self._lock, self._db:
            for row in rows:
                grain = max(1, row.keep_ms // SLOTS)
                if row.used.amount:
                    self._db.execute(
                        "INSERT INTO used VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE "
                        "SET at_ms = max(at_ms, ?3), amount = amount + ?4",
                        (row.limit, row.used.at_ms // grain, *row.used),
                    )
                self._db.execute(
                    "DELETE FROM used WHERE number = ? AND slot < ?",
                    (row.limit, (row.used.at_ms - row.keep_ms) // grain),
                )
                self._db.execute("UPDATE counted SET open = ? WHERE number = ?", (row.open, row.limit))

    def close(self) -> None:
        """Close the file, once what is being written is."""
        with self._lock:
            self._db.close()
