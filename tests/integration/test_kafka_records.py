"""Records on a real Kafka: written by other clients, too large, aborted, removed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition
from confluent_kafka import Producer

from engine.errors import LogUnavailable, RecordRefused
from engine.logs import Partition, Position, Record, TopicSpec
from engine.logs.kafka import KafkaLog
from tests.contract.log_kit import Listener, opening, poll_until, rows, values, wait_for

pytestmark = pytest.mark.kafka


@pytest.fixture
async def log(kafka_bootstrap: str) -> AsyncIterator[KafkaLog]:
    async with opening(lambda: KafkaLog(kafka_bootstrap)) as opener:
        yield await opener()


def produce(config: dict[str, Any], topic: str, records: Sequence[tuple[bytes | None, bytes | None, Any]]) -> None:
    """With librdkafka: (key, value, headers)."""
    producer = Producer(config)
    for key, value, headers in records:
        producer.produce(topic, key=key, value=value, headers=headers)
    assert producer.flush(30) == 0


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_every_compression_is_read(log: KafkaLog, kafka_bootstrap: str, topic: str, codec: str) -> None:
    await log.create_topics([TopicSpec(topic)])
    sent = [(b"key %d" % n, b"value %d " % n * 50, [("h", b"%d" % n)]) for n in range(500)]
    config = {"bootstrap.servers": kafka_bootstrap, "compression.type": codec, "linger.ms": 50}
    await asyncio.to_thread(produce, config, topic, sent)
    found = rows(await poll_until(await log.reader([topic]), 500))
    assert [(row[2], row[3], list(row[4])) for row in found] == sent


async def test_keys_go_where_kafkas_own_clients_put_them(log: KafkaLog, kafka_bootstrap: str, topic: str) -> None:
    await log.create_topics([TopicSpec(topic, partitions=7)])
    keys = [b"k", "名".encode(), *(b"key-%d" % n for n in range(100))]
    config = {"bootstrap.servers": kafka_bootstrap, "partitioner": "murmur2_random"}
    await asyncio.to_thread(produce, config, topic, [(key, b"theirs", None) for key in keys])
    await log.append([Record(topic, b"ours", key) for key in keys])
    where: dict[tuple[bytes | None, bytes | None], int] = {}
    for chunk in await poll_until(await log.reader([topic]), 2 * len(keys)):
        for key, value in zip(chunk.keys, chunk.values, strict=True):
            where[key, value] = chunk.partition
    assert {key: where[key, b"ours"] for key in keys} == {key: where[key, b"theirs"] for key in keys}


async def test_a_header_without_a_value_is_empty(log: KafkaLog, kafka_bootstrap: str, topic: str) -> None:
    await log.create_topics([TopicSpec(topic)])
    await asyncio.to_thread(produce, {"bootstrap.servers": kafka_bootstrap}, topic, [(None, b"x", [("h", None)])])
    (row,) = rows(await poll_until(await log.reader([topic]), 1))
    assert row[4] == (("h", b""),)


async def test_aborted_transactions_are_not_read(log: KafkaLog, kafka_bootstrap: str, topic: str) -> None:
    await log.create_topics([TopicSpec(topic)])

    def transactions() -> None:
        producer = Producer({"bootstrap.servers": kafka_bootstrap, "transactional.id": topic})
        producer.init_transactions(30)
        for value, end in ((b"a", producer.commit_transaction), (b"no", producer.abort_transaction)):
            producer.begin_transaction()
            producer.produce(topic, value=value)
            producer.flush(30)
            end(30)

    await asyncio.to_thread(transactions)
    await log.append([Record(topic, b"b")])
    reader = await log.reader([topic])
    assert [row[3] for row in rows(await poll_until(reader, 2))] == [b"a", b"b"]
    assert await reader.at_end()


async def test_a_topic_ending_in_a_transaction_has_an_end(log: KafkaLog, kafka_bootstrap: str, topic: str) -> None:
    await log.create_topics([TopicSpec(topic)])

    def abort() -> None:
        producer = Producer({"bootstrap.servers": kafka_bootstrap, "transactional.id": topic})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topic, value=b"no")
        producer.flush(30)
        producer.abort_transaction(30)

    await asyncio.to_thread(abort)
    reader = await log.reader([topic])
    async with asyncio.timeout(40):
        while not await reader.at_end():
            assert await reader.poll(500, 0.1) == []


async def test_a_record_the_broker_refuses_is_refused_alone(log: KafkaLog, topic: str) -> None:
    await log.create_topics([TopicSpec(topic, extra={"max.message.bytes": "50000"})])
    small = [Record(topic, b"%d" % n + b"\0" * 10, timestamp_ms=n + 1) for n in range(20)]
    noise = uuid4().bytes * 16_000  # 256 KB that lz4 makes small
    incompressible = b"".join(uuid4().bytes for _ in range(6_000))
    appends = [log.append([record]) for record in small[:10]]
    appends += [log.append([Record(topic, incompressible)])]
    appends += [log.append([record]) for record in small[10:]]
    ended = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(end) for end in ended] == [type(None)] * 10 + [RecordRefused] + [type(None)] * 10
    # Together too large for the topic, each fine: taken in smaller batches, and the producer goes on.
    await log.append([Record(topic, incompressible[:20_000]) for _ in range(10)])
    await log.append([Record(topic, noise)])
    found = [row[3] or b"" for row in rows(await poll_until(await log.reader([topic]), 31))]
    assert found == [*(record.value for record in small), *[incompressible[:20_000]] * 10, noise]


async def test_a_topic_that_is_not_there_is_said(log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.logs.kafka_write.METADATA_S", 0.5)
    with pytest.raises(LogUnavailable, match=topic):
        await log.append([Record(topic, b"x")])
    with pytest.raises(LogUnavailable, match=topic):
        await log.reader([topic])
    # It may come later.
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    assert values(await poll_until(await log.reader([topic]), 1)) == {(topic, 0): [b"x"]}


async def delete_before(bootstrap: str, topic: str, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=offset)})
    await admin.close()


async def test_a_position_overtaken_by_retention_jumps_and_says_so(
    log: KafkaLog, kafka_bootstrap: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"%d" % n) for n in range(10)])
    listener = Listener()
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    await consumer.start()
    await wait_for(lambda: bool(listener.owned), consumer)
    await consumer.commit({Partition(topic, 0): Position(2, "a note about 2")})
    await consumer.close()
    await delete_before(kafka_bootstrap, topic, 6)

    listener = Listener()
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    await consumer.start()
    assert [row[0] for row in rows(await poll_until(consumer, 4))] == [6, 7, 8, 9]
    assert listener.owned == {Partition(topic, 0): Position(6)}
    assert "4 records were removed by retention" in caplog.text


async def test_a_reader_overtaken_by_retention_goes_on(
    log: KafkaLog, kafka_bootstrap: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, os.urandom(600_000)) for _ in range(10)])  # too large to be fetched far ahead
    reader = await log.reader([topic])
    first = rows(await poll_until(reader, 1, max_records=1))
    await delete_before(kafka_bootstrap, topic, 8)
    found = [row[0] for row in first]
    while not await reader.at_end():
        found += [row[0] for row in rows(await reader.poll(500, 0.1))]
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-2:] == [8, 9]
    assert len(found) < 10
    assert "removed by retention" in caplog.text


async def test_settings_that_differ_are_told(log: KafkaLog, topic: str) -> None:
    await log.create_topics([TopicSpec(topic, extra={"max.message.bytes": "50000"})])
    differences = await log.check_topics([TopicSpec(topic, replication=3, extra={"max.message.bytes": "2000000"})])
    assert sorted((difference.key, difference.wanted, difference.found) for difference in differences) == [
        ("max.message.bytes", "2000000", "50000"),
        ("replication", "3", "1"),
    ]
