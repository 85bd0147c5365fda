"""Limits in the running engine, judged by when calls arrived at the platform."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random

from aiohttp import web

from engine.wire_control import Command, Target
from tests.integration.support import (
    IN_MEMORY,
    Arrived,
    Gateway,
    busiest,
    cancel,
    channel,
    configured,
    gateway,
    now_ms,
    order,
    partnered,
    send,
    working,
)
from tests.integration.test_pipeline_process import Engine, append, serving


async def test_a_limit_is_kept_in_any_window_and_part_of_it_for_system(tmp_path: Path) -> None:
    more = 'batch = 1\nin_flight = 32\nlimits = [{ calls = 20, per = "500ms" }]'
    async with partnered(tmp_path, more) as (partner, worker):
        await worker.send("basic", *(send(f"b{n}", f"b{n}") for n in range(45)))
        await worker.until(lambda: len(partner.calls) >= 18, "basic has had its share")
        await worker.send("system", *(send(f"s{n}", f"s{n}") for n in range(3)))
        await worker.judged()
        assert busiest([call.at_ns for call in partner.calls], 0.5) <= 20
        # Two are kept for system: what basic may ever use is 18.
        assert busiest([call.at_ns for call in partner.calls if call.ids[0][0] == "b"], 0.5) <= 18


async def test_limits_of_accounts_and_of_recipients(tmp_path: Path) -> None:
    more = (
        'batch = 10\nlimits = [{ recipients = 30, per = "400ms" }]\n'
        '[channels.partner.accounts.a]\nlimits = [{ calls = 1, per = "300ms" }]\n[channels.partner.accounts.b]\n'
    )
    async with partnered(tmp_path, more) as (partner, worker):
        a, b = ([f"{account}{n}" for n in range(30)] for account in "ab")
        await worker.send("basic", send("a", a, account="a"), send("b", b, account="b"))
        await worker.judged()
        assert Counter(call.account for call in partner.calls)["a"] == 3
        assert busiest([call.at_ns for call in partner.calls for _ in call.ids], 0.4) <= 30
        assert busiest([call.at_ns for call in partner.calls if call.account == "a"], 0.3) == 1


async def test_a_limit_of_a_tier_holds_over_all_channels_and_for_no_other(tmp_path: Path) -> None:
    tiers = '[tiers.basic]\npacing = "asap"\nlinger = "0s"\nlimits = [{ calls = 2, per = "300ms" }]\n'
    async with gateway() as one, gateway() as other:
        more = "batch = 1"
        config = configured(tmp_path, channel("a", one.url, more), channel("b", other.url, more), tiers=tiers)
        async with working(config) as worker:
            for tier in ("basic", "template"):
                sends = (send(f"{tier}{n}{to}", f"{tier}{n}", to) for n in range(3) for to in "ab")
                await worker.send(tier, *sends)
            await worker.judged()
        calls = [call for partner in (one, other) for call in partner.calls]
        assert busiest([call.at_ns for call in calls if call.ids[0].startswith("basic")], 0.3) == 2
        assert len(calls) == 12


async def test_no_window_is_over_at_a_platform_behind_stalls_and_slow_connections(tmp_path: Path) -> None:
    """The loop stands still now and then, between a call's pop and its write too, and answers take their time."""
    wait = Random(5)

    async def slow(_: Arrived) -> web.Response:
        await asyncio.sleep(wait.uniform(0, 0.08))
        return web.json_response({"results": []})

    async def stalls() -> None:
        while True:
            await asyncio.sleep(wait.uniform(0.005, 0.05))
            time.sleep(wait.uniform(0, 0.1))  # noqa: ASYNC251  what is tested

    more = 'batch = 1\nin_flight = 32\nlimits = [{ calls = 10, per = "200ms" }]'
    async with partnered(tmp_path, more) as (partner, worker):
        partner.answer = slow
        stalling = asyncio.create_task(stalls())
        await worker.send("basic", *(send(f"b{n}", f"b{n}") for n in range(80)))
        await worker.judged()
        stalling.cancel()
        assert busiest([call.at_ns for call in partner.calls], 0.2) <= 10
        assert len(partner.calls) == 80


def gauge(metrics: str, state: str) -> float:
    """Basic recipients in that state."""
    found = re.search(rf'surgetank_queue_recipients{{state="{state}",tier="basic"}} (\S+)', metrics)
    assert found is not None, metrics
    return float(found[1])


async def exhausted(engine: Engine) -> None:
    """Wait until what is left waits for a limit and nothing is under way."""
    async with asyncio.timeout(30):
        while True:
            _, metrics = await engine.probe("metrics")
            if gauge(metrics, "throttled") and not gauge(metrics, "inflight"):
                return
            await asyncio.sleep(0.02)


async def arrived(partner: Gateway, calls: int) -> None:
    """Wait until so many are there."""
    async with asyncio.timeout(30):
        while len(partner.calls) < calls:  # noqa: ASYNC110  they come from another process
            await asyncio.sleep(0.01)


async def test_a_killed_engine_breaks_no_limit_when_it_is_back_and_loses_what_was_under_way(tmp_path: Path) -> None:
    """Of a day's 60 calls a crash may cost the eight that were under way: no portion is granted ahead of so few."""
    lives, day, slots = 3, 60, 8
    noon = f"Etc/GMT{time.gmtime().tm_hour - 12:+d}"  # where the day does not end while this runs
    limits = f'limits = [{{ calls = 20, per = "1500ms" }}, {{ calls = {day}, per = "1d", zone = "{noon}" }}]'
    more = f"batch = 1\nin_flight = {slots}\n{limits}"
    async with gateway() as partner:
        for life in range(lives):
            async with serving(tmp_path, channel("partner", partner.url, more)) as engine:
                if life == 0:
                    await engine.ready()
                    await append(tmp_path, *(send(f"i{n}", f"u{n}") for n in range(200)))
                await arrived(partner, len(partner.calls) + 5)
                engine.process.send_signal(signal.SIGKILL)
                assert await engine.ended() == -signal.SIGKILL
        async with serving(tmp_path, channel("partner", partner.url, more)) as engine:
            await engine.ready()
            await arrived(partner, (day - day // 10) - lives * slots)
            await exhausted(engine)
        stamps = [call.at_ns for call in partner.calls]
        assert busiest(stamps, 1.5) <= 20
        assert day - day // 10 - lives * slots <= len(stamps) <= day - day // 10, "a tenth is kept for system"


async def test_a_tenant_has_its_weight_and_keeps_to_its_limits_over_a_restart(tmp_path: Path) -> None:
    tenants = '[tenants.t]\nweight = 3\nlimits = [{ recipients = 4, per = "1h" }]\n[tenants.w]\nweight = 3\n'
    limited = "batch = 1\nin_flight = 1\n[channels.partner.accounts.a]\n"
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, limited), tenants, IN_MEMORY)
        async with working(config) as worker:
            await worker.append(order("pause", "p", tier="basic"))
            await worker.send("basic", *(send(f"w{n}", f"w{n}", tenant="w") for n in range(30)))
            await worker.send("basic", *(send(f"v{n}", f"v{n}", tenant="v") for n in range(30)))
            await worker.send("basic", send("t", [f"t{n}" for n in range(9)], tenant="t"))
            await worker.until(lambda: worker.pipeline.core.stats()["paused"][2] == 69, "all of it waits")
            await worker.append(order("resume", "r", tier="basic"))
            await worker.until(lambda: worker.ended().total() == 64, "others go on")
            first = Counter(call.ids[0][0] for call in partner.calls[:40])
            assert 2.5 <= first["w"] / first["v"] <= 3.5
            assert Counter(call.ids[0][0] for call in partner.calls)["t"] == 4
            (use,) = worker.pipeline.limits.uses()
            assert (str(use.on), use.limit) == ("tenant t", "4 recipients per 1h")
            assert (use.number, use.used, use.in_flight) == (4, 4, 0)
        async with working(config) as worker:
            await worker.until(lambda: worker.pipeline.core.stats()["throttled"][2] > 0, "still spent")
            await worker.send("basic", send("x", "x", tenant="v"))
            await worker.until(lambda: partner.ids["x"] == 1, "others go")
            assert Counter(call.ids[0][0] for call in partner.calls)["t"] == 4


async def test_every_tenant_has_the_limit_of_its_channel_for_itself(tmp_path: Path) -> None:
    more = 'batch = 1\ntenant_limits = [{ calls = 3, per = "1h" }]'
    async with gateway() as one, gateway() as other:
        config = configured(tmp_path, channel("partner", one.url, more), channel("free", other.url), IN_MEMORY)
        async with working(config) as worker:
            for tenant in "abc":
                sends = (send(f"{tenant}{n}", f"{tenant}{n}", tenant=tenant, campaign="k") for n in range(6))
                await worker.send("basic", *sends)
                await worker.send("basic", send(f"{tenant}f", f"{tenant}f", "free", tenant=tenant))
            await worker.until(lambda: len(one.calls) == 9 and len(other.ids) == 3, "each has had three")
            await worker.until(lambda: worker.pipeline.core.stats()["throttled"][2] == 9, "and no more")
            assert Counter(call.ids[0][0] for call in one.calls) == {"a": 3, "b": 3, "c": 3}
            hold, *_ = worker.pipeline.orders.obey(why("k", "b")).why or []
            assert (hold.held, str(hold.on), hold.limit) == ("limit", "tenant b on channel partner", "3 calls per 1h")
            await worker.append(cancel("k", now_ms()))
            await worker.judged()


def why(campaign: str, tenant: str) -> Command:
    """A question."""
    on, at = Target(tenant=tenant, campaign=campaign), now_ms()
    return Command(id="q", command="why", on=on, at=at, expires=at + 60_000)
