"""Which of aiokafka's records a consumer gets."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from engine.logs.kafka_records import as_it_is


def records(deserializer: Any) -> list[Any]:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 20)
    for offset in range(3):
        builder.append(offset, 1_000 + offset, b"k", b"v%d" % offset, [("h", b"x"), ("n", None)])
    found = fetcher.PartitionRecords(
        TopicPartition("t", 0), MemoryRecords(bytes(builder.build())), [], 1, None, deserializer, True, 0
    )
    return list(found)


@pytest.mark.parametrize(("deserializer", "kind"), [(as_it_is, DefaultRecord), (None, ConsumerRecord)])
def test_a_consumer_gets_the_kind_it_asks_for(deserializer: Any, kind: type) -> None:
    found = records(deserializer)
    assert {type(record) for record in found} == {kind}
    assert [(record.offset, record.timestamp, record.key, record.value) for record in found] == [
        (1, 1_001, b"k", b"v1"),
        (2, 1_002, b"k", b"v2"),
    ]
    assert [tuple(record.headers) for record in found] == [(("h", b"x"), ("n", None))] * 2
