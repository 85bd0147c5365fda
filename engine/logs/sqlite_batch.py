"""How records lie in the embedded log: in *batches*, one row for a run of records of one partition, packed as columns.

A batch costs one SQL statement whatever it holds, and each statement gives up and takes back the interpreter lock, so
fewer and larger rows are what keeps a busy event loop and the log's threads out of each other's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgpack

from engine.errors import LogUnusable
from engine.logs import Headers


class Columns(NamedTuple):
    """The records of one batch."""

    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]


def pack(columns: Columns) -> bytes:
    """One batch as bytes; what all records share (consecutive offsets, no keys, no headers) is left out."""
    offsets: Sequence[int] | None = columns.offsets
    if isinstance(offsets, range):
        offsets = None
    keys = columns.keys if any(key is not None for key in columns.keys) else None
    headers = columns.headers if any(columns.headers) else None
    packed: bytes = msgpack.packb((offsets, columns.timestamps_ms, keys, columns.values, headers))
    return packed


def unpack(first: int, data: bytes) -> Columns:
    """What ``pack`` made. Raises LogUnusable when it is anything else."""
    try:
        offsets, timestamps_ms, keys, values, headers = msgpack.unpackb(data, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise LogUnusable(f"the batch at offset {first} is damaged: {error}") from error
    count = len(values)
    if offsets is None:
        offsets = range(first, first + count)
    return Columns(offsets, timestamps_ms, keys or (None,) * count, values, headers or ((),) * count)
