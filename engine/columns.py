"""The core's columns on the Python side: sends on their way in, batches on their way out.

Pure. Nothing here outlives the push or the call it was made for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise

from engine.open_sends import Flow, OpenSend
from engine.send import Tier
from ext.schedule import Batches, Core

CODES = "IBIIIIBqqqqqI"  # of the core's columns, one a row's place


class Columns:
    """What goes into the core with one push: a row per run (a send, or what is left of it), a column per fact."""

    __slots__ = ("count", "ids", "positions", "rows")

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.positions: list[int] = []
        self.ids: list[bytes] = []

    def add(
        self, handle: int, send: OpenSend, attempt: int, not_before: int, positions: Sequence[int], ids: Sequence[bytes]
    ) -> None:
        """One run of ``send``; times are ns of the core."""
        flow = send.flow
        self.rows.append(
            (
                handle,
                flow.tier,
                flow.account_handle,
                flow.tenant_handle,
                flow.campaign_handle,
                send.content.handle,
                attempt,
                not_before,
                send.due_ns,
                send.deadline_ns,
                send.linger_ns,
                send.pushed_ns,
                len(ids),
            )
        )
        self.positions.extend(positions)
        self.ids.extend(ids)

    def push(self, core: Core, now_ns: int) -> None:
        """All of it at once; empty afterwards."""
        if self.rows:
            columns = [array(code, column) for code, column in zip(CODES, zip(*self.rows, strict=True), strict=True)]
            lengths = bytes(map(len, self.ids))
            push: Callable[..., None] = core.push_many
            push(now_ns, *columns, array("H", self.positions), lengths, b"".join(self.ids))
            self.rows, self.positions, self.ids = [], [], []


class Batch:
    """One batch out of the core, as Python values. Row i of each column is one recipient."""

    __slots__ = ("attempts", "channel", "flow", "handles", "ids", "popped_ns", "positions", "sends", "tier")

    def __init__(self, batches: Batches, number: int, opens: Mapping[int, OpenSend], now_ns: int) -> None:
        start, end = batches.start[number], batches.start[number + 1]
        self.handles: list[int] = batches.send[start:end].tolist()
        self.positions: list[int] = batches.position[start:end].tolist()
        self.attempts: list[int] = batches.attempt[start:end].tolist()
        self.sends = [opens[handle] for handle in self.handles]
        ends: list[int] = batches.id_end[start : end + 1].tolist()
        first = ends[0]
        raw = batches.ids[first : ends[-1]]
        text = raw.decode()
        if len(text) == len(raw):  # ASCII: byte offsets are character offsets
            self.ids = [text[a - first : b - first] for a, b in pairwise(ends)]
        else:
            self.ids = [raw[a - first : b - first].decode() for a, b in pairwise(ends)]
        self.flow: Flow = self.sends[0].flow
        self.tier: Tier = self.flow.tier
        self.channel: int = batches.channel[number]
        self.popped_ns = now_ns

    def name(self) -> str:
        """Our id of the batch: the same whenever exactly these recipients of these sends go together."""
        digest = blake2b(b"".join([send.key for send in self.sends]), digest_size=16)
        digest.update(array("H", self.positions).tobytes())
        return digest.hexdigest()

    def only(self, keep: Sequence[int]) -> None:
        """Forget the other rows."""
        for column in ("handles", "positions", "attempts", "sends", "ids"):
            values = getattr(self, column)
            setattr(self, column, [values[row] for row in keep])
