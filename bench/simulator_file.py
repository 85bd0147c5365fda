"""The ledger's file: SQLite, written behind the server's back.

In: the rows added since the last look. Out: tables ``calls`` and ``deliveries`` and the view ``ledger`` that joins
them. Invariant: a row is in the file only together with its call. It never makes a request wait; a kill -9 loses what
was added since the last look (``EVERY_S``), an orderly stop nothing. A file of an earlier run goes on.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from bench.simulator_ledger import CallEntry, Ledger

EVERY_S = 0.2
STEP = 4000  # rows looked up at once on the server's loop: about 5 ms
SCHEMA = 1
TABLES = """
CREATE TABLE calls (call INTEGER PRIMARY KEY, endpoint TEXT, api TEXT, account TEXT, recipients INTEGER,
                    arrived_ns INTEGER, status INTEGER, code INTEGER, reference TEXT, content TEXT);
CREATE TABLE deliveries (recipient TEXT, verdict TEXT, call INTEGER);
CREATE VIEW ledger AS SELECT recipient, endpoint, verdict, arrived_ns, call FROM deliveries JOIN calls USING (call);
"""
INSERT_CALL = "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_ROW = "INSERT INTO deliveries VALUES (?, ?, ?)"

Job = Callable[[sqlite3.Connection], None]


class LedgerFile:
    """One thread that writes. Open it before the ledger: it says where the numbers go on."""

    def __init__(self, path: str) -> None:
        """Raises sqlite3.DatabaseError: not a database; ValueError: one of somebody else's."""
        self.path = path
        self.first = 1 + _prepare(path)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._rows = self._calls = 0
        self._failure: sqlite3.Error | None = None
        self._thread = Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def look(self, ledger: Ledger, most: int = STEP) -> bool:
        """Hand over what is new, about ``most`` rows of it; whether that was all. Raises sqlite3.Error: disk full."""
        if self._failure is not None:
            raise self._failure
        calls = list(ledger.call_entries(self._calls, self._calls + most))
        rows = [(e.recipient, e.verdict, e.call) for e in ledger.entries(self._rows, self._rows + most)]
        self._calls += len(calls)
        last = ledger.first + self._calls
        rows = [row for row in rows if row[2] < last]
        self._rows += len(rows)
        if calls or rows:
            self._jobs.put(lambda db: _write(db, calls, rows))
        return self._calls == ledger.calls and self._rows == ledger.rows

    def clear(self) -> None:
        """Forget everything, the rows handed over too."""
        self._rows = self._calls = 0
        self._jobs.put(_clear)

    async def follow(self, ledger: Callable[[], Ledger]) -> None:
        """Look again and again, until cancelled."""
        while True:  # noqa: ASYNC110 - what is new is gathered, so that a call need not tell
            await asyncio.sleep(EVERY_S if self.look(ledger()) else 0)

    def close(self, ledger: Ledger) -> None:
        """Write the rest; wait for it. Raises sqlite3.Error."""
        while self._failure is None and not self.look(ledger):
            pass
        self._jobs.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("PRAGMA synchronous = NORMAL")
            while (job := self._jobs.get()) is not None:
                try:
                    with db:
                        job(db)
                except sqlite3.Error as error:
                    self._failure = error
                    return


def _prepare(path: str) -> int:
    """Make the tables in a new file. The number of the last call in an old one."""
    with closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA) or (not version and db.execute("SELECT 1 FROM sqlite_master").fetchone()):
            raise ValueError(f"{Path(path).name}: not a simulator's ledger of schema {SCHEMA}")
        if not version:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN;{TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
        return int(db.execute("SELECT coalesce(max(call), 0) FROM calls").fetchone()[0])


def _write(db: sqlite3.Connection, calls: list[CallEntry], rows: list[tuple[str, str, int]]) -> None:
    db.executemany(INSERT_CALL, calls)
    db.executemany(INSERT_ROW, rows)


def _clear(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM calls")
    db.execute("DELETE FROM deliveries")
