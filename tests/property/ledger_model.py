"""What ext.ledger does, in plain Python and slowly."""

from __future__ import annotations

from collections.abc import Iterable


class Model:
    """Offsets as sets."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.stamps: dict[int, int] = {}  # of what is open

    def open_many(self, offsets: Iterable[int], timestamps_ms: Iterable[int]) -> None:
        for offset, stamp in zip(offsets, timestamps_ms, strict=True):
            self.stamps[offset] = stamp
            self.position = offset + 1

    def complete(self, offset: int) -> None:
        del self.stamps[offset]

    def is_done(self, offset: int) -> bool:
        return offset < self.position and offset not in self.stamps

    @property
    def watermark(self) -> int:
        return min(self.stamps, default=self.position)

    @property
    def oldest_ms(self) -> int | None:
        return self.stamps[self.watermark] if self.stamps else None
