"""How many recipients would be delivered again if this process were killed now: counts in a file mapped into memory
(shell).

In: calls begun and ended, commits, partitions lost. Out: per tier how many recipients are in a call (``in_flight``),
how many have ended and no commit covers yet (``settled``), and how many were one or the other when their worker died or
lost their partition (``forfeited``): at most so many were delivered twice.
Invariant: a call's recipients are in the file before the call starts, and leave it with the commit that covers them.
Never: waits for the disk. What is written is the kernel's at once, so a kill leaves it as it was; only a machine that
loses its power may lose the last of it.

    bytes 0..7    magic; its last byte: version
    bytes 8..79   for system, template, basic: in_flight, settled, forfeited, each an int64 in the machine's order
"""

from __future__ import annotations

import os
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import NamedTuple

from engine.counters import Counters
from engine.errors import LogUnusable
from engine.send import Tier
from engine.state.mapped import map_file

MAGIC = b"STFLIG\x00\x01"
IN_FLIGHT, SETTLED, FORFEITED = range(3)
CELLS = 3
CELLS_AT = slice(len(MAGIC), len(MAGIC) + 8 * CELLS * len(Tier))


class Left(NamedTuple):
    """One tier's, in recipients."""

    in_flight: int
    settled: int
    forfeited: int


class Flight:
    """One process's. A change costs about 0.2 us."""

    def __init__(self, path: Path, counters: Counters) -> None:
        """What an earlier life left in flight or settled it has forfeited. Raises LogUnusable."""
        self._counters = counters
        self._map = _mapped(path)
        self._cells = memoryview(self._map)[CELLS_AT].cast("q")
        self._in_flight, self._settled = self._cells[IN_FLIGHT::CELLS], self._cells[SETTLED::CELLS]  # by tier
        self._before = [self.left(tier).forfeited for tier in Tier]
        self.cut_off = sum(self.left(tier).in_flight for tier in Tier)  # recipients in calls when that life ended
        for tier in Tier:
            self._give_up(tier)
            self._in_flight[tier] = self._settled[tier] = 0

    def begin(self, tier: Tier, recipients: int) -> None:
        """A call is about to start."""
        self._in_flight[tier] += recipients

    def end(self, tier: Tier, recipients: int) -> None:
        """It is settled: who ended is counted."""
        self.committed(tier)  # first: a kill between the two counts them twice, not never
        self._in_flight[tier] -= recipients

    def committed(self, tier: Tier) -> None:
        """What is not committed has changed."""
        self._settled[tier] = self._counters.uncommitted(tier)

    def forfeit(self, tier: Tier) -> None:
        """The tier's partitions are another worker's; what no commit covers it will do again."""
        self.committed(tier)
        self._give_up(tier)
        self._counters.committed[tier] = self._counters.ended[tier]  # nor is it ours to commit
        self.committed(tier)

    def forfeited(self, tier: Tier) -> int:
        """What this life found or added: those of all lives sum to what the file says."""
        return self.left(tier).forfeited - self._before[tier]

    def left(self, tier: Tier) -> Left:
        """As it is."""
        return Left(*self._cells[CELLS * tier : CELLS * (tier + 1)])

    def close(self) -> None:
        """Nothing counts any more."""
        for view in (self._in_flight, self._settled, self._cells):
            view.release()
        self._map.close()

    def _give_up(self, tier: Tier) -> None:
        left = self.left(tier)
        self._cells[CELLS * tier + FORFEITED] += left.in_flight + left.settled


def read(path: Path) -> list[Left]:
    """By tier, what a process (living or not) has in its file; zeros while there is none. Raises LogUnusable."""
    if not path.exists():
        return [Left(0, 0, 0) for _ in Tier]
    mapped = _mapped(path)
    with memoryview(mapped)[CELLS_AT].cast("q") as cells:
        left = [Left(*cells[CELLS * tier : CELLS * (tier + 1)]) for tier in Tier]
    mapped.close()
    return left


def _mapped(path: Path) -> mmap:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size not in (0, PAGESIZE):
                raise LogUnusable(f"{path}: not a surgetank flight file; move it away")
            mapped = map_file(file.fileno(), PAGESIZE)
    except OSError as error:
        raise LogUnusable(f"{path}: cannot be used: {error}") from error
    if mapped[: len(MAGIC)] not in (MAGIC, bytes(len(MAGIC))):
        mapped.close()
        raise LogUnusable(f"{path}: not a surgetank flight file of version 1; move it away")
    mapped[: len(MAGIC)] = MAGIC
    return mapped
