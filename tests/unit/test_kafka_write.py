"""A producer that is given up while a batch of it is under way."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.codec import lz4_decode
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from engine.logs import kafka_write
from engine.logs.kafka_lz4 import lz4_fast
from engine.logs.kafka_write import KafkaWriter


class Producer:
    """As aiokafka 0.14: its stop waits for batches, and where they were given up meanwhile it raises KeyError before it
    has closed its connections."""

    def __init__(self) -> None:
        self.client = self._message_accumulator = self
        self.closed = False
        self._given_up = asyncio.Event()

    def fail_all(self, error: Exception) -> None:
        self._given_up.set()

    async def stop(self) -> None:
        await self._given_up.wait()
        raise KeyError("batch")

    async def close(self) -> None:
        self.closed = True


async def test_a_producer_given_up_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def compacted(topic: str) -> bool:
        return False

    monkeypatch.setattr(kafka_write, "CLOSE_S", 0.0)
    producer = Producer()
    await KafkaWriter("127.0.0.1:9", {}, compacted)._stop(producer)
    assert producer.closed


def test_batches_are_compressed_in_the_fast_mode() -> None:
    def built(codec: int) -> bytes:
        builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 1 << 20)
        for offset in range(500):
            builder.append(offset, 1_000, None, b"order-%d " % offset * 20, [])
        return bytes(builder.build())

    none, lz4 = 0, 3
    assert built(lz4)[61:] == lz4_fast(built(none)[61:])
    assert lz4_decode(built(lz4)[61:]) == built(none)[61:]
