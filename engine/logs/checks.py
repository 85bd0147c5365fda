"""What both logs refuse alike."""

from __future__ import annotations

from collections.abc import Mapping

from engine.logs import Partition, Position

MAX_METADATA = 4_096  # characters; Kafka's offset.metadata.max.bytes by default


def check_metadata(positions: Mapping[Partition, Position]) -> None:
    """Raise ValueError for a note that would not be kept."""
    for partition, position in positions.items():
        if len(position.metadata) > MAX_METADATA:
            raise ValueError(
                f"metadata of {len(position.metadata)} characters for {partition.topic}/{partition.number}:"
                f" at most {MAX_METADATA}"
            )
