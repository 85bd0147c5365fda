"""Which records are being taken in, in a file mapped into memory (shell): what a crash leaves behind, and what of the
crashes before it the next life must know.

An area a tier, little-endian: u32 of 1 while a slice is in hand (written last), u32 partition, i64 first and last
offset, i64 timestamp of the first in ms, u32 bytes of the topic, the topic in 256 bytes. Cost: 2 us a slice.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from engine.errors import LogUnusable
from engine.logs import Chunk
from engine.send import Tier
from engine.state.mapped import map_file
from engine.suspects import Book, InHand, Killer, Place

SLICE = 1_000  # records taken between two turns of the loop, at most; less than engine.suspects remembers
AREA = struct.Struct("<IIqqqI256s")
FLAG = struct.Struct("<I")
FILE_BYTES = AREA.size * len(Tier)
FILE, BOOK = "in_hand", "suspects.json"


class Hands:
    """One process's."""

    def __init__(self, directory: Path) -> None:
        """Raises LogUnusable."""
        path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                self._memory = map_file(file.fileno(), FILE_BYTES)
        except OSError as error:
            raise LogUnusable(f"{path}: cannot be used: {error.strerror}") from error
        for tier in Tier:
            self.release(tier)
        book = read_book(directory)
        self._killers = frozenset(book.killers)
        self._alone = frozenset(book.suspects) | {killer.place for killer in self._killers}

    def slices(self, chunk: Chunk, most: Callable[[], int] = lambda: SLICE) -> Iterator[tuple[int, int]]:
        """Where to cut it: so many records at a time as ``most`` says then (1..SLICE), a suspect alone."""
        end = len(chunk.offsets)
        cuts = [at for at in range(end) if _place(chunk, at) in self._alone] if self._alone else []
        start = 0
        for cut in (*cuts, end):
            while start < cut:
                first, start = start, min(start + most(), cut)
                yield first, start
            if cut < end:
                yield cut, cut + 1
            start = cut + 1

    def is_killer(self, part: Chunk) -> bool:
        """Of one slice."""
        return bool(self._killers) and Killer(_place(part, 0), part.timestamps_ms[0]) in self._killers

    def hold(self, tier: Tier, part: Chunk) -> None:
        """This slice is taken in now."""
        at, offsets, topic = tier * AREA.size, part.offsets, part.topic.encode()
        AREA.pack_into(
            self._memory, at, 0, part.partition, offsets[0], offsets[-1], part.timestamps_ms[0], len(topic), topic
        )
        FLAG.pack_into(self._memory, at, 1)

    def release(self, tier: Tier) -> None:
        """They are taken in."""
        FLAG.pack_into(self._memory, tier * AREA.size, 0)

    def close(self) -> None:
        """Nothing is held any more."""
        self._memory.close()


def _place(chunk: Chunk, at: int) -> Place:
    return Place(chunk.topic, chunk.partition, chunk.offsets[at])


def take_left(directory: Path) -> list[InHand]:
    """What a process that has ended had in hand; only once."""
    try:
        with (directory / FILE).open("r+b") as file:
            memory = file.read()
            file.seek(0)
            file.write(bytes(len(memory)))  # not shorter: its place on the disk stays ours
    except FileNotFoundError:
        return []
    left = []
    for at in range(0, len(memory) - AREA.size + 1, AREA.size):
        held, partition, first, last, timestamp_ms, length, topic = AREA.unpack_from(memory, at)
        if held:
            left.append(InHand(Place(topic[:length].decode(), partition, first), last, timestamp_ms))
    return left


def read_book(directory: Path) -> Book:
    """What is known; nothing where there is no readable file."""
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        return msgspec.json.decode((directory / BOOK).read_bytes(), type=Book)
    return Book()


def write_book(directory: Path, book: Book) -> None:
    """All of it or nothing. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f"{BOOK}.new"
    new.write_bytes(msgspec.json.encode(book))
    new.replace(directory / BOOK)
