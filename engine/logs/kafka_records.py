"""Takes aiokafka's records as its parser makes them.

For each record aiokafka makes one more object, a ``ConsumerRecord``, which costs more than parsing, fetching and
everything else on the way to a poll together, and which we take apart at once. A consumer made with
``value_deserializer=as_it_is`` gets the parser's own records (offset, timestamp, key, value, headers) instead; others
are not touched. This reaches into aiokafka (``PartitionRecords._consumer_record``, 0.14): the contract suite of the
logs and ``tests/unit/test_kafka_records.py`` notice when it moves.
"""

from __future__ import annotations

from typing import Any

from aiokafka.consumer import fetcher


def as_it_is(value: bytes | None) -> bytes | None:
    """Marks a consumer that wants the parser's own records."""
    return value


class _Records(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record if self._value_deserializer is as_it_is else super()._consumer_record(tp, record)


fetcher.PartitionRecords = _Records
