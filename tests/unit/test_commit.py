"""The ledger: out-of-order completion, in-order watermark."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from engine.commit import Ledger
from engine.logs import Partition


def test_the_watermark_waits_for_the_first_open_record_and_jumps_over_gaps() -> None:
    ledger = Ledger(Partition("t", 0), 10, epoch=1)
    assert ledger.watermark == 10
    ledger.open_many([10, 11, 15], [100, 101, 105])
    ledger.complete(11)
    ledger.complete(15)
    assert (ledger.watermark, ledger.oldest_ms) == (10, 100)
    ledger.complete(10)
    assert (ledger.watermark, ledger.oldest_ms) == (16, None)


@given(offsets=st.sets(st.integers(0, 40), min_size=1), seed=st.randoms(use_true_random=False))
def test_the_watermark_is_always_the_first_offset_not_complete(offsets: set[int], seed: Random) -> None:
    ledger = Ledger(Partition("t", 0), 0, epoch=1)
    unread, undone, read = sorted(offsets), set[int](), 0
    while unread or undone:
        if unread and (not undone or seed.random() < 0.5):
            taken, unread = unread[:3], unread[3:]
            ledger.open_many(taken, taken)
            undone |= set(taken)
            read = taken[-1] + 1
        else:
            offset = seed.choice(sorted(undone))
            ledger.complete(offset)
            undone.remove(offset)
        assert ledger.watermark == min(undone, default=read)
        assert ledger.oldest_ms == min(undone, default=None)
