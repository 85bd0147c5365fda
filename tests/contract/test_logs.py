"""What every log promises, run over all of them: in memory, in a file, on a real Apache Kafka, and tests/sim's own."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from engine.clock import Clock
from engine.config import LogConfig
from engine.errors import EngineError, LogUnavailable, RecordRefused, StaleEpoch
from engine.logs import Log, Partition, Position, Record, TopicDifference, TopicSpec
from engine.logs.open import open_log
from tests.contract.log_kit import Listener, OpenLog, count, opening, poll_until, rows, values, wait_for
from tests.sim.broker import Broker
from tests.sim.log import Direct, SimLog

NOW_MS = Clock().wall_ms() - 60_000  # recent, or retention would rightly remove it


@pytest.fixture(params=["memory", "file", "sim", pytest.param("kafka", marks=pytest.mark.kafka)])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenLog]:
    """Opens a log of this kind; calls within a test open the same one. All are closed at the end."""
    kind = request.param
    where: dict[str, Any] = {
        "kind": "sqlite",
        "path": f":memory:{uuid4()}" if kind == "memory" else str(tmp_path / "l"),
    }
    if kind == "kafka":
        where = {"kind": "kafka", "bootstrap": request.getfixturevalue("kafka_bootstrap")}

    simulated = Broker(Clock().wall_ms, random.Random(1))

    def make(*, engine: bool = True, **keys: Any) -> Log:
        if kind == "sim":
            return SimLog(simulated, Direct, heartbeat_s=0.05, **keys)
        return open_log(LogConfig(**where, **keys), state=str(tmp_path), engine=engine)

    async with opening(make) as opener:
        yield opener


async def test_order_holds_within_each_partition(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=3)])
    await log.append([Record(topic, b"%d" % n, partition=n % 3) for n in range(300)])
    await log.append([Record(topic, b"%d" % n, partition=n % 3) for n in range(300, 600)])
    consumer = log.consumer(f"g-{topic}", [topic], Listener())
    await consumer.start()
    found = values(await poll_until(consumer, 600))
    assert found == {(topic, p): [b"%d" % n for n in range(p, 600, 3)] for p in range(3)}
    await consumer.close()


async def test_offsets_are_dense_and_a_poll_is_bounded(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    for start in range(0, 1_000, 100):
        await log.append([Record(topic, b"%d" % n) for n in range(start, start + 100)])
    reader = await log.reader([topic])
    chunks = await poll_until(reader, 1_000, max_records=7)
    assert [offset for chunk in chunks for offset in chunk.offsets] == list(range(1_000))
    assert {chunk.epoch for chunk in chunks} == {0}


async def test_a_reader_stands_where_it_is_told(opened: OpenLog, topic: str) -> None:
    """Some of its partitions in their midst, the others at the beginning; or at the first record that is left."""
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    for start in (0, 20):  # an embedded log gives up whole appends
        await log.append([Record(topic, b"%d" % n, partition=n % 2) for n in range(start, start + 20)])
    reader = await log.reader([topic], at={Partition(topic, 1): 15, Partition("other", 0): 7})
    chunks = await poll_until(reader, 25)
    assert sorted((chunk.partition, offset) for chunk in chunks for offset in chunk.offsets) == [
        *((0, n) for n in range(20)),
        *((1, n) for n in range(15, 20)),
    ]
    assert await reader.at_end()
    await log.trim({Partition(topic, 1): 10})
    reader = await log.reader([topic], at={Partition(topic, 0): 20, Partition(topic, 1): 3})
    assert [offset for chunk in await poll_until(reader, 10) for offset in chunk.offsets] == [*range(10, 20)]


async def test_a_record_comes_back_as_it_was(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    headers = (("origin", b"a/1/2"), ("empty", b""), ("名", "值".encode()), ("origin", b"again"))
    await log.append(
        [
            Record(topic, b"plain", timestamp_ms=NOW_MS),
            Record(topic, b"", b"", timestamp_ms=NOW_MS + 5),
            Record(topic, b"\xff\x00", b"\x00key", headers, timestamp_ms=NOW_MS + 1),
            Record(topic, None, b"gone", timestamp_ms=NOW_MS + 2),
        ]
    )
    reader = await log.reader([topic])
    assert rows(await poll_until(reader, 4)) == [
        (0, NOW_MS, None, b"plain", ()),
        (1, NOW_MS + 5, b"", b"", ()),
        (2, NOW_MS + 1, b"\x00key", b"\xff\x00", headers),
        (3, NOW_MS + 2, b"gone", None, ()),
    ]


async def test_a_record_without_a_time_gets_the_present_one(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    before = Clock().wall_ms()
    await log.append([Record(topic, b"x")])
    (chunk,) = await poll_until(await log.reader([topic]), 1)
    assert before <= chunk.timestamps_ms[0] <= Clock().wall_ms()


async def test_equal_keys_meet_in_one_partition(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=4)])
    await log.append([Record(topic, b"%d" % n, key=b"k%d" % (n % 20)) for n in range(200)])
    chunks = await poll_until(await log.reader([topic]), 200)
    where: dict[bytes | None, set[int]] = {}
    for chunk in chunks:
        for key in chunk.keys:
            where.setdefault(key, set()).add(chunk.partition)
    assert len(where) == 20
    assert all(len(partitions) == 1 for partitions in where.values())
    assert len({partition for partitions in where.values() for partition in partitions}) > 1


async def test_records_without_a_key_are_spread(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=4)])
    for n in range(200):
        await log.append([Record(topic, b"%d" % n)])
    found = values(await poll_until(await log.reader([topic]), 200))
    assert len(found) == 4


async def test_concurrent_appends_are_all_there(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])

    async def append(caller: int) -> None:
        for n in range(20):
            await log.append([Record(topic, b"%d" % n, key=b"%d" % caller)])

    await asyncio.gather(*(append(caller) for caller in range(50)))
    per_caller: dict[bytes | None, list[bytes | None]] = {}
    for _, _, key, value, _ in rows(await poll_until(await log.reader([topic]), 1_000)):
        per_caller.setdefault(key, []).append(value)
    assert per_caller == {b"%d" % caller: [b"%d" % n for n in range(20)] for caller in range(50)}


async def test_large_records_pass(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    sizes = [900_000, 1, 600_000, 600_000, 2]
    await log.append([Record(topic, bytes(size)) for size in sizes])
    assert [len(row[3] or b"") for row in rows(await poll_until(await log.reader([topic]), 5))] == sizes


async def test_a_record_too_large_is_refused_alone(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    huge = asyncio.create_task(log.append([Record(topic, b"no"), Record(topic, bytes(20 << 20))]))
    fine = asyncio.create_task(log.append([Record(topic, b"yes")]))
    with pytest.raises(RecordRefused, match="bytes"):
        await huge
    await fine
    assert rows(await poll_until(await log.reader([topic]), 1))[0][3] == b"yes"


async def test_what_was_put_is_fetched_from_its_place(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=3, compacted=True)])
    records = [Record(topic, bytes([n]) * 1000 * n, b"k%d" % n, (("h", b"%d" % n),), None, 1_000 + n) for n in range(9)]
    more = [asyncio.create_task(log.append([Record(topic, b"x", b"%d" % n)])) for n in range(50)]
    places = await asyncio.gather(*(log.put(record) for record in records))
    await asyncio.gather(*more)
    assert len(set(places)) == 9
    assert {partition.topic for partition, _ in places} == {topic}
    found = await log.fetch([*reversed(places), places[0]])
    wanted = [record._replace(partition=place[0].number) for record, place in zip(records, places, strict=True)]
    assert found == [*reversed(wanted), wanted[0]]
    (end,) = [offset for partition, offset in [await log.put(Record(topic, b"", b"k0", (), 1))]]
    nothing = [(Partition(topic, 1), end + 1), (Partition(topic, 1), 1 << 40)]
    assert await log.fetch(nothing) == [None, None]
    assert await log.fetch([]) == []


async def test_a_put_wakes_a_poll_and_may_be_refused_alone(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, extra={"max.message.bytes": str(12 << 20)})])
    reader = await log.reader([topic])
    polling = asyncio.create_task(reader.poll(10, 40.0))
    refused = asyncio.create_task(log.put(Record(topic, bytes(20 << 20))))
    place = await log.put(Record(topic, b"yes"))
    with pytest.raises(RecordRefused):
        await refused
    with pytest.raises(RecordRefused, match="0 to 0"):
        await log.put(Record(topic, b"no", partition=1))
    assert values(await polling) == {(topic, 0): [b"yes"]}
    large = Record(topic, bytes(8 << 20), None, (), 0, 5)
    there = await log.put(large)
    assert (await log.fetch([there, place]))[0] == large


async def test_a_partition_that_is_not_there_is_refused(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    with pytest.raises(RecordRefused, match="0 to 1"):
        await log.append([Record(topic, b"x", partition=2)])


async def test_a_compacted_topic_refuses_a_record_without_a_key(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, compacted=True)])
    with pytest.raises(RecordRefused, match="key"):
        await log.append([Record(topic, b"x")])


@pytest.mark.parametrize("note", ["", "x" * 4_096, "AAEC/w=="])
async def test_a_commit_is_read_back_with_its_note(opened: OpenLog, topic: str, note: str) -> None:
    log, group = await opened(), f"g-{topic}"
    await log.create_topics([TopicSpec(topic, partitions=2)])
    await log.append([Record(topic, b"%d" % n, partition=n % 2) for n in range(20)])
    consumer = log.consumer(group, [topic], Listener())
    await consumer.start()
    await poll_until(consumer, 20)
    await consumer.commit({Partition(topic, 0): Position(7, note), Partition(topic, 1): Position(3)})
    committed = await log.committed(group)
    assert committed == {Partition(topic, 0): Position(7, note), Partition(topic, 1): Position(3)}
    await consumer.close()

    listener = Listener()
    again = log.consumer(group, [topic], listener)
    await again.start()
    found = values(await poll_until(again, 10))
    assert listener.owned == committed
    assert found == {(topic, 0): [b"14", b"16", b"18"], (topic, 1): [b"%d" % n for n in range(7, 20, 2)]}


async def test_a_note_too_long_is_refused(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    consumer = log.consumer(f"g-{topic}", [topic], Listener())
    await consumer.start()
    await poll_until(consumer, 1)
    with pytest.raises(ValueError, match="4096"):
        await consumer.commit({Partition(topic, 0): Position(1, "x" * 4_097)})


async def test_a_commit_for_what_is_not_owned_is_stale(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    consumer = log.consumer(f"g-{topic}", [topic], Listener())
    await consumer.start()
    await poll_until(consumer, 1)
    with pytest.raises(StaleEpoch):
        await consumer.commit({Partition(topic, 9): Position(1)})
    await consumer.close()
    with pytest.raises(EngineError) as stale:
        await consumer.commit({Partition(topic, 0): Position(1)})
    assert isinstance(stale.value, StaleEpoch)


@pytest.mark.parametrize(("first_start", "found"), [("earliest", [b"old", b"new"]), ("latest", [b"new"])])
async def test_a_new_group_starts_where_it_is_told(
    opened: OpenLog, topic: str, first_start: str, found: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "engine")
    log = await opened(first_start=first_start)
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"old")])
    listener = Listener()
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    await consumer.start()
    await wait_for(lambda: bool(listener.owned), consumer)
    assert f"group g-{topic} starts at the {first_start} of {topic}/0" in caplog.text
    # A position, so that a crash before the first commit cannot make "latest" skip what came since.
    if first_start == "latest":
        assert await log.committed(f"g-{topic}") == {Partition(topic, 0): Position(1)}
    await consumer.close()
    await log.append([Record(topic, b"new")])
    again = log.consumer(f"g-{topic}", [topic], Listener())
    await again.start()
    assert [row[3] for row in rows(await poll_until(again, len(found)))] == found


async def test_an_appended_record_wakes_a_poll_that_waits(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    reader = await log.reader([topic])
    polling = asyncio.create_task(reader.poll(10, 40.0))
    await log.append([Record(topic, b"x")])
    assert values(await polling) == {(topic, 0): [b"x"]}


async def test_another_logs_append_is_seen(opened: OpenLog, topic: str) -> None:
    engine, producer = await opened(), await opened(engine=False)
    await engine.create_topics([TopicSpec(topic)])
    consumer = engine.consumer(f"g-{topic}", [topic], Listener())
    await consumer.start()
    await producer.append([Record(topic, b"x")])
    assert values(await poll_until(consumer, 1)) == {(topic, 0): [b"x"]}


async def test_a_reader_knows_the_end(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    reader = await log.reader([topic])
    assert await reader.at_end()
    await log.append([Record(topic, b"%d" % n, partition=n % 2) for n in range(10)])
    assert not await reader.at_end()
    assert count(await poll_until(reader, 9, max_records=3)) == 9
    assert not await reader.at_end()
    await poll_until(reader, 1)
    assert await reader.at_end()


async def test_a_reader_from_the_end_gives_what_comes(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    await log.append([Record(topic, b"old", partition=n) for n in range(2)])
    reader = await log.reader([topic], from_end=True)
    assert await reader.at_end()
    await log.append([Record(topic, b"new", partition=n) for n in range(2)])
    assert values(await poll_until(reader, 2)) == {(topic, 0): [b"new"], (topic, 1): [b"new"]}


async def test_a_reader_takes_part_in_no_group(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"%d" % n) for n in range(3)])
    one, two = await log.reader([topic]), await log.reader([topic])
    assert values(await poll_until(one, 3)) == values(await poll_until(two, 3))


async def test_paused_polls_give_nothing(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    await log.append([Record(topic, b"%d" % n, partition=n % 2) for n in range(40)])
    consumer = log.consumer(f"g-{topic}", [topic], Listener())
    await consumer.start()
    first = await poll_until(consumer, 5, max_records=5)
    consumer.pause()
    assert await consumer.poll(500, 0.05) == []
    assert await consumer.poll(500, 0.05) == []
    consumer.resume()
    assert sorted(row[3] or b"" for row in rows(first + await poll_until(consumer, 35))) == sorted(
        b"%d" % n for n in range(40)
    )


async def test_a_partition_is_paused_by_itself(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    await log.append([Record(topic, b"%d" % n, partition=n % 2) for n in range(40)])
    consumer = log.consumer(f"g-{topic}", [topic], Listener())
    await consumer.start()
    first = await poll_until(consumer, 5, max_records=5)
    even, odd = Partition(topic, 0), Partition(topic, 1)
    consumer.pause([odd])
    rest = await poll_until(consumer, 20 - len(values(first).get(even, [])))
    assert set(values(rest)) == {even}
    assert await consumer.poll(500, 0.05) == []
    await log.append([Record(topic, b"e", partition=0), Record(topic, b"o", partition=1)])
    assert values(await poll_until(consumer, 1)) == {even: [b"e"]}
    consumer.pause([even])
    consumer.resume([odd])
    late = first + await poll_until(consumer, 21 - len(values(first).get(odd, [])))
    assert values(late)[odd] == [b"%d" % n for n in range(1, 40, 2)] + [b"o"]
    consumer.resume()
    await log.append([Record(topic, b"e2", partition=0)])
    assert values(await poll_until(consumer, 1)) == {even: [b"e2"]}


async def test_lag_counts_what_is_not_polled(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"%d" % n) for n in range(30)])
    consumer = log.consumer(f"g-{topic}", [topic], Listener())
    assert consumer.lag() == {}
    await consumer.start()
    await poll_until(consumer, 10, max_records=10)
    assert consumer.lag() == {Partition(topic, 0): 20}
    await poll_until(consumer, 20)
    assert consumer.lag() == {Partition(topic, 0): 0}


async def test_one_consumer_reads_several_topics(opened: OpenLog, topic: str) -> None:
    log, other = await opened(), f"{topic}-other"
    await log.create_topics([TopicSpec(topic), TopicSpec(other)])
    await log.append([Record(topic, b"a"), Record(other, b"b")])
    listener = Listener()
    consumer = log.consumer(f"g-{topic}", [topic, other], listener)
    await consumer.start()
    assert values(await poll_until(consumer, 2)) == {(topic, 0): [b"a"], (other, 0): [b"b"]}
    assert set(listener.owned) == {Partition(topic, 0), Partition(other, 0)}


async def test_chunks_carry_the_epoch_of_their_assignment(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    listener = Listener()
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    await consumer.start()
    (chunk,) = await poll_until(consumer, 1)
    assert chunk.epoch == listener.epoch >= 1


async def test_closing_revokes_while_commits_still_work(opened: OpenLog, topic: str) -> None:
    log, group = await opened(), f"g-{topic}"
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"%d" % n) for n in range(4)])
    listener = Listener()
    consumer = log.consumer(group, [topic], listener)
    await consumer.start()
    await poll_until(consumer, 4)

    async def commit(_: object) -> None:
        await consumer.commit({Partition(topic, 0): Position(4, "last")})

    listener.on_revoke = commit
    await consumer.close()
    assert listener.revocations == [(Partition(topic, 0),)]
    assert await log.committed(group) == {Partition(topic, 0): Position(4, "last")}
    await consumer.close()
    assert len(listener.revocations) == 1


async def test_closing_the_log_closes_what_it_opened(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    listener = Listener()
    consumer, reader = log.consumer(f"g-{topic}", [topic], listener), await log.reader([topic])
    await consumer.start()
    await poll_until(consumer, 1)
    await log.close()
    assert listener.owned == {}
    assert len(listener.revocations) == 1
    with pytest.raises(LogUnavailable):
        await log.append([Record(topic, b"y")])
    with pytest.raises(LogUnavailable):
        await reader.poll(1, 0.1)
    with pytest.raises(LogUnavailable):
        await consumer.poll(1, 0.1)


async def test_topics_are_created_once_and_compared(opened: OpenLog, topic: str) -> None:
    log, other = await opened(), f"{topic}-other"
    wanted = [TopicSpec(topic, partitions=3, retention_ms=3_600_000), TopicSpec(other, compacted=True)]
    assert {difference.topic for difference in await log.check_topics(wanted)} == {topic, other}
    assert all(difference.found == "" for difference in await log.check_topics(wanted))
    assert sorted(await log.create_topics(wanted)) == sorted([topic, other])
    assert await log.check_topics(wanted) == []
    assert await log.create_topics(wanted) == []

    strange = [TopicSpec(topic, partitions=5, compacted=True, retention_ms=60_000), TopicSpec(other, compacted=True)]
    assert await log.create_topics(strange) == []
    assert sorted(await log.check_topics(strange)) == [
        TopicDifference(topic, "cleanup.policy", "compact", "delete"),
        TopicDifference(topic, "partitions", "5", "3"),
        TopicDifference(topic, "retention.ms", "60000", "3600000"),
    ]


async def test_what_is_trimmed_is_gone_and_the_rest_is_not(opened: OpenLog, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    for n in range(5):
        await log.append([Record(topic, b"%d" % n, partition=0), Record(topic, b"x", partition=1)])
    await log.trim({Partition(topic, 0): 3})
    reader = await log.reader([topic])
    found = []
    while not await reader.at_end():
        found += await reader.poll(100, 0.2)
    kept = {(chunk.partition, offset) for chunk in found for offset in chunk.offsets}
    assert kept == {(0, 3), (0, 4), *((1, offset) for offset in range(5))}
    await log.append([Record(topic, b"after", partition=0)])
    after = [chunk for chunk in await reader.poll(100, 5.0) if chunk.partition == 0]
    assert [(list(chunk.offsets), list(chunk.values)) for chunk in after] == [([5], [b"after"])]
    await reader.close()


async def test_a_group_that_never_was_has_committed_nothing(opened: OpenLog, topic: str) -> None:
    assert await (await opened()).committed(f"g-{topic}") == {}


async def test_what_was_acknowledged_is_there_when_opened_again(opened: OpenLog, topic: str) -> None:
    keep = await opened(engine=False)  # a log in memory lives as long as somebody has it open
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    await log.close()
    again = await opened()
    await again.append([Record(topic, b"y")])
    assert values(await poll_until(await again.reader([topic]), 2)) == {(topic, 0): [b"x", b"y"]}
    await keep.close()
