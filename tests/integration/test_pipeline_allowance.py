"""What a tenant may send at `system`, and what becomes of the rest: served as `template`, and said so."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from aiohttp import web
from structlog.testing import capture_logs

from engine.audit import Audit, Finding, Window
from engine.audit_read import Reading
from engine.audit_runs import Runs
from engine.send import Outcome, Tier
from tests.integration.support import (
    QUICK,
    Arrived,
    Told,
    Worker,
    accept,
    channel,
    configured,
    gateway,
    send,
    working,
)

ALLOWED = QUICK.replace(
    "[tiers.system]\n",
    '[tiers.system]\nallowance = { recipients = 20, per = "1d", tenants = { oncall = 1_000 } }\n',
)
SAID = "a tenant is past its allowance of system"


def tiers_of(told: Told) -> Counter[tuple[str | None, str]]:
    """Recipients accepted, by tenant and the tier their receipts name; sends have one each."""
    found: Counter[tuple[str | None, str]] = Counter()
    for receipt in told.receipts:
        assert receipt.outcome is Outcome.ACCEPTED
        found[receipt.tenant, receipt.tier] += len(receipt.sends)
    return found


async def audited(worker: Worker, folder: Path) -> tuple[Audit, list[Finding]]:
    findings: list[Finding] = []
    audit = Audit(worker.config.tiers, Window(0, 1 << 62, None), 60_000, findings.append)
    (folder / "runs").mkdir()
    reading = Reading(worker.log, worker.config, Runs(folder / "runs"), lambda *_: None)
    await reading.run()
    reading.judge(audit)
    return audit, findings


async def test_what_is_more_than_the_allowance_is_served_as_template_and_counted_there(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), tiers=ALLOWED)
        with capture_logs() as said:
            async with working(config) as worker:
                for tenant, count in (("loud", 100), ("calm", 20), ("oncall", 100)):
                    sends = (send(f"{tenant}{n}", f"{tenant}{n}", tenant=tenant, meta=n) for n in range(count))
                    await worker.send("system", *sends)
                await worker.send("system", send("big", [f"b{n}" for n in range(21)], tenant="big"))
                told = await worker.judged()
                assert tiers_of(told) == {
                    ("loud", "system"): 20,
                    ("loud", "template"): 80,
                    ("calm", "system"): 20,
                    ("oncall", "system"): 100,
                    ("big", "template"): 1,
                }
                assert worker.pipeline.counters.taken_in == [140, 101, 0]
                assert worker.pipeline.gates.demoted == {"partner": 101}
                assert set(partner.ids.values()) == {1}
                audit, findings = await audited(worker, tmp_path)
                assert (audit.total.recipients, findings) == (241, [])
        lines = [(line["tenant"], line["recipients_as_template"]) for line in said if line["event"] == SAID]
        assert lines == [("loud", 1), ("big", 21)], "once a tenant and minute"


async def test_a_flood_of_system_delays_nobody_elses(tmp_path: Path) -> None:
    """The flood is first in every partition, and every call takes its time."""

    async def slow(call: Arrived) -> web.Response:
        await asyncio.sleep(0.02)
        return await accept(call)

    async with gateway(answer=slow) as partner:
        config = configured(tmp_path, channel("partner", partner.url, "batch = 1\nin_flight = 4"), tiers=ALLOWED)
        async with working(config) as worker:
            await worker.send("system", *(send(f"l{n}", f"l{n}", tenant="loud") for n in range(300)))
            await worker.send("system", *(send(f"c{n}", f"c{n}", tenant="calm") for n in range(10)))
            told = await worker.judged()
            order = [call.ids[0] for call in partner.calls]
            last = max(order.index(f"c{n}") for n in range(10))
            assert last < 150, "they went before most of the flood"
            assert tiers_of(told)["loud", "template"] == 280
            waits = worker.pipeline.core.lateness(Tier.SYSTEM).snapshot()[0]
            assert waits[-1] == 30, "no more than was allowed ever counted as system"


async def test_what_was_replayed_is_not_moved_again(tmp_path: Path) -> None:
    """It has had its turn; and the operator asked for it."""
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), tiers=ALLOWED)
        async with working(config) as worker:
            moved = (
                ("surgetank-origin", b"surgetank.system:0:7"),
                ("surgetank-hop", b"2"),
                ("surgetank-first-seen", b"1"),
                ("surgetank-attempts", b"0"),
                ("surgetank-reason", b"replay"),
                ("surgetank-detail", b""),
            )
            big = send("big", [f"b{n}" for n in range(21)], tenant="big", not_before=worker.clock.wall_ms() - 1)
            await worker.send("system", big, headers=moved)
            await worker.all_ended(21)
            assert worker.ended() == {Outcome.ACCEPTED: 21}
            assert worker.pipeline.counters.taken_in == [21, 0, 0]


async def test_without_an_allowance_nothing_is_moved(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with working(config) as worker:
            await worker.send("system", *(send(f"l{n}", f"l{n}", tenant="loud") for n in range(300)))
            assert tiers_of(await worker.judged()) == {("loud", "system"): 300}
