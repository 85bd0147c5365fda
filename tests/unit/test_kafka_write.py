"""A producer that is given up while a batch of it is under way."""

from __future__ import annotations

import asyncio

import pytest

from engine.logs import kafka_write
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
