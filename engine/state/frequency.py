"""How often each recipient of a channel got a message, in a file mapped into memory (shell).

One table a rule (ext.frequency), of the size it was made with. A process that ends, however it does, leaves what it
counted to the next; a machine that loses its power may lose the last seconds. A table has its place on the disk from
the start, and takes memory as it is touched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import NamedTuple

from engine.errors import LogUnusable
from engine.state.mapped import map_file
from ext.frequency import SET_BYTES, Frequency
from ext.seen import siphash

HEADER = 65_536
MAGIC = b"STFREQ\x00\x01"  # the last byte: version
SECRET = slice(8, 24)
TABLE = struct.Struct("<QQQ")  # per ns, offset, bytes; zeros: no more tables
TABLES = range(24, 24 + 64 * TABLE.size, TABLE.size)


class Table(NamedTuple):
    """Where one rule's counts stand."""

    per_ns: int
    offset: int
    size: int


class FrequencyFile:
    """One channel's. Rules are told apart by their length: another number keeps what was counted."""

    def __init__(self, path: Path, rules: Sequence[tuple[int, int]], size_bytes: int, caseless: bool = False) -> None:
        """``rules``: (number, per_ns). ``size_bytes`` of memory and disk for each that is not in the file yet;
        ``caseless`` as in Frequency. Raises LogUnusable."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                self._header = _header(path, file.fileno())
                tables = [self._table(per_ns, size_bytes) for _, per_ns in rules]
                self._maps = [map_file(file.fileno(), table.size, table.offset) for table in tables]
        except OSError as error:
            raise LogUnusable(f"{path}: cannot be used: {error}") from error
        pairs = zip(self._maps, rules, strict=True)
        self.counts = Frequency([(memory, number, per_ns) for memory, (number, per_ns) in pairs], caseless)

    def key(self, account: str) -> bytes:
        """What stands for an account in ``counts``."""
        return siphash(self._header[SECRET], account.encode())

    def close(self) -> None:
        """``counts`` must not be used any more."""
        del self.counts
        for memory in (*self._maps, self._header):
            memory.close()

    def _table(self, per_ns: int, size_bytes: int) -> Table:
        ends = HEADER
        for at in TABLES:
            table = Table(*TABLE.unpack_from(self._header, at))
            if table.per_ns == per_ns:
                return table
            if table.per_ns == 0:
                table = Table(per_ns, ends, -(-max(size_bytes, SET_BYTES) // PAGESIZE) * PAGESIZE)
                TABLE.pack_into(self._header, at, *table)
                return table
            ends = table.offset + table.size
        raise OSError("64 rules of different lengths were in it; move it away")


def _header(path: Path, file: int) -> mmap:
    size = os.fstat(file).st_size
    if 0 < size < HEADER:
        raise LogUnusable(f"{path}: not a surgetank frequency file; move it away")
    header = map_file(file, HEADER)
    if not any(header[: len(MAGIC)]):  # new, or nobody came further than here
        header[SECRET] = os.urandom(16)
        header[: len(MAGIC)] = MAGIC
    elif header[: len(MAGIC)] != MAGIC:
        header.close()
        raise LogUnusable(f"{path}: not a surgetank frequency file of version 1; move it away")
    return header
