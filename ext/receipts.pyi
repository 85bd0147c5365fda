"""The receipts of a batch's recipients, written without an object for each."""

from array import array
from collections.abc import Sequence

from engine.commit import Ledger
from ext.columns import Batch
from ext.histogram import Histogram
from ext.sends import OpenSend

class Told:
    """What ``tell`` did. ``records``: receipts; ``completions``: records of sends that have nobody left, by runs of one
    ledger (offsets, int64); ``unclaimed``: those of the sends whose id is free again; ``settled``: which positions
    (uint16) of each record that has somebody left; ``count``: recipients."""

    records: list[bytes]
    completions: list[tuple[Ledger, array[int]]]
    settled: list[tuple[Ledger, int, array[int]]]
    unclaimed: list[OpenSend]
    count: int

def tell(
    batch: Batch,
    who: range | Sequence[int],
    keeps_id: bool,
    head: bytes,
    name: str,
    platform_id: str,
    wall_ms: int,
    end_to_end: Histogram,
    limit: int,
) -> Told:
    """These rows (a range: all) have ended: out of the table with what is finished. ``keeps_id``: somebody may have
    got it. ``head``: of ``wire.receipt_head``; ``name``: the call's batch; both names have at most 65,535 bytes. The
    sends of a record have at most ``limit`` bytes, or one recipient. Cost: about 0.15 us a send."""
