"""Appends to Kafka: one idempotent producer, and a lane for each partition that is being written to.

In: appends. Out: each returns once the broker has acknowledged all its records (acks=all). Invariant: a lane has one
batch under way, so the order of a partition holds; what arrives meanwhile goes with the next batch, whoever sent it.
Never: goes on with a producer after a failed batch. Its sequence numbers then have a hole and every later batch of the
partition would be refused; fatal errors end its sender task for good. The next append gets a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerClosed, RecordListTooLargeError
from aiokafka.partitioner import murmur2

from engine.errors import EngineError, LogUnavailable, RecordRefused
from engine.logs import Partition, Record
from engine.logs.checks import check_record
from engine.logs.kafka_lz4 import LZ4

KEYLESS_RUN = 64  # records without a key that go to one partition before the next: fewer, larger batches
LOGGER = logging.getLogger(__name__)
BATCH_BYTES = 512 << 10
METADATA_S = 10.0  # to learn a topic's partitions
DELIVERY_S = 60.0  # an idempotent producer retries for ever; this is when its callers are told
CLOSE_S = 10.0
ANY_COUNT = 1 << 30
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class _Ticket:
    """One append, and how many of its records are still open. Its result: where the last of them stands."""

    __slots__ = ("future", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self, records: int, ended: int | EngineError) -> None:
        """So many of its records ended, the last of them at this offset, or with an error."""
        self.left -= records
        if self.future.done():
            return
        if isinstance(ended, EngineError):
            self.future.set_exception(ended)
            self.future.exception()  # the caller may have stopped waiting: not worth a warning
        elif not self.left:
            self.future.set_result(ended)


class _Part(NamedTuple):
    ticket: _Ticket
    records: Sequence[Record]


class _Lane:
    """What waits for one partition."""

    __slots__ = ("most", "number", "task", "topic", "waiting")

    def __init__(self, topic: str, number: int) -> None:
        self.topic = topic
        self.number = number
        self.waiting: deque[_Part] = deque()
        self.most = ANY_COUNT  # records in a batch; smaller after the broker found one too large
        self.task: asyncio.Task[None] | None = None


class KafkaWriter:
    """All appends of one process."""

    def __init__(
        self, bootstrap: str, client: Mapping[str, Any], is_compacted: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._bootstrap = bootstrap
        self._client = client  # what every aiokafka client is made with
        self._is_compacted = is_compacted
        self._keyless: set[str] = set()  # topics known to take records without a key
        self._producer: AIOKafkaProducer | None = None
        self._making = asyncio.Lock()
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._spread = count()
        self._closed = False

    async def start(self) -> None:
        """Connect. Raises LogUnavailable."""
        await self._ready()

    async def close(self) -> None:
        """Wait for what is under way, at most CLOSE_S; what is left then fails."""
        self._closed = True
        lanes = {lane.task for lane in self._lanes.values() if lane.task is not None}
        if lanes:
            await asyncio.wait(lanes, timeout=CLOSE_S)
        if self._producer is not None:
            self._retire(self._producer)
        if self._retiring:
            await asyncio.wait(self._retiring)
        if lanes:
            await asyncio.wait(lanes)  # their batches have failed by now

    async def append(self, records: Sequence[Record]) -> None:
        """See Log.append."""
        if self._closed:
            raise LogUnavailable(f"{self._bootstrap}: the log is closed")
        if not records:
            return
        counts = {topic: await self._partitions(topic) for topic in {record.topic for record in records}}
        parts: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            check_record(record)
            if record.key is None and record.topic not in self._keyless:
                await self._check_keyless(record.topic)
            parts.setdefault((record.topic, self._number(record, counts[record.topic])), []).append(record)
        ticket = _Ticket(len(records))
        for place, part in parts.items():
            self._enqueue(place, _Part(ticket, part))
        await asyncio.shield(ticket.future)

    async def put(self, record: Record) -> tuple[Partition, int]:
        """See Log.put."""
        if self._closed:
            raise LogUnavailable(f"{self._bootstrap}: the log is closed")
        check_record(record)
        number = self._number(record, await self._partitions(record.topic))
        ticket = _Ticket(1)
        self._enqueue((record.topic, number), _Part(ticket, [record]))
        offset = await asyncio.shield(ticket.future)
        if offset < 0:  # written by an earlier try whose answer was lost; the broker does not say where
            raise LogUnavailable(f"{self._bootstrap}: put to {record.topic}/{number}: written, but not known where")
        return Partition(record.topic, number), offset

    async def _check_keyless(self, topic: str) -> None:
        """Asked beforehand: the broker's own refusal cannot be told from an unknown error."""
        if await self._is_compacted(topic):
            raise RecordRefused(f"topic {topic} is compacted: every record needs a key")
        self._keyless.add(topic)

    def _number(self, record: Record, partitions: int) -> int:
        """The same as Kafka's own clients choose for a key; without one a partition in turn, for a run of records."""
        if record.partition is not None:
            if not 0 <= record.partition < partitions:
                raise RecordRefused(
                    f"topic {record.topic} has no partition {record.partition}: it has 0 to {partitions - 1}"
                )
            return record.partition
        if record.key is None:
            return next(self._spread) // KEYLESS_RUN % partitions
        number: int = (murmur2(record.key) & 0x7FFF_FFFF) % partitions
        return number

    async def _partitions(self, topic: str) -> int:
        producer = await self._ready()
        try:
            async with asyncio.timeout(METADATA_S):
                return len(await producer.partitions_for(topic))
        except (TimeoutError, KafkaError) as error:
            raise LogUnavailable(f"{self._bootstrap}: topic {topic} is not there, or no broker answers") from error

    def _enqueue(self, place: tuple[str, int], part: _Part) -> None:
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = _Lane(*place)
        lane.waiting.append(part)
        if lane.task is None:
            lane.task = asyncio.create_task(self._drain(lane))

    async def _drain(self, lane: _Lane) -> None:
        parts: list[_Part] = []
        try:
            while lane.waiting:
                parts = self._fill_empty(lane) if (producer := await self._ready_or_none()) is None else []
                batch = None if producer is None else self._fill(producer.create_batch(), lane, parts)
                self._end(lane, parts, await self._send(lane, batch))
        except Exception as error:
            # The lane's outer edge: whoever waits must not wait for ever.
            LOGGER.exception("append to %s/%d", lane.topic, lane.number)
            for ticket, part in (*parts, *self._fill_empty(lane)):
                ticket.end(len(part), LogUnavailable(f"append to {lane.topic}/{lane.number}: {error!r}"))
        finally:
            lane.task = None

    def _end(self, lane: _Lane, parts: list[_Part], ended: int | EngineError) -> None:
        """``ended``: where the first of the batch stands, or why none does."""
        records = sum(len(part.records) for part in parts)
        if isinstance(ended, RecordRefused) and records > 1:
            # Too large together, under a smaller limit than the usual one: again in halves.
            lane.waiting.extendleft(reversed(parts))
            lane.most = records // 2
            return
        lane.most = min(lane.most * 2, ANY_COUNT)  # a single large one may have been the cause
        passed = 0
        for ticket, part in parts:
            passed += len(part)
            ticket.end(len(part), ended + passed - 1 if isinstance(ended, int) and ended >= 0 else ended)

    def _fill_empty(self, lane: _Lane) -> list[_Part]:
        parts = list(lane.waiting)
        lane.waiting.clear()
        return parts

    def _fill(self, batch: Any, lane: _Lane, parts: list[_Part]) -> Any:
        """Fill the batch with what waits, as much as fits; what went in is noted in ``parts``."""
        left = lane.most
        while lane.waiting and left:
            ticket, records = lane.waiting.popleft()
            parts.append(_Part(ticket, records))  # noted first: it must be found if something breaks
            taken = _fit(batch, records, left)
            if taken < len(records):
                lane.waiting.appendleft(_Part(ticket, records[taken:]))
                parts[-1:] = [_Part(ticket, records[:taken])] if taken else []
                break
            left -= taken
        return batch

    async def _ready_or_none(self) -> AIOKafkaProducer | None:
        try:
            return await self._ready()
        except LogUnavailable:
            return None

    async def _send(self, lane: _Lane, batch: Any) -> int | EngineError:
        """How the batch ended: the offset of its first record (negative: not known), or why it is not written."""
        while batch is not None and (producer := await self._ready_or_none()) is not None:
            try:
                async with asyncio.timeout(DELIVERY_S):
                    written = await (await producer.send_batch(batch, lane.topic, partition=lane.number))
                    offset: int = written.offset
            except ProducerClosed:  # retired by another lane before it took this batch: the next one does
                continue
            except TOO_LARGE as error:
                self._retire(producer)
                return RecordRefused(f"a record for {lane.topic} is larger than the topic takes: {error!r}")
            except (KafkaError, TimeoutError) as error:
                self._retire(producer)
                return LogUnavailable(f"{self._bootstrap}: append to {lane.topic}/{lane.number}: {error!r}")
            return offset
        return LogUnavailable(f"{self._bootstrap}: no broker answers")

    async def _ready(self) -> AIOKafkaProducer:
        """The producer, made when there is none. Raises LogUnavailable."""
        async with self._making:
            if self._producer is None:
                if self._closed:
                    raise LogUnavailable(f"{self._bootstrap}: the log is closed")
                producer = AIOKafkaProducer(
                    **self._client,
                    enable_idempotence=True,
                    acks="all",
                    compression_type=LZ4,
                    max_batch_size=BATCH_BYTES,
                    max_request_size=64 << 20,
                )
                try:
                    await producer.start()
                except (KafkaError, OSError) as error:
                    await producer.stop()
                    raise LogUnavailable(f"{self._bootstrap}: {error}") from error
                self._producer = producer
            return self._producer

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """Never use it again. What others have under way in it ends well or fails by its own deadline."""
        if self._producer is not producer:
            return
        self._producer = None
        task = asyncio.create_task(self._stop(producer))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _stop(self, producer: AIOKafkaProducer) -> None:
        stopping = asyncio.create_task(producer.stop())
        done, _ = await asyncio.wait({stopping}, timeout=CLOSE_S)
        if not done:
            # Its stop waits for batches that it retries for ever; there is no public way to give them up.
            producer._message_accumulator.fail_all(KafkaError("the producer was given up"))
        try:
            await stopping
        except KeyError:  # aiokafka 0.14's way to say that a batch it would send again was given up; it stops halfway
            await producer.client.close()


def _fit(batch: Any, records: Sequence[Record], most: int) -> int:
    """How many of ``records`` went into the batch; its first always does, however large."""
    for index, (_, value, key, headers, _, timestamp_ms) in enumerate(records):
        if index == most or batch.append(timestamp=timestamp_ms, key=key, value=value, headers=list(headers)) is None:
            return index
    return len(records)
