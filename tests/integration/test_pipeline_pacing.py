"""Pacing on the real path: what has time leaves spread out and in time; what has none does not wait for it.

Every send is a call. How many stand in a second is compared with how many there are, so that a slow machine, which
only spreads them more, cannot fail it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.clock import NS_PER_S
from engine.send import Tier
from ext.schedule import CALL_A_SECOND
from tests.integration.support import (
    Gateway,
    Worker,
    busiest,
    cancel,
    channel,
    configured,
    gateway,
    now_ms,
    send,
    working,
)

CALLS, DUE_S = 60, 8


@asynccontextmanager
async def paced(folder: Path, pacing: str, more: str = "") -> AsyncIterator[tuple[Gateway, Worker]]:
    tiers = f'[tiers.basic]\npacing = "{pacing}"\nlinger = "0s"\ndue_after = "{DUE_S}s"\n'
    async with gateway() as partner:
        config = configured(folder, channel("partner", partner.url, "batch = 1\nin_flight = 16"), more, tiers=tiers)
        async with working(config) as worker:
            await worker.send("basic", *(send(f"b{n}", f"b{n}") for n in range(CALLS)))
            yield partner, worker


@pytest.mark.parametrize("pacing", ["paced", "even"])
async def test_a_burst_leaves_spread_out_and_in_time_and_system_passes_it(tmp_path: Path, pacing: str) -> None:
    async with paced(tmp_path, pacing) as (partner, worker):
        await worker.until(lambda: bool(partner.calls))
        stats = worker.pipeline.core.stats()
        assert stats["pacing_calls"][Tier.BASIC] > CALLS // 2
        assert stats["paced"][Tier.BASIC] + stats["linger"][Tier.BASIC] > CALLS // 2
        await worker.send("system", send("s", "s"))
        await worker.judged()
        ids = [call.ids[0] for call in partner.calls]
        assert ids.index("s") < CALLS // 2, "it waited for what was there before it"
        assert busiest([call.at_ns for call in partner.calls if call.ids != ["s"]], 1.0) <= CALLS // 3
        assert len(ids) == CALLS + 1
        late = worker.pipeline.core.lateness(Tier.BASIC)
        counts, _ = late.snapshot()
        assert counts[late.edges.index(5 * NS_PER_S)] == CALLS, "late by more than a machine may stand still"


async def test_the_floor_is_the_configurations(tmp_path: Path) -> None:
    """Thirty a second, though eight would do."""
    pacing = '[pacing]\ntau = "0s"\nfloor = { calls = 30, per = "1s" }\n'
    async with paced(tmp_path, "paced", pacing) as (partner, worker):
        await worker.until(lambda: len(partner.calls) > 1)
        stats = worker.pipeline.core.stats()
        assert stats["pacing_floor"] == [0, 30 * CALL_A_SECOND, 30 * CALL_A_SECOND]
        assert stats["pacing_rate"][Tier.BASIC] >= 30 * CALL_A_SECOND
        await worker.judged()


async def test_without_pacing_it_leaves_at_once(tmp_path: Path) -> None:
    async with paced(tmp_path, "asap") as (partner, worker):
        await worker.until(lambda: len(partner.calls) == CALLS)
        await worker.judged()
        waits = worker.pipeline.core.queue_wait(Tier.BASIC, 0)
        counts, _ = waits.snapshot()
        assert counts[waits.edges.index(5 * NS_PER_S)] == CALLS, "nothing waited for its due time"
        assert worker.pipeline.core.stats()["pacing_rate"][Tier.BASIC] == 0


async def test_template_paces_what_is_due_later_than_usual_and_nothing_else(tmp_path: Path) -> None:
    tiers = '[tiers.template]\nlinger = "0s"\n[pacing]\nfloor = { calls = 1, per = "1h" }\n'
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, "batch = 1"), tiers=tiers)
        async with working(config) as worker:
            due = now_ms() + 3_600_000
            await worker.send("template", *(send(f"i{n}", f"i{n}", campaign="k", due=due) for n in range(40)))
            await worker.until(lambda: worker.pipeline.core.stats()["paced"][Tier.TEMPLATE] > 30, "an hour is long")
            await worker.send("template", *(send(f"j{n}", f"j{n}", campaign="k") for n in range(40)))
            await worker.until(lambda: sum(id.startswith("j") for id in partner.ids) == 40, "these are due as usual")
            assert worker.pipeline.core.stats()["paced"][Tier.TEMPLATE] > 30
            await worker.append(cancel("k", now_ms()))
            await worker.judged()
