"""The ledger of one partition: out-of-order completion, in-order watermark."""

from collections.abc import Sequence

from typing_extensions import Buffer

from engine.logs import Partition

class Ledger:
    """One partition under one assignment: what was read and is not complete.

    Offsets ascend; offsets between those read count as complete (the log skips what was compacted). Owned by one
    thread. C code may ``cimport`` it and complete without a Python object.
    """

    partition: Partition
    epoch: int
    committed: int  # the caller's: the position last committed
    stale: bool  # taken away: completions do nothing any more

    def __init__(self, partition: Partition, position: int, epoch: int) -> None:
        """Nothing read yet, ``position`` (0..2**62 - 1) is the next. MemoryError."""

    @property
    def position(self) -> int:
        """The next offset to read."""

    @property
    def watermark(self) -> int:
        """The first offset that is not complete."""

    @property
    def open(self) -> int:
        """Records read and not complete."""

    @property
    def oldest_ms(self) -> int | None:
        """Timestamp of the record at the watermark; None when nothing is open."""

    @property
    def uncommitted(self) -> int:
        """Records read and not covered by the last commit."""

    def open_many(self, offsets: Sequence[int] | Buffer, timestamps_ms: Sequence[int] | Buffer) -> None:
        """Records read, in order; buffers are of int64.

        Raises ValueError for offsets that do not ascend from ``position`` on, or columns of two lengths; nothing has
        changed then. Cost: 30 ns a record, 10 of a buffer.
        """

    def complete(self, offset: int) -> int:
        """The record is done with. ValueError when it is not open (any more). Cost: 10 ns from C, 40 from Python."""

    def complete_many(self, offsets: Buffer) -> None:
        """The same for a buffer of int64; stops with ValueError at the first that is not open."""

    def is_done(self, offset: int) -> bool:
        """Whether the record is complete."""
