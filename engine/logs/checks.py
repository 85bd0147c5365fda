"""What both logs refuse alike."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import RecordRefused
from engine.logs import Partition, Position, Record

MAX_METADATA = 4_096  # characters; Kafka's offset.metadata.max.bytes by default
MAX_TIMESTAMP_MS = 253_402_300_799_999  # the year 9999
MAX_RECORD_BYTES = 16 << 20  # without headers; a Kafka topic usually takes less


def check_metadata(positions: Mapping[Partition, Position], most: int = MAX_METADATA) -> None:
    """Raise ValueError for a note that would not be kept."""
    for partition, position in positions.items():
        if len(position.metadata) > most:
            raise ValueError(
                f"metadata of {len(position.metadata)} characters for {partition.topic}/{partition.number}:"
                f" at most {most}"
            )


def check_record(record: Record) -> None:
    """Raise RecordRefused for a record no log of ours takes, so that it cannot spoil what is appended with it."""
    topic, value, key, headers, _, timestamp_ms = record
    if not isinstance(value, bytes | None) or not isinstance(key, bytes | None):
        raise RecordRefused(f"a record for {topic}: key and value are bytes or None")
    if headers and not all(isinstance(name, str) and isinstance(text, bytes) for name, text in headers):
        raise RecordRefused(f"a record for {topic}: a header is a str with bytes")
    if timestamp_ms is not None and not 0 <= timestamp_ms <= MAX_TIMESTAMP_MS:
        raise RecordRefused(f"a record for {topic}: timestamp {timestamp_ms} is not in ms since the epoch")
    size = (len(value) if value else 0) + (len(key) if key else 0)
    if size > MAX_RECORD_BYTES:
        raise RecordRefused(f"a record of {size} bytes for {topic}: at most {MAX_RECORD_BYTES} bytes")
