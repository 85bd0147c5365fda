"""What the compiled reader makes of batches, against aiokafka's; and of damaged bytes: an error, or records of them."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.logs.kafka_records import as_it_is
from ext.records import RecordBatch, Records
from tests.unit.test_kafka_records import fetched, rows

TEXT = st.none() | st.binary(max_size=300)
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)
STAMPS = st.integers(0, 2**41) | st.sampled_from([0, 2**62])
RECORD = st.tuples(st.integers(1, 70), STAMPS, TEXT, TEXT, HEADERS)
BATCH = st.tuples(
    st.integers(0, 4), st.lists(RECORD, min_size=1, max_size=30), st.integers(0, 3), st.sampled_from([-1, 5, 6])
)
TAKES = st.lists(st.integers(1, 40), max_size=8)


def built(codec: int, records: list[Any], first: int, producer: int) -> tuple[bytes, int]:
    """A batch, and the offset after it."""
    builder = DefaultRecordBatchBuilder(2, codec, int(producer == 6), producer, 0, 0, 1 << 20)
    offset = 0
    for step, stamp_ms, key, value, headers in records:
        builder.append(offset, stamp_ms, key, value, headers)
        offset += step
    data = builder.build()
    data[:8] = first.to_bytes(8, "big")
    return bytes(data), first + offset


def theirs(data: bytes, offset: int, aborted: list[tuple[int, int]]) -> tuple[list[Any], int]:
    """aiokafka's own reading, and where it goes on."""
    result = fetched(data, offset, None, aborted)
    found = result.getall()
    said = [
        (one.offset, one.timestamp, one.key, one.value, tuple((name, value or b"") for name, value in one.headers))
        for one in found
    ]
    return said, result._assignment.position


@settings(max_examples=200, deadline=None)
@given(st.lists(BATCH, min_size=1, max_size=4), st.integers(0, 60), st.booleans(), TAKES)
def test_reads_what_aiokafka_reads(batches: list[Any], offset: int, aborted: bool, takes: list[int]) -> None:
    parts, end = [], 0
    for codec, records, gap, producer in batches:
        data, end = built(codec, records, end + gap, producer)
        parts.append(data)
    lost = [(6, 0)] if aborted else []
    wanted, position = theirs(b"".join(parts), offset, lost)
    result = fetched(b"".join(parts), offset, as_it_is, lost)
    found: list[Any] = []
    for most in takes:
        if not result.has_more():
            break
        run = result.getall(most)
        assert len(run) <= most
        found += rows(run) if run else []
        if result.has_more():
            assert result._assignment.position == found[-1][0] + 1
    if result.has_more():
        found += rows(result.getall(None))
    assert found == wanted
    assert result._assignment.position == position
    assert not result.has_more()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(RECORD, max_size=8),
    st.integers(-1, 10) | st.just(2**31 - 1),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
    st.sampled_from([0, 2**63 - 1, -(2**63)]),
)
def test_damaged_bytes_are_an_error_or_records(
    records: list[Any], count: int, damage: list[tuple[int, int]], cut: int, base: int
) -> None:
    data = bytearray(built(0, records, 0, -1)[0][61:]) if records else bytearray()
    for at, byte in damage:
        if at < len(data):
            data[at] = byte
    reader, found = RecordBatch(bytes(data[: len(data) - cut] if cut < len(data) else data), count, base, base), []
    try:
        while run := reader.read(3):
            found.append(run)
    except ValueError:
        pass
    for run in found:
        assert len(rows(run)) == len(run)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4), st.lists(RECORD, min_size=1, max_size=20), st.integers(0, 2**16), st.integers(0, 255))
def test_a_damaged_batch_is_an_error_or_records(codec: int, records: list[Any], at: int, byte: int) -> None:
    """Where the sum is not looked at."""
    data = bytearray(built(codec, records, 0, -1)[0])
    data[43 + at % (len(data) - 43)] = byte
    place = TopicPartition("t", 0)
    arguments: Any = place, fetcher.MemoryRecords(bytes(data)), [], 0, None, as_it_is, False, 0
    try:
        found = list(fetcher.PartitionRecords(*arguments))
    except CorruptRecordException:
        return
    assert all(isinstance(run, Records) and rows(run) for run in found)
