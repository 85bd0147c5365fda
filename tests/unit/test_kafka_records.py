"""What a consumer gets of what aiokafka fetched: batches written by aiokafka's own builders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

from engine.logs.kafka_records import as_it_is
from ext.records import RecordBatch, Records, joined, single

PLACE = TopicPartition("t", 0)
READ_COMMITTED = 1


class State:
    """What a fetch result asks of its assignment: the partition's position."""

    def __init__(self, position: int) -> None:
        self.active, self.paused, self.position = True, False, position

    def state_value(self, place: TopicPartition) -> State:
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def fetched(data: bytes, offset: int = 0, deserializer: Any = as_it_is, aborted: Sequence[tuple[int, int]] = ()) -> Any:
    """As aiokafka makes it of an answer to a fetch from ``offset``."""
    records = fetcher.PartitionRecords(
        PLACE, fetcher.MemoryRecords(data), list(aborted), offset, None, deserializer, True, READ_COMMITTED
    )
    return fetcher.FetchResult(PLACE, assignment=State(offset), partition_records=records, backoff=0)


def batch(offsets: Sequence[int], codec: int = 0, first: int = 0, **settings: Any) -> bytes:
    """A batch of format 2 that begins at ``first``; ``settings``: is_transactional, producer_id, control."""
    control = settings.pop("control", False)
    options = {"is_transactional": 0, "producer_id": -1, "producer_epoch": -1, "base_sequence": 0} | settings
    builder = DefaultRecordBatchBuilder(magic=2, compression_type=codec, batch_size=1 << 20, **options)
    for offset in offsets:
        key = b"\0\0\0\0" if control else b"k"  # an abort marker, where it is one
        builder.append(offset, 1_000 + offset, key, b"v%d" % (first + offset), [("h", b"x"), ("n", None)])
    data = builder.build()
    data[:8] = first.to_bytes(8, "big")
    if control:
        data[22] |= 0x20
        data[17:21] = crc(data[21:])
    return bytes(data)


def crc(data: bytes | bytearray) -> bytes:
    from aiokafka.record.util import calc_crc32c

    return int(calc_crc32c(bytes(data))).to_bytes(4, "big")


def rows(found: Records) -> list[tuple[Any, ...]]:
    return list(zip(found.offsets, found.timestamps_ms, found.keys, found.values, found.headers, strict=True))


def row(offset: int, first: int = 0) -> tuple[Any, ...]:
    return offset, 1_000 + offset - first, b"k", b"v%d" % offset, (("h", b"x"), ("n", b""))


@pytest.mark.parametrize(("deserializer", "kind"), [(as_it_is, Records), (None, list)])
def test_a_consumer_gets_the_kind_it_asks_for(deserializer: Any, kind: Any) -> None:
    found = fetched(batch(range(3)), 1, deserializer).getall()
    assert type(found) is kind
    if deserializer is not as_it_is:
        assert {type(record) for record in found} == {ConsumerRecord}
        assert [(record.offset, record.value) for record in found] == [(1, b"v1"), (2, b"v2")]
        assert found[0].headers == (("h", b"x"), ("n", None))
    else:
        assert rows(found) == [row(1), row(2)]


@pytest.mark.parametrize("codec", range(5))
def test_every_codec(codec: int) -> None:
    assert rows(fetched(batch(range(300), codec)).getall()) == [row(offset) for offset in range(300)]


def test_at_most_as_many_as_asked_for_over_batches() -> None:
    result = fetched(batch(range(4)) + batch(range(1), first=4) + batch(range(3), 3, first=5), 1)
    found = []
    for most in (1, 4, 2):
        found.append(rows(result.getall(most)))
        assert result._assignment.position == found[-1][-1][0] + 1
    assert [len(part) for part in found] == [1, 4, 2]
    assert [one[0] for part in found for one in part] == [*range(1, 8)]
    assert result.has_more()
    assert not result.getall(1)
    assert not result.has_more()
    assert result._assignment.position == 8


def test_gaps_of_compaction_are_passed() -> None:
    """Also where the batch's last records are gone: the next fetch begins behind it."""
    data = bytearray(batch([0, 3, 9], first=10))
    data[23:27] = (12).to_bytes(4, "big")  # its last offset is 22
    data[17:21] = crc(data[21:])
    result = fetched(bytes(data), 5)
    assert list(result.getall().offsets) == [10, 13, 19]
    assert result._assignment.position == 23


def test_what_was_aborted_and_what_controls_is_left_out() -> None:
    mine = {"is_transactional": 1, "producer_id": 7, "producer_epoch": 0}
    data = b"".join(
        [
            batch(range(2), 3, 0, **mine),
            batch(range(2), 3, 2),
            batch(range(1), 0, 4, control=True, **mine),  # aborts what came before
            batch(range(2), 3, 5, **mine),
        ]
    )
    assert list(fetched(data, aborted=[(7, 0)]).getall().offsets) == [2, 3, 5, 6]
    assert list(fetched(data).getall().offsets) == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, 1])
def test_older_formats(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for offset in range(3):
        builder.append(offset, 1_000 + offset, b"k", None if offset == 1 else b"v%d" % offset)
    found = fetched(bytes(builder.build()), 1).getall()
    stamps = [1_001, 1_002] if magic else [-1, -1]
    assert rows(found) == [(1, stamps[0], b"k", None, ()), (2, stamps[1], b"k", b"v2", ())]


def test_a_wrong_sum_is_an_error() -> None:
    data = bytearray(batch(range(3)))
    data[-3] ^= 1
    with pytest.raises(CorruptRecordException):
        fetched(bytes(data)).getall()


@pytest.mark.parametrize("codec", range(5))
def test_a_batch_cut_off_inside_is_an_error(codec: int) -> None:
    """Its sum fits: it was written so. What stood before it is read again."""
    whole = batch(range(200), codec)
    data = bytearray(whole[:-5])
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    data[17:21] = crc(data[21:])
    result = fetched(bytes(data))
    with pytest.raises(CorruptRecordException, match="offset 0"):
        result.getall()
    assert not len(result.getall())
    assert result._assignment.position == 0


def test_a_header_whose_name_is_not_utf_8_is_read() -> None:
    data = bytearray(batch(range(1)))
    data[data.index(b"\x02h\x02x") + 1] = 0xFF
    data[17:21] = crc(data[21:])
    (headers,) = fetched(bytes(data)).getall().headers
    assert headers == (("�", b"x"), ("n", b""))


def test_the_time_of_appending_stands_for_all() -> None:
    data = bytearray(batch(range(2)))
    data[22] |= 0x08
    data[35:43] = (77).to_bytes(8, "big")
    data[17:21] = crc(data[21:])
    assert list(fetched(bytes(data)).getall().timestamps_ms) == [77, 77]


def test_columns_are_sequences() -> None:
    found = fetched(batch(range(5), 3)).getall()
    values = found.values
    assert len(values) == 5
    assert (values[0], values[-1], values[4]) == (b"v0", b"v4", b"v4")
    part = values[1:4]
    del found, values
    assert [*part] == [b"v1", b"v2", b"v3"]
    assert [*part[1:]] == [b"v2", b"v3"]
    assert [*part[::-1]] == [b"v3", b"v2", b"v1"]
    assert [*part[2:1]] == []
    for at in (3, -4):
        with pytest.raises(IndexError):
            part[at]


def test_runs_are_joined_and_cut() -> None:
    both = joined([single(3, 1, None, b""), single(5, 2, b"", None)])
    assert rows(both) == [(3, 1, None, b"", ()), (5, 2, b"", None, ())]
    assert both.offset == 5
    assert rows(both.since(4)) == rows(both)[1:]
    assert not both.since(6)
    assert both.since(3) is both
    with pytest.raises(IndexError):
        joined([]).offset  # noqa: B018


def test_more_records_than_bytes_are_an_error() -> None:
    reader = RecordBatch(b"\0" * 20, 2**31 - 1, 0, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2147483647 records in 20 bytes|damaged"):
            reader.read(2**62)
    with pytest.raises(ValueError, match="20 bytes after the last record"):
        RecordBatch(b"\0" * 20, 0, 0, 0).read(5)
    assert not RecordBatch(b"", -1, 0, 0).read(5)
