"""Opens a SQLite file of the directory ``state``: ours, of the version we read, durable at every commit."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from engine.errors import LogUnavailable, LogUnusable

PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)


def open_file(path: Path, application_id: int, schema: int, tables: str, what: str) -> sqlite3.Connection:
    """The file, made with ``tables`` when it is not there. Raises LogUnusable saying what it is instead of a ``what``
    file of that schema, or LogUnavailable for what may pass (a full disk). Its transactions take the write lock at
    once and are on disk when they have ended."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        raise LogUnusable(f"{path}: cannot be opened: {error}") from error
    try:
        application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if empty and application == 0:
            ours = f"PRAGMA application_id = {application_id}; PRAGMA user_version = {schema};"
            db.executescript(f"BEGIN; {ours} {tables} COMMIT;")
        elif application != application_id:
            raise LogUnusable(f"{path}: not a surgetank {what} file; move it away or set another `state`")
        elif version != schema:
            raise LogUnusable(f"{path}: {what} file of version {version}; this engine reads version {schema}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        db.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
            raise LogUnavailable(f"{path}: {error}") from error
        raise LogUnusable(f"{path}: not a usable {what} file: {error}") from error
    except LogUnusable:
        db.close()
        raise
    return db
