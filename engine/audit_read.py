"""Reads what the audit joins from the log (shell): inputs, later, dead and receipts, whole, into sorted runs.

In: a log, its configuration. Out: rows by origin; how far each topic was read; counts of what was read.
Invariant: the groups' positions are taken before anything is read, and receipts are read last, so that whatever a group
had committed has all that was told of it among the rows, though the engine goes on meanwhile.
Never: creates a topic, joins a group, commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from engine import audit_rows as rows
from engine.audit import Audit, Origin
from engine.audit_runs import Runs
from engine.config import Config, later_topics, tier_policy
from engine.logs import Chunk, Log, Partition, TopicSpec
from engine.send import Tier

POLL_RECORDS, POLL_S = 5_000, 0.2
Progress = Callable[[str, int], None]


class Reading:
    """One audit's reading. ``run``, then ``judge``."""

    def __init__(self, log: Log, config: Config, runs: Runs, progress: Progress) -> None:
        self.read: Counter[str] = Counter()  # records, by kind
        self._log = log
        self._config = config
        self._runs = runs
        self._progress = progress
        self._numbers: dict[str, int] = {}  # topic -> its place in the key
        self._tiers: dict[str, str] = {}  # topic -> tier, of inputs and later
        self._inputs: set[str] = set()
        self._extent: dict[Partition, tuple[int, int]] = {}  # of what was read: first offset and the one after the last
        self._strays: list[tuple[Origin, str, str]] = []  # where, tier, why
        self._settled: dict[Partition, int] = {}

    async def run(self) -> None:
        """Read everything. Raises LogUnavailable."""
        prefix = self._config.log.prefix
        for tier in Tier:
            for topic in tier_policy(self._config, tier).topics:
                self._tiers[topic] = tier.label
                self._inputs.add(topic)
            self._tiers.update(dict.fromkeys(later_topics(self._config, tier), tier.label))
            for group in (f"{prefix}.{tier.label}", f"{prefix}.later.{tier.label}"):
                committed = await self._log.committed(group)
                self._settled.update((partition, position.offset) for partition, position in committed.items())
        await self._each("inputs", sorted(self._inputs), self._input)
        await self._each("later", sorted(self._tiers.keys() - self._inputs), self._input)
        await self._each("dead", [f"{prefix}.dead"], self._dead)
        await self._each("receipts", [f"{prefix}.receipts"], self._receipts)

    def judge(self, audit: Audit) -> None:
        """Every origin, one after the other."""
        dead = f"{self._config.log.prefix}.dead"
        dead_whole = all(first == 0 for place, (first, _) in self._extent.items() if place.topic == dead)
        for where, tier, why in self._strays:
            audit.stray(where, tier, why)
        names = list(self._numbers)
        key, gathered = b"", list[rows.Row]()
        for at, value in self._runs.rows():
            if at != key and gathered:
                self._one(audit, names, key, gathered, dead_whole)
                gathered = []
            key = at
            gathered.append(rows.decode(value))
        if gathered:
            self._one(audit, names, key, gathered, dead_whole)

    def _one(self, audit: Audit, names: Sequence[str], key: bytes, gathered: list[rows.Row], dead_whole: bool) -> None:
        number, partition, offset = rows.KEY.unpack(key)
        topic = names[number]
        first, end = self._extent.get(Partition(topic, partition), (0, 0))
        # Removed since, or appended after it was read; but a topic no configuration names explains nothing.
        gone = topic in self._inputs and not first <= offset < end
        audit.judge((topic, partition, offset), gathered, gone, dead_whole)

    # --- what stands on the topics

    def _input(self, chunk: Chunk) -> None:
        place = Partition(chunk.topic, chunk.partition)
        tier, settled = self._tiers[chunk.topic], self._settled.get(place, 0)
        columns = zip(chunk.offsets, chunk.timestamps_ms, chunk.values, chunk.headers, strict=True)
        for offset, stamp_ms, value, headers in columns:
            moved = rows.history(headers) if headers else None
            origin = moved.origin if moved else (*place, offset)
            self._add(origin, rows.sent(value, tier, offset < settled, stamp_ms, moved))

    def _dead(self, chunk: Chunk) -> None:
        for offset, headers in zip(chunk.offsets, chunk.headers, strict=True):
            said = rows.history(headers)
            if said is None:
                self._strays.append(((chunk.topic, chunk.partition, offset), "", "no origin in its headers"))
            else:
                self._add(said.origin, rows.Kept(said.positions, said.reason))

    def _receipts(self, chunk: Chunk) -> None:
        for offset, value in zip(chunk.offsets, chunk.values, strict=True):
            try:
                for origin, told in rows.told(value):
                    self._add(origin, told)
            except ValueError as error:
                self._strays.append(((chunk.topic, chunk.partition, offset), "", str(error)))

    def _add(self, origin: Origin, row: rows.Row) -> None:
        topic, partition, offset = origin
        number = self._numbers.setdefault(topic, len(self._numbers))
        self._runs.add(rows.KEY.pack(number, partition, offset), rows.encode(row))

    # --- reading

    async def _each(self, kind: str, topics: Sequence[str], take: Callable[[Chunk], None]) -> None:
        async for chunk in self._chunks(topics):
            place = Partition(chunk.topic, chunk.partition)
            first, _ = self._extent.get(place, (chunk.offsets[0], 0))
            self._extent[place] = first, chunk.offsets[-1] + 1
            take(chunk)
            self.read[kind] += len(chunk.offsets)
            self._progress(kind, self.read[kind])

    async def _chunks(self, topics: Sequence[str]) -> AsyncIterator[Chunk]:
        differences = await self._log.check_topics([TopicSpec(topic) for topic in topics])
        missing = {one.topic for one in differences if one.key == "topic"}
        there = [topic for topic in topics if topic not in missing]
        if not there:
            return
        reader = await self._log.reader(there)
        try:
            while not await reader.at_end():
                for chunk in await reader.poll(POLL_RECORDS, POLL_S):
                    yield chunk
        finally:
            await reader.close()
