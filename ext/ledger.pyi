"""The ledger of one partition: out-of-order completion, in-order watermark, and a map of what is done above it."""

from collections.abc import Sequence
from typing import final

from typing_extensions import Buffer

from engine.logs import Partition

RUNS: int
BITSET: int  # codecs of a map: see Snapshot
MAX_SPAN: int  # offsets a map may speak of

@final
class Ledger:
    """One partition under one assignment: what was read and is not complete.

    Offsets ascend; offsets between those read count as complete (the log skips what was compacted). Owned by one
    thread. C code may ``cimport`` it and complete without a Python object.
    """

    partition: Partition
    epoch: int
    committed: int  # the caller's: the position last committed
    leaving: bool  # the caller's: being given back, nothing new of it begins
    stale: bool  # given back, or taken away: completions do nothing any more
    refuted: bool  # what was restored turned out to be of another topic

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

    def open_many(self, offsets: Sequence[int] | Buffer, timestamps_ms: Sequence[int] | Buffer) -> int:
        """Records read, in order; buffers are of int64. Returns how many of them a restored map speaks of.

        Raises ValueError for offsets that do not ascend from ``position`` on, or columns of two lengths; nothing has
        changed then. Cost: 30 ns a record, 10 of a buffer.
        """

    def complete(self, offset: int) -> int:
        """The record is done with. ValueError when it is not open (any more). Cost: 10 ns from C, 40 from Python."""

    def complete_many(self, offsets: Buffer) -> None:
        """The same for a buffer of int64; stops with ValueError at the first that is not open."""

    def is_done(self, offset: int) -> bool:
        """Whether the record is complete, or a restored map says so."""

    def settle(self, offset: int, total: int, positions: Buffer) -> None:
        """These recipients (a buffer of uint16, each below ``total``) of an open record are done with.

        ValueError when the record is not open. Cost: 0.1 us, and 1 ns a recipient.
        """

    def settled(self, offset: int) -> frozenset[int]:
        """Which recipients of a record that is not complete are done with; here or before a restart."""

    @property
    def dirty(self) -> bool:
        """Whether a commit would say something new."""

    @property
    def unsaved(self) -> int:
        """Completions and settlements since the last commit."""

    def snapshot(self) -> Snapshot:
        """What a commit would say now. Cost: a copy, about 1 us for 10,000 offsets."""

    def commit(self, snapshot: Snapshot) -> None:
        """It was committed."""

    def restore(self, stamp_ms: int, codec: int, payload: bytes) -> None:
        """Before anything is read: what a Snapshot taken at the same position said.

        The first record read confirms it: at another offset, or with another timestamp than ``stamp_ms``, it is of
        another topic of that name, and the ledger forgets what it said (``refuted``). ValueError for what is no map;
        nothing has changed then. Never more than 64 MiB of memory, whoever wrote it.
        """

@final
class Snapshot:
    """What is done of one partition, and what its commit would name. Does not change; may be used on any thread."""

    offset: int  # the position to commit: the watermark, or (see marks.h, marks_anchor) the record before it
    stamp_ms: int  # timestamp of the record there; means nothing while empty
    span: int  # offsets from there to the end of what is known

    @property
    def empty(self) -> bool:
        """Nothing is done above the position."""

    def sizes(self) -> tuple[int, int]:
        """Bytes of the payload by codec: RUNS, BITSET."""

    def payload(self, codec: int, most: int = ...) -> bytes:
        """As docs/wire-format.md has it; of the first ``most`` offsets."""
