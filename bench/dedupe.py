"""What it costs to remember the ids seen: the engine's table in memory with its log in SQLite, beside SQLite, LMDB and
RocksDB used as such a table.

``held`` ids are there; then ``ids`` new ones are claimed, each asked about first, and every 10,000 made durable (what a
worker claims between two commits at 50,000 sends a second); then as many old ones are asked about. Each store in a
process of its own, in turns; figures are medians of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import lmdb
from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from bench import stack
from engine.send import Origin
from engine.state.seen import Seen

FLUSH = 10_000  # claims that become durable together
DAY_MS = 86_400_000
MAP_BYTES = 64 << 30  # LMDB wants to know the end of its file: address space, not disk


class Store(Protocol):
    """Ids seen."""

    def claim(self, key: bytes, number: int) -> bool:
        """True: it is new, and remembered now."""

    def flush(self) -> None:
        """All claims so far are on disk when this returns."""

    def close(self) -> None:
        """Done."""


class Table:
    """The engine's: ext.seen, with segments in SQLite."""

    def __init__(self, folder: Path) -> None:
        self._seen = Seen(folder / "seen.db", DAY_MS, 1 << 40)

    def claim(self, key: bytes, number: int) -> bool:
        return self._seen.claim(key, Origin("surgetank.basic", 0, number)) is None

    def flush(self) -> None:
        segment = self._seen.take(1, None)
        if segment is not None:
            self._seen.write(segment)

    def close(self) -> None:
        self._seen.close()


class Sqlite:
    """A table without rowids, a transaction a flush, each on disk when it ends."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "ids.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA cache_size = -262144")  # 256 MiB
        self._db.execute("CREATE TABLE IF NOT EXISTS id (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def claim(self, key: bytes, number: int) -> bool:
        return self._db.execute("INSERT OR IGNORE INTO id VALUES (?, ?)", (key, number)).rowcount == 1

    def flush(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.execute("COMMIT")
        self._db.close()


class Lmdb:
    """A write transaction a flush."""

    def __init__(self, folder: Path) -> None:
        self._environment = lmdb.open(str(folder / "lmdb"), map_size=MAP_BYTES)
        self._transaction = self._environment.begin(write=True)

    def claim(self, key: bytes, number: int) -> bool:
        return bool(self._transaction.put(key, number.to_bytes(16, "little"), overwrite=False))

    def flush(self) -> None:
        self._transaction.commit()
        self._transaction = self._environment.begin(write=True)

    def close(self) -> None:
        self._transaction.commit()
        self._environment.close()


class Rocks:
    """A batch a flush, synced; what is in the batch is known beside it."""

    def __init__(self, folder: Path) -> None:
        self._db = Rdict(str(folder / "rocks"), Options(raw_mode=True))
        self._synced = WriteOptions()
        self._synced.sync = True
        self._new: dict[bytes, bytes] = {}

    def claim(self, key: bytes, number: int) -> bool:
        if key in self._new or self._db.get(key) is not None:
            return False
        self._new[key] = number.to_bytes(16, "little")
        return True

    def flush(self) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in self._new.items():
            batch.put(key, value)
        self._db.write(batch, self._synced)
        self._new.clear()

    def close(self) -> None:
        self.flush()
        self._db.close()


STORES: dict[str, Callable[[Path], Store]] = {"table": Table, "sqlite": Sqlite, "lmdb": Lmdb, "rocksdb": Rocks}


def keys(first: int, last: int) -> Iterator[bytes]:
    """Keys as the engine's are: 16 bytes without an order."""
    return (blake2b(number.to_bytes(8, "little"), digest_size=16).digest() for number in range(first, last))


def measure(name: str, held: int, ids: int) -> dict[str, float]:
    """One run of one store; runs in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="surgetank-dedupe-") as made:
        folder = Path(made)
        before = _resident()
        store = STORES[name](folder)
        _claim(store, list(keys(0, held)), 0)
        new = list(keys(held, held + ids))
        took = _claim(store, new, held)
        grown = _resident() - before
        started = time.perf_counter()
        known = sum(not store.claim(key, 0) for key in new)
        asked = time.perf_counter() - started
        if known != len(new):
            raise RuntimeError(f"{name} forgot {len(new) - known} of {len(new)} ids")
        store.close()
        size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
        started = time.perf_counter()
        store = STORES[name](folder)
        known = sum(not store.claim(key, 0) for key in new[:1])
        opened = time.perf_counter() - started
        store.close()
    if known != 1:
        raise RuntimeError(f"{name} forgot its ids over a restart")
    return {
        "claims_per_s": ids / took,
        "claim_us": took / ids * 1e6,
        "ask_us": asked / ids * 1e6,
        "open_s": opened,
        "disk_bytes_per_id": size / (held + ids),
        "rss_bytes_per_id": grown / (held + ids),
    }


def _claim(store: Store, new: list[bytes], first: int) -> float:
    started = time.perf_counter()
    for number, key in enumerate(new):
        if not store.claim(key, first + number):
            raise RuntimeError("a new id was taken for an old one")
        if number % FLUSH == FLUSH - 1:
            store.flush()
    store.flush()
    return time.perf_counter() - started


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str]) -> int:
    """``python -m bench dedupe``."""
    parser = argparse.ArgumentParser(prog="python -m bench dedupe", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--held", type=int, default=2_000_000, help="ids that are there (default: %(default)s)")
    parser.add_argument("--ids", type=int, default=500_000, help="ids claimed (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args(argv)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STORES}
    for _ in range(options.runs):
        for name, took in runs.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                took.append(pool.submit(measure, name, options.held, options.ids).result())
            print(f"{name:8} {took[-1]['claims_per_s']:12,.0f} claims/s, {took[-1]['ask_us']:.2f} us a question")
    figures = {
        name: {key: _median([one[key] for one in took]) for key in took[0]} for name, took in runs.items()
    }  # fmt: skip
    result = {"held": options.held, "ids": options.ids, "stores": figures, "machine": stack.machine()}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _median(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}
