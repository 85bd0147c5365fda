"""Every store of the dedupe benchmark remembers what it was told, over a restart too; its figures have their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.dedupe import STORES, keys, measure


@pytest.mark.parametrize("name", STORES)
def test_a_store_knows_what_it_has_seen(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path)
    first, second, third = keys(0, 3)
    assert [store.claim(key, number) for number, key in enumerate((first, second, first))] == [True, True, False]
    store.flush()
    assert [store.claim(key, 7) for key in (second, third)] == [False, True]
    store.flush()
    store.close()
    store = STORES[name](tmp_path)
    assert [store.claim(key, 9) for key in (third, first)] == [False, False]
    store.close()


def test_a_measurement_has_the_documented_keys() -> None:
    figures = measure("table", 100, 50)
    assert set(figures) == {
        "claims_per_s", "claim_us", "ask_us", "open_s", "disk_bytes_per_id", "rss_bytes_per_id",
    }  # fmt: skip
    assert figures["claims_per_s"] > 0
