"""Takes in sends of the common kind: msgpack, plain recipients, a flow and a content met before, an id not seen before.

It leaves the first record that is anything else, for engine.consume to take in by engine.decode and engine.admit, and
is then told of the flow (``learn``). So whatever it does can be compared with what they do.
"""

from collections.abc import Sequence

from engine.cancelled import Cancelled
from engine.commit import Ledger
from engine.logs import Headers
from engine.overload import Gate
from ext.columns import Columns
from ext.gates import Meter
from ext.seen import SeenTable
from ext.sends import Flow, SendTable

PLAIN_ID: bytes  # the characters of a recipient's id that every platform takes as they are

class Taker:
    """One tier's. ``cancelled`` holds the campaigns somebody has cancelled; the numbers are of the last ``take``.
    ``meters``: of tenants (None: no allowance; one without waits for Python to make it), ``gates``: of channels."""

    sends: int
    recipients: int
    size: int  # bytes
    unknown_keys: int
    def __init__(
        self,
        table: SendTable,
        seen: SeenTable,
        columns: Columns,
        cancelled: Cancelled,
        *,
        meters: dict[str, Meter] | None,
        gates: dict[str, Gate],
        due_after_ms: int,
        max_age_ms: int,
        linger_ns: int,
        horizon_ns: int,
    ) -> None: ...
    def take(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        headers: Sequence[Headers],
        offsets: Sequence[int],
        stamps_ms: Sequence[int],
        tier: int,
        ledger: Ledger,
        topic: str,
        partition: int,
        place: int,
        now_ns: int,
        now_ms: int,
        offset_ns: int,
        start: int,
    ) -> int:
        """Take records from ``start`` on; returns the first not taken (their number: none is left). ``place``: of the
        partition, in the table of ids seen. Cost: 0.8 us for 240 bytes and one recipient."""

    def learn(self, value: bytes, flow: Flow) -> None:
        """A record was taken in elsewhere, into this flow: the next of its kind will be known."""
