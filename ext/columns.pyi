"""The core's columns as the stages around it use them: runs on their way in, batches on their way out.

Nothing here outlives the push or the call it was made for. A batch's recipients stand in C arrays; a Python object is
made for one only when its attribute is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.send import Tier
from ext.schedule import Batches, Core
from ext.sends import Content, Flow, OpenSend, SendTable

class Columns:
    """What goes into the core with one push: a row per run (a send, or what is left of it), a column per fact."""

    runs: int
    recipients: int
    def __init__(self) -> None: ...
    def add(
        self,
        handle: int,
        send: OpenSend,
        attempt: int,
        not_before: int,
        positions: Sequence[int],
        ids: Sequence[bytes],
        apart: int = -1,
    ) -> None:
        """One run of ``send``; times are ns of the core, ids have 1..255 bytes. ``apart``: the handle of a content of
        their own, so that nobody else joins their call; these never expire."""

    def add_rows(self, batch: Batch, rows: Sequence[int], attempt: int, not_before: int, apart: int = -1) -> None:
        """One run: these rows of a batch, all of one send, again."""

    def push(self, core: Core, now_ns: int) -> None:
        """All of it at once; empty afterwards."""

def batches_of(popped: Batches, table: SendTable, now_ns: int) -> list[Batch]:
    """What a pop returned, batch by batch; ``now_ns``: when it was popped."""

class Ids(Sequence[str]):
    """A batch's recipients; a string is made of one when it is asked for."""

    def joined(self, between: bytes) -> bytes | None:
        """All of them, ``between`` each two, as they stand in a JSON string; None: one of them JSON would escape.
        Cost: a quarter of making the strings, joining and encoding them."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int) -> str: ...  # type: ignore[override]  # no slices

class Batch:
    """One batch out of the core. Row i of each column is one recipient. Columns are made anew at each asking."""

    flow: Flow
    content: Content
    table: SendTable
    channel: int
    popped_ns: int
    tier: Tier
    handles: list[int]
    positions: list[int]
    attempts: Sequence[int]
    sends: list[OpenSend]
    ids: Ids
    data: Sequence[Mapping[str, Any] | None]  # values of recipients' own; empty: nobody has any
    def __init__(self, popped: Batches, number: int, table: SendTable, now_ns: int) -> None: ...
    def __len__(self) -> int: ...
    def handle_of(self, row: int) -> int:
        """One of ``handles``, without the others. Raises IndexError."""

    def position_of(self, row: int) -> int:
        """One of ``positions``, likewise."""

    def name(self) -> str:
        """Our id of the batch: the same whenever exactly these recipients of these sends go together, until the
        platform has declined some (see OpenSend.decline)."""

    def stale(self) -> list[int]:
        """Rows of sends whose partition is no longer ours."""

    def deadline_ns(self) -> int:
        """The first of its sends' deadlines."""

    def without(self, rows: Sequence[int]) -> None:
        """Forget these rows."""
