"""What commits say is done, read as the next owner of a partition would read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine import wire_map
from engine.logs import Partition, Position
from engine.wire_map import Pointer
from ext.ledger import Ledger
from tests.sim.broker import Broker
from tests.sim.world import Process

PROGRESS = "surgetank.progress"


class Place(NamedTuple):
    """A record on the log, and where in its `to` somebody stands."""

    partition: Partition
    offset: int
    position: int


class Commit(NamedTuple):
    """One that took effect."""

    at_ns: int
    process: Process
    ledger: Ledger


class Committed:
    """Every commit of a story."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._commits: dict[Partition, list[Commit]] = {}

    def add(self, positions: Mapping[Partition, Position], process: Process, at_ns: int) -> None:
        """One takes effect."""
        for partition, position in positions.items():
            commit = Commit(at_ns, process, self._ledger(partition, position))
            self._commits.setdefault(partition, []).append(commit)

    def first(self, place: Place) -> Commit | None:
        """The first that covers it."""
        for commit in self._commits.get(place.partition, ()):
            ledger = commit.ledger
            if place.offset < ledger.position or ledger.is_done(place.offset):
                return commit
            if place.position in ledger.settled(place.offset):
                return commit
        return None

    def _ledger(self, partition: Partition, position: Position) -> Ledger:
        ledger = Ledger(partition, position.offset, 1)
        said = wire_map.decode_text(position.metadata, position.offset)
        if isinstance(said, Pointer):
            entry = self._broker.entries(Partition(PROGRESS, said.partition))[said.offset]
            assert entry is not None, f"a commit of {partition} points to nothing"
            said = wire_map.decode_record(entry.value or b"", position.offset, said.crc)
        if said is not None:
            ledger.restore(said.stamp_ms, said.codec, said.payload)
        return ledger
