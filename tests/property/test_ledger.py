"""The ledger against a plain model of it."""

from __future__ import annotations

from array import array
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.logs import Partition
from ext.ledger import Ledger
from tests.property.ledger_model import Model

PLACE = Partition("t", 0)
# What a partition can look like: no gaps, some, a compacted topic, a jump over what retention removed.
STEPS = st.sampled_from([[1], [1, 1, 1, 2, 3], [1, 40, 63, 64, 65, 128], [1, 1, 1, 1, 1, 10_000, 1 << 18]])


def same(ledger: Ledger, model: Model) -> None:
    assert (ledger.position, ledger.watermark) == (model.position, model.watermark)
    assert (ledger.open, ledger.oldest_ms) == (len(model.stamps), model.oldest_ms)


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([0, 1, 63, 64, 2**40]), steps=STEPS, depth=st.integers(0, 400), seed=st.integers(0, 2**32))
def test_it_does_as_the_model_does(start: int, steps: list[int], depth: int, seed: int) -> None:
    random, ledger, model = Random(seed), Ledger(PLACE, start, 1), Model(start)
    undone: list[int] = []
    for _ in range(60):
        if len(undone) <= random.randint(0, depth):
            offsets = [model.position - 1]
            for _ in range(random.choice([1, 3, 100])):
                offsets.append(offsets[-1] + random.choice(steps))
            stamps = [random.randrange(-1, 2**53) for _ in offsets[1:]]
            form = as_column if random.random() < 0.5 else list[int]
            ledger.open_many(form(offsets[1:]), form(stamps))
            model.open_many(offsets[1:], stamps)
            undone += offsets[1:]
            random.shuffle(undone)
            if random.random() < 0.3:
                undone.sort(reverse=random.random() < 0.5)
        else:
            some = [undone.pop() for _ in range(random.randint(1, len(undone)))]
            if random.random() < 0.5:
                ledger.complete_many(array("q", some))
            else:
                for offset in some:
                    ledger.complete(offset)
            for offset in some:
                model.complete(offset)
        same(ledger, model)
        for _ in range(20):
            offset = random.randrange(max(model.watermark - 70, 0), model.position + 70)
            assert ledger.is_done(offset) == model.is_done(offset)


def as_column(values: list[int]) -> array[int]:
    return array("q", values)


@given(start=st.integers(0, 200), count=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_what_is_not_open_cannot_complete(start: int, count: int, seed: int) -> None:
    ledger, random = Ledger(PLACE, start, 1), Random(seed)
    offsets = list(range(start, start + count))
    ledger.open_many(offsets, offsets)
    random.shuffle(offsets)
    for number, offset in enumerate(offsets):
        ledger.complete(offset)
        for wrong in (offset, start - 1, start + count):
            with pytest.raises(ValueError, match=f"at {wrong}"):
                ledger.complete(wrong)
        assert ledger.open == count - number - 1
    assert ledger.watermark == start + count


def test_columns_that_do_not_ascend_change_nothing() -> None:
    ledger = Ledger(PLACE, 5, 1)
    ledger.open_many([5, 9], [1, 2])
    for offsets in ([9], [4], [10, 10], [10, 12, 11], [2**62], [-1]):
        with pytest.raises(ValueError):
            ledger.open_many(offsets, offsets)
    with pytest.raises(ValueError, match="2 offsets and 1"):
        ledger.open_many([10, 11], [1])
    assert (ledger.position, ledger.open, ledger.watermark, ledger.oldest_ms) == (10, 2, 5, 1)


def test_a_stale_ledger_takes_no_completion() -> None:
    ledger = Ledger(PLACE, 0, 1)
    ledger.open_many([0, 1], [7, 8])
    ledger.stale = True
    ledger.complete(0)
    ledger.complete_many(array("q", [0, 1, 99]))
    assert (ledger.watermark, ledger.open) == (0, 2)
