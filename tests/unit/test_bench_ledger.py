"""``bench ledger`` commits what it says, reads it again, and would say so if that were something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import ledger
from bench.ledger import PARTITIONS, configured, measure
from engine.logs import Partition
from ext.ledger import Ledger


async def test_its_figures_have_their_keys_and_what_was_committed_is_found_again(tmp_path: Path) -> None:
    figures = await measure(configured(tmp_path, None), 1_000 * PARTITIONS, 2)
    assert set(figures) == {
        "open_sends", "partitions", "commits", "commit_ms", "commit_cpu_ms", "loop_stall_ms", "map_bytes", "restore_ms",
    }  # fmt: skip
    assert set(figures["commit_ms"]) == {"median", "max", "first"}
    assert figures["open_sends"] == 12_000
    assert figures["map_bytes"] > 100 * PARTITIONS


async def test_a_ledger_that_knows_something_else_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = ledger._restored

    async def one_less(member: ledger.Member) -> dict[Partition, Ledger]:
        found = await restored(member)
        at = next(iter(found))
        found[at] = Ledger(at, 0, 1)
        return found

    monkeypatch.setattr(ledger, "_restored", one_less)
    with pytest.raises(RuntimeError, match="was not restored as it was committed"):
        await measure(configured(tmp_path, None), 1_000 * PARTITIONS, 1)
