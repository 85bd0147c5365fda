"""A log in memory that behaves as Kafka does: groups with generations, members that are expelled, positions that only
the present generation commits, answers that do not come.

What is in a ``Broker`` is on disk. ``tests.sim.log`` is how a process reaches it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol
from zlib import crc32

from engine.errors import LogUnavailable, RecordRefused, StaleEpoch
from engine.logs import Chunk, Headers, Partition, Position, Record, TopicDifference, TopicSpec
from engine.logs.checks import check_record

LOGGER = logging.getLogger("engine.logs.sim")
MAX_MESSAGE_BYTES = 10 << 20
SESSION_MS = 10_000
REBALANCE_MS = 10_000


class Entry(NamedTuple):
    """What stands at an offset."""

    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class Topic:
    """Partitions: lists of entries, by offset; None where compaction or trimming has left a hole."""

    spec: TopicSpec
    partitions: list[list[Entry | None]]


@dataclass
class Member:
    """One of a group's."""

    topics: Sequence[str]
    seen_ms: int
    name: str | None = None
    joined: bool = False
    owns: tuple[Partition, ...] = ()


@dataclass
class Group:
    """``since_ms``: when the rebalance under way began."""

    generation: int = 0
    since_ms: int | None = None
    members: dict[int, Member] = field(default_factory=dict)
    positions: dict[Partition, Position] = field(default_factory=dict)


class Ear(Protocol):
    """Somebody who waits for records."""

    def call(self) -> None:
        """There are some."""


class Broker:
    """All state. ``committing`` is told of every commit before it counts: the group, what it says, whose it is."""

    def __init__(self, now_ms: Callable[[], int], chance: random.Random) -> None:
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.ears: dict[Ear, None] = {}  # in the order they came
        self.short_reads = False  # a read may give less than there is
        self.committing: Callable[[str, Mapping[Partition, Position], object], None] = lambda group, positions, who: (
            None
        )
        self.rebalanced: Callable[[str], None] = lambda group: None
        self._now_ms = now_ms
        self._chance = chance
        self._ids = count(1)

    # --- records

    def create(self, wanted: Iterable[TopicSpec]) -> list[str]:
        missing = [spec for spec in wanted if spec.name not in self.topics]
        for spec in missing:
            self.topics[spec.name] = Topic(spec, [[] for _ in range(spec.partitions)])
        return [spec.name for spec in missing]

    def differences(self, wanted: Iterable[TopicSpec]) -> list[TopicDifference]:
        return [found for spec in wanted for found in _differences(spec, self.topics.get(spec.name))]

    def append(self, records: Sequence[Record]) -> list[tuple[Partition, int]]:
        """All or, where one is refused, none."""
        placed = [(self._where(record), record) for record in records]
        now_ms, places = self._now_ms(), []
        for partition, (topic, value, key, headers, _, at_ms) in placed:
            entries = self.topics[topic].partitions[partition.number]
            entries.append(Entry(now_ms if at_ms is None else at_ms, key, value, tuple(headers)))
            places.append((partition, len(entries) - 1))
        for ear in self.ears:
            ear.call()
        return places

    def _where(self, record: Record) -> Partition:
        check_record(record)
        topic = self.topic(record.topic)
        most = int(topic.spec.extra.get("max.message.bytes", MAX_MESSAGE_BYTES))
        if len(record.value or b"") > most:
            raise RecordRefused(f"{record.topic}: {len(record.value or b'')} bytes; at most {most} bytes")
        if topic.spec.compacted and record.key is None:
            raise RecordRefused(f"{record.topic} is compacted: a record needs a key")
        number, parts = record.partition, len(topic.partitions)
        if number is None:
            number = self._chance.randrange(parts) if record.key is None else crc32(record.key) % parts
        if not 0 <= number < parts:
            raise RecordRefused(f"{record.topic} has the partitions 0 to {parts - 1}, not {number}")
        return Partition(record.topic, number)

    def topic(self, name: str) -> Topic:
        if name not in self.topics:
            raise LogUnavailable(f"no topic {name}")
        return self.topics[name]

    def entries(self, partition: Partition) -> list[Entry | None]:
        return self.topic(partition.topic).partitions[partition.number]

    def find(self, partition: Partition, offset: int) -> Record | None:
        entries = self.entries(partition)
        entry = entries[offset] if offset < len(entries) else None
        if entry is None:
            return None
        return Record(partition.topic, entry.value, entry.key, entry.headers, partition.number, entry.timestamp_ms)

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        return [Partition(name, n) for name in topics for n in range(len(self.topic(name).partitions))]

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """The first offset still there and the one after the last."""
        entries = self.entries(partition)
        first = next((at for at, entry in enumerate(entries) if entry is not None), len(entries))
        return first, len(entries)

    def trim(self, ends: Mapping[Partition, int]) -> None:
        for partition, end in ends.items():
            entries = self.entries(partition)
            entries[:end] = [None] * min(end, len(entries))

    def compact(self) -> None:
        """Of every compacted topic keep each key's last record."""
        for topic in self.topics.values():
            for entries in topic.partitions if topic.spec.compacted else ():
                last = {entry.key: at for at, entry in enumerate(entries) if entry is not None}
                for at, entry in enumerate(entries):
                    if entry is not None and last[entry.key] != at:
                        entries[at] = None

    def read(self, nexts: Mapping[Partition, int], most: int, epoch: int) -> list[Chunk]:
        """About ``most`` records from these places on, whole runs, partitions in any order."""
        order = list(nexts)
        self._chance.shuffle(order)
        chunks = []
        for partition in order:
            if most <= 0:
                break
            entries, begin = self.entries(partition), nexts[partition]
            end = min(len(entries), begin + (self._chance.randint(1, most) if self.short_reads else most))
            found = [(at, entry) for at, entry in enumerate(entries[begin:end], begin) if entry is not None]
            if found:
                columns = [list(column) for column in zip(*((at, *entry) for at, entry in found), strict=True)]
                offsets, stamps, keys, values, headers = columns
                chunks.append(Chunk(*partition, epoch, offsets, stamps, keys, values, headers))
                most -= len(found)
        return chunks

    # --- groups

    def join(self, name: str, member: int | None, topics: Sequence[str], called: str | None) -> int:
        """Begin a rebalance, or take part in the one under way; the member's id. Who comes back by name takes the place
        of who he was."""
        group = self._swept(name)
        if member not in group.members:
            for id, one in list(group.members.items()):
                if called is not None and one.name == called:
                    del group.members[id]
            member = next(self._ids)
            group.members[member] = Member(topics, self._now_ms(), called)
        if group.since_ms is None:
            group.since_ms = self._now_ms()
            for one in group.members.values():
                one.joined = False
        group.members[member].joined = True
        self._assign(name)
        return member

    def sync(self, name: str, member: int) -> tuple[int, tuple[Partition, ...]] | None:
        """The member's share; None while others are awaited. Raises StaleEpoch: it was expelled."""
        group = self._swept(name)
        found = self._member(group, member)
        return None if group.since_ms is not None else (group.generation, found.owns)

    def heartbeat(self, name: str, member: int, generation: int) -> bool:
        """False: join again."""
        group = self._swept(name)
        if member not in group.members:
            return False
        group.members[member].seen_ms = self._now_ms()
        return group.since_ms is None and group.generation == generation

    def leave(self, name: str, member: int) -> None:
        self._swept(name)
        self._expel(name, [member])

    def expel(self, name: str) -> None:
        """Whoever is in the group joins again, as when a member comes or goes."""
        group = self._swept(name)
        if group.members and group.since_ms is None:
            group.since_ms = self._now_ms()
            for one in group.members.values():
                one.joined = False

    def positions(
        self, name: str, member: int, generation: int, partitions: Sequence[Partition], first_start: str
    ) -> dict[Partition, Position]:
        """Where a member begins; a group's first start is a commit of its own."""
        group = self._present(name, member, generation)
        fresh = [partition for partition in partitions if partition not in group.positions]
        for partition in fresh:
            group.positions[partition] = Position(self.bounds(partition)[first_start == "latest"])
            LOGGER.info("group %s starts at the %s of %s/%d", name, first_start, *partition)
        return {partition: group.positions[partition] for partition in partitions}

    def commit(
        self, name: str, member: int, generation: int, positions: Mapping[Partition, Position], who: object
    ) -> None:
        group = self._present(name, member, generation)
        self.committing(name, positions, who)
        group.positions.update(positions)

    def back(self) -> None:
        """It was away: nobody is expelled for what he could not say."""
        for group in self.groups.values():
            for member in group.members.values():
                member.seen_ms = self._now_ms()
            if group.since_ms is not None:
                group.since_ms = self._now_ms()

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())

    def _present(self, name: str, member: int, generation: int) -> Group:
        group = self._swept(name)
        self._member(group, member)
        if group.generation != generation:
            raise StaleEpoch(f"group {name} is at generation {group.generation}, not {generation}")
        return group

    def _member(self, group: Group, member: int) -> Member:
        if member not in group.members:
            raise StaleEpoch("this member was expelled")
        return group.members[member]

    def _swept(self, name: str) -> Group:
        group, now_ms = self.group(name), self._now_ms()
        silent = [id for id, member in group.members.items() if now_ms - member.seen_ms > SESSION_MS]
        if group.since_ms is not None and now_ms - group.since_ms > REBALANCE_MS:
            silent = [id for id, member in group.members.items() if id in silent or not member.joined]
        if silent:
            self._expel(name, silent)
        return group

    def _expel(self, name: str, members: Sequence[int]) -> None:
        group = self.group(name)
        gone = [group.members.pop(id) for id in members if id in group.members]
        if gone and group.since_ms is None and group.members:
            group.since_ms = self._now_ms()
            for one in group.members.values():
                one.joined = False
        self._assign(name)

    def _assign(self, name: str) -> None:
        group = self.group(name)
        if group.since_ms is None or not all(member.joined for member in group.members.values()):
            return
        self.rebalanced(name)
        group.generation += 1
        group.since_ms = None
        members = list(group.members.values())
        self._chance.shuffle(members)
        topics = sorted({topic for member in members for topic in member.topics})
        partitions = self.partitions(topics)
        for turn, member in enumerate(members):
            member.owns = tuple(partitions[turn :: len(members)])
            member.seen_ms = self._now_ms()


def _differences(spec: TopicSpec, topic: Topic | None) -> list[TopicDifference]:
    if topic is None:
        return [TopicDifference(spec.name, "topic", "present", "")]
    found = topic.spec
    pairs = [("partitions", spec.partitions, found.partitions), ("cleanup.policy", _policy(spec), _policy(found))]
    if spec.retention_ms is not None:
        pairs.append(("retention.ms", spec.retention_ms, found.retention_ms))
    return [TopicDifference(spec.name, key, str(want), str(have)) for key, want, have in pairs if want != have]


def _policy(spec: TopicSpec) -> str:
    return "compact" if spec.compacted else "delete"
