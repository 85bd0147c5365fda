"""One aiokafka consumer, and what it gives as chunks; what consumers and readers of Kafka have in common.

Invariant: no offset below the one sought is handed out, and none twice without a new seek. Never: resets a position
silently; every jump over what is no longer there is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from engine.logs import Chunk, Partition
from engine.logs.kafka_records import as_it_is
from ext.records import Records

LOGGER = logging.getLogger(__name__)
STOP_S = 10.0
SESSION_MS = 30_000
HEARTBEAT_MS = 3_000
CONSUMER = {
    "enable_auto_commit": False,
    "auto_offset_reset": "none",  # where to start is decided here, and said
    "isolation_level": "read_committed",
    "session_timeout_ms": SESSION_MS,
    "rebalance_timeout_ms": 60_000,
    "heartbeat_interval_ms": HEARTBEAT_MS,
    "max_poll_interval_ms": 300_000,
    "value_deserializer": as_it_is,
    "max_poll_records": 500,  # the fastest of those tried: 415k records/s, unbounded 263k
}


class Source:
    """One aiokafka consumer and the next offset to hand out of each of its partitions."""

    def __init__(self, kafka: AIOKafkaConsumer) -> None:
        self.kafka = kafka
        self.nexts: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}

    def seek(self, positions: Mapping[Partition, int]) -> None:
        """Start there."""
        for partition, offset in positions.items():
            self.kafka.seek(TopicPartition(*partition), offset)
        self.nexts.update(positions)

    def chunks(self, found: Mapping[Any, Records], epoch: int) -> list[Chunk]:
        """What getmany gave, as columns."""
        chunks = []
        for (topic, number), records in found.items():
            partition = Partition(topic, number)
            fresh = records.since(self.nexts[partition])
            if fresh:
                columns = fresh.offsets, fresh.timestamps_ms, fresh.keys, fresh.values, fresh.headers
                chunks.append(Chunk(topic, number, epoch, *columns))
                self.nexts[partition] = fresh.offset + 1
        return chunks

    def lag(self) -> dict[Partition, int]:
        """Records not handed out, as last seen."""
        assigned = self.kafka.assignment()
        for partition in self.nexts:
            place = TopicPartition(*partition)
            if place in assigned and (end := self.kafka.highwater(place)) is not None:
                self.ends[partition] = max(end, self.ends.get(partition, 0))
        return {partition: max(0, self.ends.get(partition, at) - at) for partition, at in self.nexts.items()}

    async def bounds(self, partitions: Iterable[Partition]) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """First offsets still there, and those after the last. Raises KafkaError."""
        places = [TopicPartition(*partition) for partition in partitions]
        if not places:
            return {}, {}
        first, end = await asyncio.gather(self.kafka.beginning_offsets(places), self.kafka.end_offsets(places))
        return (
            {Partition(*place): offset for place, offset in first.items()},
            {Partition(*place): offset for place, offset in end.items()},
        )

    async def jump(self, lost: Iterable[Any]) -> None:
        """The broker no longer has these positions: go on at the first record there is."""
        partitions = [Partition(*place) for place in lost]
        first, end = await self.bounds(partitions)
        for partition in partitions:
            say_gone(partition, self.nexts[partition], first[partition])
        self.ends.update(end)
        self.seek(first)

    async def stop(self) -> None:
        """Leave; given STOP_S, as it waits for a broker that may be gone."""
        stopping = asyncio.create_task(self.kafka.stop())
        done, _ = await asyncio.wait({stopping}, timeout=STOP_S)
        if not done:
            stopping.cancel()
            await asyncio.wait({stopping})


def say_gone(partition: Partition, wanted: int, first: int) -> None:
    if first > wanted:
        LOGGER.error(
            "%s/%d: %d records were removed by retention before they were read; going on at offset %d",
            *partition,
            first - wanted,
            first,
        )
    else:
        LOGGER.error("%s/%d ends before offset %d: made anew? Reading it from %d", *partition, wanted, first)
