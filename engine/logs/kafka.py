"""The log on Apache Kafka: production. One consumer and one group per tier; appends through one idempotent producer.

Topics are never created by accident here, only by ``create_topics``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Literal

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, PolicyViolationError, TopicAuthorizationFailedError, for_code

from engine.config import Security
from engine.errors import LogUnavailable, LogUnusable
from engine.logs import AssignmentListener, Consumer, Partition, Position, Reader, Record, TopicDifference, TopicSpec
from engine.logs.checks import MAX_METADATA
from engine.logs.kafka_quiet import quieten
from engine.logs.kafka_read import KafkaConsumer
from engine.logs.kafka_reader import KafkaReader, fetch
from engine.logs.kafka_security import client_keys
from engine.logs.kafka_source import SESSION_MS
from engine.logs.kafka_write import KafkaWriter

ADMIN_S = 15.0
RETRY_S = 0.1
ALREADY_THERE = 36


class KafkaLog:
    """One process's access to a Kafka cluster. See ``engine.logs.Log``."""

    def __init__(
        self,
        bootstrap: str,
        *,
        first_start: Literal["earliest", "latest"] = "earliest",
        security: Security | None = None,
        member: str | None = None,
        metadata_limit: int = MAX_METADATA,
        session_timeout_ms: int = SESSION_MS,
    ) -> None:
        """``member``: our name in every group (static membership); whoever comes back under it within the session
        timeout has its partitions back at once, and the other members notice nothing."""
        self.bootstrap = bootstrap
        self.member = member
        self.metadata_limit = metadata_limit
        self.session_timeout_ms = session_timeout_ms
        self.client = {"bootstrap_servers": bootstrap, **client_keys(security or Security())}
        self.first_start = first_start
        self._writer = KafkaWriter(bootstrap, self.client, self._is_compacted)
        self._admin: AIOKafkaAdminClient | None = None
        self._open: list[KafkaConsumer | KafkaReader] = []

    async def start(self) -> None:
        """Connect. Raises LogUnavailable."""
        quieten()
        admin = AIOKafkaAdminClient(**self.client)
        try:
            await admin.start()
        except (KafkaError, OSError) as error:
            await admin.close()
            raise LogUnavailable(f"{self.bootstrap}: {error}") from error
        self._admin = admin
        try:
            await self._writer.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave every group, finish the appends under way (for at most 10 s), disconnect."""
        for one in tuple(self._open):
            await one.close()
        await self._writer.close()
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.close()

    async def append(self, records: Sequence[Record]) -> None:
        """Append all. Raises LogUnavailable, RecordRefused (in both cases some of them may have been written)."""
        await self._writer.append(records)

    async def put(self, record: Record) -> tuple[Partition, int]:
        """Append one; returns where it stands."""
        return await self._writer.put(record)

    async def fetch(self, places: Sequence[tuple[Partition, int]]) -> list[Record | None]:
        """The records at exactly these offsets. About 3 ms each, and 20 ms for the connection."""
        return await fetch(self, places) if places else []

    def consumer(self, group: str, topics: Sequence[str], listener: AssignmentListener) -> Consumer:
        """A member of ``group``."""
        return KafkaConsumer(self, group, topics, listener)

    async def reader(
        self, topics: Sequence[str], *, from_end: bool = False, at: Mapping[Partition, int] | None = None
    ) -> Reader:
        """A reader over all partitions ``topics`` have now. Raises LogUnavailable when one is not there."""
        found = await self._topics(topics)
        missing = [topic for topic in topics if topic not in found]
        if missing:
            raise LogUnavailable(f"{self.bootstrap}: no topic {', '.join(missing)}")
        partitions = [Partition(topic, number) for topic in topics for number in range(len(found[topic]))]
        reader = KafkaReader(self)
        await reader.start(partitions, from_end, at or {})
        return reader

    async def committed(self, group: str) -> dict[Partition, Position]:
        """The group's committed positions."""
        found = await self._ask(self._client.list_consumer_group_offsets(group))
        if not found:
            # A coordinator that is still loading answers like a group without positions; it names no partition then.
            topics = await self._ask(self._client.list_topics())
            return await self.committed_of(group, [Partition(topics[0], 0)]) if topics else {}
        return _positions(found)

    async def trim(self, ends: Mapping[Partition, int]) -> None:
        """Delete what lies below. Raises LogUnusable when the cluster refuses."""
        below = {TopicPartition(*partition): RecordsToDelete(end) for partition, end in ends.items()}
        try:
            await self._ask(self._client.delete_records(below, timeout_ms=int(ADMIN_S * 1_000)))
        except LogUnavailable as error:
            if isinstance(error.__cause__, (PolicyViolationError, TopicAuthorizationFailedError)):
                raise LogUnusable(f"{self.bootstrap}: records cannot be deleted: {error.__cause__!r}") from error
            raise

    async def check_topics(self, wanted: Sequence[TopicSpec]) -> list[TopicDifference]:
        """What differs from ``wanted``."""
        found = await self._topics([spec.name for spec in wanted])
        configs = await self._configs(list(found))
        differences = []
        for spec in wanted:
            if spec.name in found:
                differences += _differences(spec, found[spec.name], configs[spec.name])
            else:
                differences.append(TopicDifference(spec.name, "topic", "present", ""))
        return differences

    async def create_topics(self, wanted: Sequence[TopicSpec]) -> list[str]:
        """Create the missing ones. Raises LogUnusable when the cluster refuses (replication, permission)."""
        found = await self._topics([spec.name for spec in wanted])
        missing = {spec.name: spec for spec in wanted if spec.name not in found}
        if not missing:
            return []
        new = [NewTopic(spec.name, spec.partitions, spec.replication, None, _config(spec)) for spec in missing.values()]
        answer = await self._ask(self._client.create_topics(new))
        errors = {name: (code, text) for name, code, text in answer.topic_errors}
        for name, (code, text) in errors.items():
            if code not in (0, ALREADY_THERE):
                raise LogUnusable(
                    f"{self.bootstrap}: topic {name} cannot be created: {for_code(code).__name__}: {text}"
                )
        await self._until_there(list(missing))
        return [name for name in missing if not errors[name][0]]

    # What the consumers and readers of this log use.

    async def committed_of(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Position]:
        """What the group committed for ``partitions``; those without a position are left out. Raises LogUnavailable."""
        if not partitions:
            return {}
        places = [TopicPartition(*partition) for partition in partitions]
        async with _within(ADMIN_S, f"{self.bootstrap}: no positions of group {group}"):
            while True:
                with contextlib.suppress(LogUnavailable):
                    found = await self._ask(self._client.list_consumer_group_offsets(group, partitions=places))
                    # The answer's own error (coordinator loading, or moved) is not looked at by aiokafka: such an
                    # answer names no partition, and must not be taken for a group without positions.
                    if all(place in found for place in places):
                        return _positions(found)
                await asyncio.sleep(RETRY_S)

    def opened(self, one: KafkaConsumer | KafkaReader) -> None:
        """It is to be closed with the log."""
        if one not in self._open:
            self._open.append(one)

    def closed(self, one: KafkaConsumer | KafkaReader) -> None:
        """It was closed."""
        if one in self._open:
            self._open.remove(one)

    @property
    def _client(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise LogUnavailable(f"{self.bootstrap}: the log is not open")
        return self._admin

    async def _ask(self, asking: Awaitable[Any]) -> Any:
        """The answer. Raises LogUnavailable."""
        async with _within(ADMIN_S, f"{self.bootstrap}: no answer"):
            try:
                return await asking
            except KafkaError as error:
                raise LogUnavailable(f"{self.bootstrap}: {error!r}") from error

    async def _topics(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Those of ``names`` that are there, with their partitions."""
        there = set(await self._ask(self._client.list_topics()))
        known = [name for name in dict.fromkeys(names) if name in there]
        if not known:
            return {}
        described = await self._ask(self._client.describe_topics(known))
        return {topic["topic"]: topic["partitions"] for topic in described if not topic["error_code"]}

    async def _configs(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        if not topics:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        answers = await self._ask(self._client.describe_configs(resources))
        configs = {}
        for answer in answers:
            for code, _, _, name, entries in answer.resources:
                if code:
                    raise LogUnavailable(f"{self.bootstrap}: settings of {name}: {for_code(code).__name__}")
                configs[name] = {entry[0]: entry[1] for entry in entries}
        return configs

    async def _is_compacted(self, topic: str) -> bool:
        configs = await self._configs([topic])
        return "compact" in configs[topic]["cleanup.policy"]

    async def _until_there(self, topics: Sequence[str]) -> None:
        async with _within(ADMIN_S, f"{self.bootstrap}: created but not seen: {', '.join(topics)}"):
            while len(await self._topics(topics)) < len(topics):  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(RETRY_S)


@contextlib.asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise LogUnavailable(f"{what} (within {seconds:g} s)") from error


def _positions(found: Mapping[Any, Any]) -> dict[Partition, Position]:
    return {Partition(*place): Position(at.offset, at.metadata or "") for place, at in found.items() if at.offset >= 0}


def _config(spec: TopicSpec) -> dict[str, str]:
    config = {"cleanup.policy": "compact" if spec.compacted else "delete", **spec.extra}
    if spec.retention_ms is not None:
        config["retention.ms"] = str(spec.retention_ms)
    return config


def _differences(spec: TopicSpec, partitions: Sequence[Any], config: Mapping[str, str]) -> list[TopicDifference]:
    found = {"partitions": str(len(partitions)), **config}
    wanted = {"partitions": str(spec.partitions), **_config(spec)}
    differences = [
        TopicDifference(spec.name, key, value, found.get(key, ""))
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    replicas = min(len(partition["replicas"]) for partition in partitions)
    if replicas < spec.replication:
        differences.append(TopicDifference(spec.name, "replication", str(spec.replication), str(replicas)))
    return differences
