"""Readers of whole Kafka topics, without a group."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError, OffsetOutOfRangeError

from engine.errors import LogUnavailable
from engine.logs import Chunk, Partition, Record
from engine.logs.kafka_source import CONSUMER, Source

if TYPE_CHECKING:
    from engine.logs.kafka import KafkaLog

START_S = 20.0
FETCH_S = 10.0
RECORD_MS = 2_000


class KafkaReader:
    """Reads whole topics without a group. See ``engine.logs.Reader``."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._source: Source | None = None

    async def start(self, partitions: Sequence[Partition], from_end: bool, at: Mapping[Partition, int]) -> None:
        """Stand at the beginning or the present end of ``partitions``, or ``at`` a place. Raises LogUnavailable."""
        kafka = AIOKafkaConsumer(**self._log.client, **CONSUMER)
        kafka.assign([TopicPartition(*partition) for partition in partitions])
        source = Source(kafka)
        try:
            async with asyncio.timeout(START_S):
                await kafka.start()
                bounds = await source.bounds(partitions)
                source.seek({one: max(at.get(one, bounds[from_end][one]), bounds[0][one]) for one in partitions})
        except (KafkaError, OSError, TimeoutError) as error:
            await source.stop()
            raise LogUnavailable(f"{self._log.bootstrap}: {error!r}") from error
        except BaseException:
            await source.stop()
            raise
        self._source = source
        self._log.opened(self)

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """See Reader.poll."""
        if max_records < 1:
            raise ValueError(f"max_records is {max_records}: at least 1")
        source = self._open()
        try:
            try:
                found = await source.kafka.getmany(timeout_ms=int(timeout_s * 1_000), max_records=max_records)
                return source.chunks(found, 0)
            except OffsetOutOfRangeError as error:
                await source.jump(error.args[0])
                return []
        except (KafkaError, ConsumerStoppedError) as error:
            raise LogUnavailable(f"{self._log.bootstrap}: {error!r}") from error

    async def at_end(self) -> bool:
        """True when everything that stands in the topics now has been polled."""
        source = self._open()
        try:
            async with asyncio.timeout(START_S):
                _, ends = await source.bounds(source.nexts)
                # Offsets without a record (transaction markers) are passed by the position, not by what was polled.
                places = [await source.kafka.position(TopicPartition(*partition)) for partition in ends]
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"{self._log.bootstrap}: {error!r}") from error
        return all(at >= end for at, end in zip(places, ends.values(), strict=True))

    async def close(self) -> None:
        """Free the connection."""
        source, self._source = self._source, None
        if source is not None:
            await source.stop()
            self._log.closed(self)

    def _open(self) -> Source:
        if self._source is None:
            raise LogUnavailable(f"{self._log.bootstrap}: the reader is closed")
        return self._source


async def fetch(log: KafkaLog, places: Sequence[tuple[Partition, int]]) -> list[Record | None]:
    """See Log.fetch."""
    kafka = AIOKafkaConsumer(**log.client, **CONSUMER)
    source = Source(kafka)
    try:
        async with asyncio.timeout(FETCH_S):
            await kafka.start()
            first, end = await source.bounds({partition for partition, _ in places})
            return [
                await _record(kafka, TopicPartition(*at), offset) if first[at] <= offset < end[at] else None
                for at, offset in places
            ]
    except (KafkaError, OSError, TimeoutError) as error:
        raise LogUnavailable(f"{log.bootstrap}: {error!r}") from error
    finally:
        await source.stop()


async def _record(kafka: Any, place: Any, offset: int) -> Record | None:
    """A record later than that is given where that one was compacted away; nothing at all at the partition's end."""
    kafka.assign([place])
    kafka.seek(place, offset)
    records = (await kafka.getmany(place, timeout_ms=RECORD_MS, max_records=1)).get(place)
    if not records or records.offset != offset:
        return None
    (key,), (value,), (headers,), (stamp_ms,) = records.keys, records.values, records.headers, records.timestamps_ms
    return Record(place.topic, value, key, headers, place.partition, stamp_ms)
