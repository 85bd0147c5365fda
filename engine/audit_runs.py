"""Rows sorted on disk: what the audit joins is as large as the log, its memory is not.

In: rows with a key, in any order. Out: the rows by key; rows of one key in the order they came.
Invariant: at most ``most_bytes`` of rows (as Python holds them) are in memory, and FAN_IN files open.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

Row = tuple[bytes, bytes]  # key, value
LENGTHS = struct.Struct(">HI")
FAN_IN = 64
BUFFER = 256 << 10
HELD = 170  # bytes a row takes in memory besides what stands in it
BY_KEY = itemgetter(0)


class Runs:
    """``add`` all, then ``rows`` once. ``folder`` is the caller's to remove."""

    def __init__(self, folder: Path, most_bytes: int = 64 << 20) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._rows: list[Row] = []
        self._bytes = 0
        self._runs: list[Path] = []
        self._made = 0

    def add(self, key: bytes, value: bytes) -> None:
        """One row. Raises OSError when the disk is full."""
        self._rows.append((key, value))
        self._bytes += len(key) + len(value) + HELD
        if self._bytes >= self._most_bytes:
            self._spill()

    def rows(self) -> Iterator[Row]:
        """All of them, by key."""
        self._rows.sort(key=BY_KEY)
        return heapq.merge(*map(_read, self._runs), self._rows, key=BY_KEY)

    def _spill(self) -> None:
        self._rows.sort(key=BY_KEY)
        self._runs.append(self._write(self._rows))
        self._rows, self._bytes = [], 0
        if len(self._runs) == FAN_IN:
            merged = self._write(heapq.merge(*map(_read, self._runs), key=BY_KEY))
            for path in self._runs:
                path.unlink()
            self._runs = [merged]

    def _write(self, rows: Iterable[Row]) -> Path:
        self._made += 1
        path = self._folder / f"run-{self._made}"
        with path.open("wb", BUFFER) as file:
            for key, value in rows:
                file.write(LENGTHS.pack(len(key), len(value)))
                file.write(key)
                file.write(value)
        return path


def _read(path: Path) -> Iterator[Row]:
    with path.open("rb", BUFFER) as file:
        while head := file.read(LENGTHS.size):
            key, value = LENGTHS.unpack(head)
            yield file.read(key), file.read(value)
