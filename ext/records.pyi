"""Kafka's records as columns, made without an object for a record: the bytes stay where the fetch put them, and a key,
value or header becomes an object when somebody asks for it (each time anew)."""

from collections.abc import Sequence

from typing_extensions import Buffer

class RecordBatch:
    """The records of one batch of format v2, uncompressed; ``data`` is kept while anything points into it.
    ``append_ms``: the timestamp of all of them, -1: each has its own, counted from ``first_ms``."""

    def __init__(self, data: Buffer, count: int, first_offset: int, first_ms: int, append_ms: int = -1) -> None: ...
    def read(self, most: int) -> Records:
        """The next ones; none at its end. Raises ValueError: damaged. Cost: about 20 ns a record."""

class Records:
    """Some records, offsets ascending."""

    offset: int  # of the last
    offsets: Sequence[int]  # an array, like the next
    timestamps_ms: Sequence[int]  # -1: none
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[tuple[tuple[str, bytes], ...]]  # a header without a value is empty
    def __len__(self) -> int: ...
    def since(self, offset: int) -> Records:
        """Those from there on."""

def joined(parts: Sequence[Records]) -> Records: ...
def single(offset: int, stamp_ms: int, key: bytes | None, value: bytes | None) -> Records:
    """One record, without headers."""
