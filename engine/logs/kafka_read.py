"""Members of Kafka groups.

In: assignments by the group's coordinator. Out: chunks. Invariants: no record is
handed out before the listener's ``assigned`` has returned, nor one below the position it was told; each offset at most
once in an epoch; what a poll held when the assignment changed is dropped and read again.
Never: resets a position silently. Where a group starts, and every jump over what is no longer there, is said.

aiokafka 0.14, read in its source: its fetcher may return records while ``on_partitions_assigned`` still runs, and
``getmany`` ignores its timeout while the group rebalances; no heartbeats leave while that callback runs, so what it
does is bounded; the sticky assignor keeps one member's state in class attributes, hence a class per consumer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import OffsetAndMetadata

from engine.errors import LogUnavailable, RecordRefused, StaleEpoch
from engine.logs import AssignmentListener, Chunk, Partition, Position
from engine.logs.checks import check_metadata
from engine.logs.kafka_source import CONSUMER, HEARTBEAT_MS, Source, say_gone

if TYPE_CHECKING:
    from engine.logs.kafka import KafkaLog

LOGGER = logging.getLogger(__name__)
JOIN_S = 90.0  # a group that rebalances may take rebalance_timeout_ms
ASSIGN_S = 20.0  # to learn positions; less than the session timeout, as no heartbeats leave meanwhile
ERRORS_IN_A_ROW = 3  # then the consumer is made anew


class _Callbacks(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        await self._consumer.lose()

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        await self._consumer.gain([Partition(*place) for place in sorted(assigned)])


class KafkaConsumer:
    """A member of a group. See ``engine.logs.Consumer``."""

    def __init__(self, log: KafkaLog, group: str, topics: Sequence[str], listener: AssignmentListener) -> None:
        self._log = log
        self._group = group
        self._topics = tuple(topics)
        self._listener = listener
        self._source: Source | None = None
        self._epoch = 0
        self._owned = asyncio.Event()  # set while the assignment is in effect
        self._changing = asyncio.Lock()
        self._errors = 0
        self._failed: Exception | None = None
        self._paused = False
        self._closing = False

    async def start(self) -> None:
        """Join the group; returns when it has an assignment."""
        if self._closing:
            raise LogUnavailable(f"group {self._group}: this member has left")
        assignor = type("Sticky", (StickyPartitionAssignor,), {"member_assignment": None})
        kafka = AIOKafkaConsumer(
            group_id=self._group,
            group_instance_id=self._log.member,
            partition_assignment_strategy=(assignor,),
            **self._log.client,
            **CONSUMER | self._beat(),
        )
        kafka.subscribe(self._topics, listener=_Callbacks(self))
        self._source = source = Source(kafka)
        try:
            async with asyncio.timeout(JOIN_S):
                await kafka.start()
        except (KafkaError, OSError, TimeoutError) as error:
            self._source = None
            await source.stop()
            raise LogUnavailable(f"{self._log.bootstrap}: group {self._group} cannot be joined: {error!r}") from error
        except BaseException:
            self._source = None
            await source.stop()
            raise
        self._log.opened(self)

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        """See Consumer.poll."""
        if max_records < 1:
            raise ValueError(f"max_records is {max_records}: at least 1")
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            chunks = await self._poll_once(max_records, deadline)
            if chunks or asyncio.get_running_loop().time() >= deadline:
                return chunks

    async def commit(self, positions: Mapping[Partition, Position], timeout_s: float = 5.0) -> None:
        """See Consumer.commit."""
        check_metadata(positions, self._log.metadata_limit)
        source = self._source
        strange = [partition for partition in positions if source is None or partition not in source.nexts]
        if source is None or strange:
            raise StaleEpoch(f"group {self._group} does not own {_spoken(strange)} here")
        try:
            async with asyncio.timeout(timeout_s):
                await source.kafka.commit(_offsets(positions))
        except OffsetMetadataTooLargeError as error:
            raise RecordRefused(f"{self._log.bootstrap}: group {self._group}: {error!r}") from error
        except (CommitFailedError, IllegalStateError) as error:
            raise StaleEpoch(f"group {self._group} has rebalanced: {error}") from error
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"{self._log.bootstrap}: group {self._group} cannot commit: {error!r}") from error

    def pause(self, partitions: Collection[Partition] | None = None) -> None:
        """Until ``resume`` polls give nothing; aiokafka drops what it had fetched ahead, and fetches it again later."""
        self._paused = self._paused or partitions is None
        if self._source is not None:
            assigned = self._source.kafka.assignment()
            self._source.kafka.pause(*(place for place in assigned if partitions is None or place in partitions))

    def resume(self, partitions: Collection[Partition] | None = None) -> None:
        """Records again."""
        self._paused = self._paused and partitions is not None
        if self._source is not None and not self._paused:
            paused = self._source.kafka.paused()
            self._source.kafka.resume(*(place for place in paused if partitions is None or place in partitions))

    def lag(self) -> dict[Partition, int]:
        """Records not yet polled, as last seen."""
        return self._source.lag() if self._source is not None else {}

    async def renew(self) -> None:
        """See Consumer.renew."""
        LOGGER.warning("group %s: the consumer is stuck, and made anew", self._group)
        await self._leave()

    async def close(self) -> None:
        """Leave the group."""
        self._closing = True
        await self._leave()
        self._log.closed(self)

    async def gain(self, partitions: Sequence[Partition]) -> None:
        """aiokafka's callback: these are ours."""
        async with self._changing:
            source = self._source
            if self._closing or source is None:
                return
            try:
                await self._gain(source, partitions)
            except Exception as error:  # noqa: BLE001 - aiokafka would only log it; the next poll raises it
                self._failed = error

    async def lose(self) -> None:
        """aiokafka's callback, and ours on leaving: nothing is ours any more once the listener has been told."""
        self._owned.clear()
        async with self._changing:
            source = self._source
            if source is None or not source.nexts:
                return
            try:
                await self._listener.revoked(tuple(source.nexts))
            except Exception as error:  # noqa: BLE001 - as above
                self._failed = error
            finally:
                source.nexts = {}

    async def _gain(self, source: Source, partitions: Sequence[Partition]) -> None:
        self._epoch += 1
        async with asyncio.timeout(ASSIGN_S):
            positions = await self._positions(source, partitions)
        if self._paused:
            source.kafka.pause(*(TopicPartition(*partition) for partition in partitions))
        if positions:
            await self._listener.assigned(positions, self._epoch)
        # Last: whatever was fetched meanwhile is thrown away.
        source.seek({partition: position.offset for partition, position in positions.items()})
        self._owned.set()

    async def _positions(self, source: Source, partitions: Sequence[Partition]) -> dict[Partition, Position]:
        committed = await self._log.committed_of(self._group, partitions)
        first, end = await source.bounds(partitions)
        source.ends.update(end)
        fresh = [partition for partition in partitions if partition not in committed]
        if fresh:
            start = end if self._log.first_start == "latest" else first
            begun = {partition: Position(start[partition]) for partition in fresh}
            # At once: a crash before the first commit must not move the start.
            await source.kafka.commit(_offsets(begun))
            LOGGER.info("group %s starts at the %s of %s", self._group, self._log.first_start, _spoken(fresh))
            committed.update(begun)
        for partition, position in committed.items():
            if not first[partition] <= position.offset <= end[partition]:
                say_gone(partition, position.offset, first[partition])
                committed[partition] = Position(first[partition])
        return committed

    async def _poll_once(self, max_records: int, deadline: float) -> list[Chunk]:
        source = await self._sound()
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        if not self._owned.is_set():
            await asyncio.wait({waiting := asyncio.create_task(self._owned.wait())}, timeout=left)
            waiting.cancel()
            return []
        epoch = self._epoch
        try:
            found = await source.kafka.getmany(timeout_ms=int(left * 1_000), max_records=max_records)
            self._errors = 0
        except OffsetOutOfRangeError as error:
            await self._jump(source, error.args[0])
            return []
        except (KafkaError, ConsumerStoppedError) as error:
            self._errors += 1
            raise LogUnavailable(f"{self._log.bootstrap}: group {self._group}: {error!r}") from error
        if epoch == self._epoch and self._owned.is_set():
            return source.chunks(found, epoch)
        if self._owned.is_set():  # came with the assignment's change: read it again under the new one
            places = {Partition(*place) for place in found} & source.nexts.keys()
            source.seek({partition: source.nexts[partition] for partition in places})
        return []

    async def _jump(self, source: Source, lost: Iterable[Any]) -> None:
        mine = [place for place in lost if Partition(*place) in source.nexts]
        try:
            await source.jump(mine)
        except (KafkaError, IllegalStateError) as error:
            raise LogUnavailable(f"{self._log.bootstrap}: group {self._group}: {error!r}") from error

    async def _sound(self) -> Source:
        """The consumer, made anew when it is past help. Raises LogUnavailable, or what the listener raised."""
        if self._closing:
            raise LogUnavailable(f"group {self._group}: this member has left")
        failed, self._failed = self._failed, None
        if failed is not None:
            self._errors = ERRORS_IN_A_ROW
            if isinstance(failed, KafkaError | TimeoutError | LogUnavailable):
                raise LogUnavailable(f"{self._log.bootstrap}: group {self._group}: {failed!r}") from failed
            raise failed
        if self._errors >= ERRORS_IN_A_ROW:
            LOGGER.warning("group %s: the consumer is made anew", self._group)
            await self._leave()
            self._errors = 0
        if self._source is None:
            await self.start()
        assert self._source is not None  # noqa: S101 - for the type checker
        return self._source

    def _beat(self) -> dict[str, int]:
        session = self._log.session_timeout_ms
        return {"session_timeout_ms": session, "heartbeat_interval_ms": min(HEARTBEAT_MS, session // 4)}

    async def _leave(self) -> None:
        await self.lose()
        source, self._source = self._source, None
        if source is not None:
            # aiokafka never says that a member with a name leaves; its partitions would wait for it 30 s.
            source.kafka._coordinator._group_instance_id = None
            await source.stop()


def _offsets(positions: Mapping[Partition, Position]) -> dict[Any, Any]:
    return {TopicPartition(*partition): OffsetAndMetadata(*position) for partition, position in positions.items()}


def _spoken(partitions: Sequence[Partition]) -> str:
    return ", ".join(f"{topic}/{number}" for topic, number in partitions)
