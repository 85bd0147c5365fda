"""Where sends come from and receipts go to: one protocol, two implementations.

``kafka`` is for production, ``sqlite`` is the embedded one: the same topics, partitions, offsets and groups in one
file. Both pass one contract suite (tests/contract/test_logs.py).

A poll hands over *chunks*: columns, not one object per record. Kafka's are made so that no record ever becomes an
object: they point into the bytes fetched, and what is read of them is made when it is asked for, each time anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Headers = tuple[tuple[str, bytes], ...]


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int


class Position(NamedTuple):
    """A committed position: the next offset to read, and the committer's own note (log.metadata_limit characters)."""

    offset: int
    metadata: str = ""


class Chunk(NamedTuple):
    """A run of records of one partition, as columns of equal length, offsets ascending (gaps are possible)."""

    topic: str
    partition: int
    epoch: int  # the assignment it was read under; work that ends under another epoch is stale
    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]  # None: a tombstone
    headers: Sequence[Headers]

    def part(self, rows: slice) -> Chunk:
        """Some of its records."""
        topic, partition, epoch, offsets, stamps_ms, keys, values, headers = self
        columns = offsets[rows], stamps_ms[rows], keys[rows], values[rows], headers[rows]
        return Chunk(topic, partition, epoch, *columns)


class Record(NamedTuple):
    """One record to append. ``partition`` None: by key, else spread."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must look like. ``retention_ms`` None: the log's default."""

    name: str
    partitions: int = 1
    replication: int = 1
    compacted: bool = False
    retention_ms: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


class TopicDifference(NamedTuple):
    """One thing about a topic that is not as wanted. ``found`` empty: the topic is not there."""

    topic: str
    key: str  # "topic", "partitions", "cleanup.policy", "retention.ms", ...
    wanted: str
    found: str


class AssignmentListener(Protocol):
    """Told when partitions come and go; both calls are awaited before the assignment takes effect."""

    async def assigned(self, positions: Mapping[Partition, Position], epoch: int) -> None:
        """These partitions are ours from ``positions`` on; their chunks carry ``epoch``."""

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """These are taken away; the last chance to commit for them."""


class Consumer(Protocol):
    """One member of one group over some topics. Not for concurrent polls."""

    async def start(self) -> None:
        """Join the group. Raises LogUnavailable when the log does not answer."""

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """At most ``max_records`` records of the partitions owned, or none after about ``timeout_s``.

        May take longer while the group rebalances. Raises LogUnavailable; polling again later may succeed.
        """

    async def commit(self, positions: Mapping[Partition, Position], timeout_s: float = 5.0) -> None:
        """Store positions for the group. Raises LogUnavailable (fate unknown), StaleEpoch (partition lost),
        RecordRefused (a note is longer than the brokers take; others may be stored)."""

    def pause(self, partitions: Collection[Partition] | None = None) -> None:
        """Until ``resume`` a poll returns no records (of these partitions); it still keeps the membership alive."""

    def resume(self, partitions: Collection[Partition] | None = None) -> None:
        """Records again: of all that was paused, or of these partitions."""

    def lag(self) -> dict[Partition, int]:
        """Records not yet polled, per partition owned, as last seen (no I/O)."""

    async def renew(self) -> None:
        """It is stuck: leave the group (``revoked`` is called), and join anew at the next poll; one under way ends."""

    async def close(self) -> None:
        """Leave the group; calls ``revoked`` first."""


class Reader(Protocol):
    """Reads whole topics without a group, from where it was told, in order per partition."""

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """Like Consumer.poll; ``epoch`` is 0."""

    async def at_end(self) -> bool:
        """True when everything that stood in the topics at this call has been polled."""

    async def close(self) -> None:
        """Free the connection."""


class Log(Protocol):
    """One process's access to a log."""

    async def start(self) -> None:
        """Open it. Raises LogUnavailable (try again later) or LogUnusable (never)."""

    async def close(self) -> None:
        """Flush appends, close everything opened through it."""

    async def append(self, records: Sequence[Record]) -> None:
        """Append all; returns when every one is acknowledged (acks=all / committed to disk).

        Per partition the order of ``records`` is kept. Raises LogUnavailable (some may have been written).
        Cost: one round trip or transaction, shared by concurrent callers.
        """

    async def put(self, record: Record) -> tuple[Partition, int]:
        """Append one; returns where it stands. Raises as ``append`` does, and LogUnavailable when that is not known."""

    async def fetch(self, places: Sequence[tuple[Partition, int]]) -> list[Record | None]:
        """The records at exactly these offsets; None where there is none (any more). Raises LogUnavailable."""

    def consumer(self, group: str, topics: Sequence[str], listener: AssignmentListener) -> Consumer:
        """A member of ``group``, not started. One per tier."""

    async def reader(
        self, topics: Sequence[str], *, from_end: bool = False, at: Mapping[Partition, int] | None = None
    ) -> Reader:
        """A reader over all partitions of ``topics``, from the beginning or from the present end; of those in ``at``
        from there, or from the first record that is left behind it."""

    async def trim(self, ends: Mapping[Partition, int]) -> None:
        """Give up the records below these offsets (of the embedded log: those appends that lie below as a whole).

        Raises LogUnavailable, LogUnusable (the cluster refuses).
        """

    async def committed(self, group: str) -> dict[Partition, Position]:
        """The group's committed positions, metadata included."""

    async def check_topics(self, wanted: Sequence[TopicSpec]) -> list[TopicDifference]:
        """What differs from ``wanted``; empty when all is as it should be."""

    async def create_topics(self, wanted: Sequence[TopicSpec]) -> list[str]:
        """Create the missing ones; returns their names. Existing ones are left alone."""
