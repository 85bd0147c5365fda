"""Takes records out of what aiokafka fetched without an object for a record.

For each record aiokafka makes two objects, and two more of what is in them, which cost more than fetching and
everything else on the way to a poll together, and which we would take apart at once. A consumer made with
``value_deserializer=as_it_is`` gets ``ext.records.Records`` from ``getmany`` instead, a run of records for each
partition; others are not touched. aiokafka still walks the batches: it checks their sums and leaves out what was
aborted, what controls transactions and what lies below the offset fetched; it reads the records of formats 0 and 1.

This reaches into aiokafka (``MemoryRecords``, ``PartitionRecords``, ``FetchResult``, 0.14): the contract suite of the
logs and ``tests/unit/test_kafka_records.py`` notice when it moves.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from ext.records import RecordBatch, Records, joined, single

LENGTH, COUNT, BODY = 8, 57, 61  # where they stand in a batch
BEFORE_LENGTH = 12  # of a batch's bytes, its length included
DECODERS: dict[int, Callable[[Any], Any]] = {
    0: lambda body: body,
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: cramjam.lz4.decompress,  # as aiokafka does, less a copy
    4: cramjam.zstd.decompress,
}
UNDECODABLE = (cramjam.DecompressionError, struct.error, zlib.error, EOFError, OSError, ValueError)


def as_it_is(value: bytes | None) -> bytes | None:
    """Marks a consumer that wants Records."""
    return value


class _Memory(fetcher.MemoryRecords):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's, with the bytes it reads from."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _Batches:
    """In place of aiokafka's MemoryRecords: its batches of format 2 give runs of at most ``most`` records."""

    def __init__(self, data: bytes) -> None:
        self._inner = _Memory(data)
        self._data = memoryview(data)
        self._at = 0
        self.most = sys.maxsize
        self.has_next = self._inner.has_next

    def next_batch(self) -> Any:
        """aiokafka's own where there is nothing to gain."""
        batch, start = self._inner.next_batch(), self._at
        self._at = start + BEFORE_LENGTH + _number(self._data, start + LENGTH)
        data = self._data[start : self._at]
        if not isinstance(batch, DefaultRecordBatch) or batch.is_control_batch:
            return batch
        return _Batch(self, batch, data) if batch.compression_type in DECODERS else batch


class _Batch:
    def __init__(self, batches: _Batches, batch: Any, data: memoryview) -> None:
        self._batches = batches
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Records]:
        batch = self._batch
        append_ms = batch.max_timestamp if batch.timestamp_type else -1
        try:
            body = DECODERS[batch.compression_type](self._data[BODY:])
            count = _number(self._data, COUNT)
            records = RecordBatch(body, count, batch.base_offset, batch.first_timestamp, append_ms)
            while found := records.read(self._batches.most):
                yield found
        except UNDECODABLE as error:
            raise CorruptRecordException(f"the batch at offset {batch.base_offset}: {error}") from error


class _Records(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: Any, *arguments: Any) -> None:
        super().__init__(tp, records, *arguments)
        if self._value_deserializer is as_it_is:
            self._records = _Batches(records.data)

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        if isinstance(record, Records):
            return record.since(self.next_fetch_offset)
        if self._value_deserializer is as_it_is:
            return single(record.offset, -1 if record.timestamp is None else record.timestamp, record.key, record.value)
        return super()._consumer_record(tp, record)

    def take(self, most: int) -> Records | None:
        """A run of the next records; None at the end."""
        self._records.most = most
        run: Records | None = next(self, None)
        return run


class _Result(fetcher.FetchResult):  # type: ignore[misc]
    _partition_records: Any

    def getall(self, max_records: int | None = None) -> Any:
        """aiokafka's, of runs."""
        records: Any = self._partition_records
        if not self.has_more() or records._value_deserializer is not as_it_is:
            return super().getall(max_records)
        if not self.check_assignment(self._topic_partition):
            return ()
        runs: list[Records] = []
        left = sys.maxsize if max_records is None else max_records
        while left > 0:
            run = records.take(left)
            if run is None:
                break
            runs.append(run)
            left -= len(run)
        self._update_position()
        if left > 0:
            self._partition_records = None
        return runs[0] if len(runs) == 1 else joined(runs)


def _number(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big", signed=True)


fetcher.MemoryRecords = _Memory
fetcher.PartitionRecords = _Records
fetcher.FetchResult = _Result
