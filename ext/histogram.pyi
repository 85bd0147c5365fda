"""A histogram that C code can fill without touching Python."""

from collections.abc import Sequence

from typing_extensions import Buffer

class Histogram:
    """Counts of int64 values by upper bound, and their exact sum.

    ``edges``: 1..65,536 strictly ascending int64 upper bounds, a value equal to one is within it; +inf is implied.
    ValueError otherwise. An observation takes about 20 ns from C.
    """

    def __init__(self, edges: Sequence[int]) -> None: ...
    @property
    def edges(self) -> list[int]: ...
    def observe(self, value: int, n: int = 1) -> None:
        """Count ``value`` (int64) ``n`` times, 0..2**63 - 1."""

    def observe_many(self, values: Buffer) -> None:
        """Count each of a contiguous buffer of int64 (native byte order)."""

    def snapshot(self) -> tuple[list[int], int]:
        """How many were at most each edge, in the end all of them (+inf); and the sum."""
