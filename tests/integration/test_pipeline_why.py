"""What a running worker answers when it is asked why something has not left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from engine import wire_control
from engine.clock import NS_PER_S
from engine.deliver import MISSES
from engine.logs import Record
from engine.wire_control import Hold, Target
from ext.schedule import CALL_A_SECOND
from tests.integration.support import (
    DEADLINE_S,
    Ahead,
    Arrived,
    Worker,
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

HOUR_MS = 3_600_000
SOON_MS = 600_000  # within the horizon: in memory


async def asked(worker: Worker, id: str, **about: Any) -> list[Hold]:
    """The worker's answer; ``about``: a Target's keys, or ``send``."""
    at, wanted = now_ms(), about.pop("send", None)
    on: dict[str, Any] = {"send": wanted} if wanted else {"on": Target(**about)}
    key, value = wire_control.encode_command(
        wire_control.Command(id=id, command="why", at=at, expires=at + 60_000, **on)
    )
    await worker.append(Record("surgetank.control", value, key))
    async with asyncio.timeout(DEADLINE_S):
        while True:
            worker.check()
            for reply in (await worker.told()).replies:
                if reply.reply_to == id:
                    assert isinstance(reply.why, list)
                    return reply.why


async def test_each_holder_is_named_while_it_holds(tmp_path: Path) -> None:
    more = 'batch = 1\nlimits = [{ calls = 1, per = "1h" }]\n[channels.partner.accounts.a]\n'
    async with partnered(tmp_path, more) as (partner, worker):
        assert await asked(worker, "q0", campaign="k") == []
        await worker.send("basic", send("first", campaign="other"))
        await worker.until(lambda: partner.calls and not worker.pipeline.counters.in_flight[2], "the hour's only call")
        before = now_ms()
        await worker.send("basic", send("i", ["a", "b"], campaign="k", tenant="t"))
        await worker.send("template", send("j", ["c"], campaign="k", not_before=before + SOON_MS))
        await worker.until(lambda: len(worker.pipeline.opens) == 2, "taken in")
        await worker.until(lambda: worker.pipeline.core.stats()["throttled"][2] == 2, "throttled")
        scheduled, limited = sorted(await asked(worker, "q1", campaign="k"), key=lambda hold: hold.held, reverse=True)
        assert (limited.tier, limited.channel, limited.account, limited.tenant) == ("basic", "partner", "a", "t")
        assert (limited.held, limited.on, limited.limit) == ("limit", Target(channel="partner"), "1 calls per 1h")
        assert (limited.sends, limited.ready) == (1, 2)
        assert limited.until is not None
        assert before + HOUR_MS - 20_000 <= limited.until <= now_ms() + HOUR_MS
        assert (scheduled.tier, scheduled.tenant, scheduled.held, scheduled.ready) == ("template", "a", "time", 0)
        assert scheduled.until is not None
        assert abs(scheduled.until - before - SOON_MS) < 50
        (only,) = await asked(worker, "q2", send="j")
        assert (only.send, only.held, only.tier) == ("j", "time", "template")
        await worker.append(order("pause", "p", tenant="t"))
        (paused,) = await asked(worker, "q3", campaign="k", tenant="t")
        assert (paused.held, paused.on, paused.limit) == ("pause", Target(tenant="t"), None)
        await worker.append(cancel("k", now_ms()))
        await worker.until(lambda: not worker.pipeline.opens, "cancelled")
        assert await asked(worker, "q4", campaign="k") == []


async def test_a_rest_the_platform_asked_for_is_explained_and_counted(tmp_path: Path) -> None:
    clock = Ahead()
    busy, calls = True, 0

    async def answer(arrived: Arrived) -> web.Response:
        nonlocal calls
        calls += 1
        if not busy or arrived.account == "b":
            return web.json_response({})
        return web.json_response({}, status=503, headers={"Retry-After": "300"} if calls > MISSES else {})

    more = 'retry = { first = "1ms", most = "1ms" }\n[channels.partner.accounts.a]\n[channels.partner.accounts.b]\n'
    async with partnered(tmp_path, more, answer, clock) as (partner, worker):
        await worker.send("basic", send("i", campaign="k", account="a"))
        await worker.until(lambda: worker.pipeline.counters.throttled["partner"] == 1, "told to rest")
        await worker.send("basic", send("j", campaign="l", account="a"))
        await worker.until(lambda: worker.pipeline.core.stats()["throttled"][2] == 1, "the account rests")
        (hold,) = await asked(worker, "q", campaign="l")
        assert (hold.held, hold.on, hold.limit) == ("block", Target(channel="partner", account="a"), None)
        assert hold.until is not None
        assert 0 < hold.until - now_ms() <= 300_000
        busy = False
        await worker.send("basic", send("k", "v", account="b"))
        await worker.until(lambda: partner.ids["v"] == 1, "the other account does not rest")
        clock.ahead_ns += 301 * NS_PER_S
        await worker.judged()


async def test_what_pacing_holds_is_told_with_its_rate_and_until_about_when(tmp_path: Path) -> None:
    """A call a minute or so: forty in half an hour."""
    tiers = '[tiers.basic]\nlinger = "0s"\ndue_after = "30m"\n[pacing]\nfloor = { calls = 1, per = "1h" }\n'
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, "batch = 1"), tiers=tiers)
        async with working(config) as worker:
            at = now_ms()
            await worker.send("basic", *(send(f"i{n}", f"u{n}", campaign="k") for n in range(40)))
            await worker.until(lambda: len(worker.pipeline.opens) and partner.calls, "one has left")
            await worker.until(lambda: worker.pipeline.core.stats()["paced"][2] > 30, "the others are held back")
            await worker.until(
                lambda: (worker.pipeline.core.pace(2, 0) or [0, 0])[1] > CALL_A_SECOND // 60, "and counted"
            )
            (hold,) = await asked(worker, "q", campaign="k")
            assert (hold.held, hold.limit, hold.tier) == ("pacing", None, "basic")
            assert hold.on in (Target(channel="partner"), Target(tier="basic"))
            assert hold.rate is not None
            assert 1 / 60 < hold.rate < 1
            assert hold.until is not None
            assert now_ms() < hold.until < at + 1_800_000
            await worker.append(cancel("k", now_ms()))
            await worker.judged()


async def test_who_has_had_its_messages_is_told_by_which_rule(tmp_path: Path) -> None:
    """And who waits for its time is not."""
    rules = 'frequency = [{ messages = 9, per = "1s" }, { messages = 1, per = "1m" }]'
    async with partnered(tmp_path, f"{rules}\n[channels.partner.accounts.a]\n") as (_, worker):
        before = now_ms()
        await worker.send("basic", *(send(f"i{n}", "one", campaign="k", content={"text": str(n)}) for n in range(2)))
        await worker.send("basic", send("later", "two", campaign="l", not_before=before + SOON_MS))
        await worker.until(lambda: worker.pipeline.core.stats()["waiting"][2] == 2, "one waits, and one for its time")
        (hold,) = await asked(worker, "q0", campaign="k")
        assert (hold.held, hold.limit, hold.ready) == ("frequency", "1 messages per 1m", 0)
        assert hold.on == Target(channel="partner", account="a")
        assert hold.until is not None
        assert before + 60_000 <= hold.until <= now_ms() + 83_000, "the other's call takes 20 s at most"
        (other,) = await asked(worker, "q1", campaign="l")
        assert (other.held, other.limit, other.on) == ("time", None, None)
        await worker.append(cancel("k", now_ms()), cancel("l", now_ms()))
        await worker.until(lambda: not worker.pipeline.opens, "cancelled")
        assert not worker.pipeline.frequencies._ends, "forgotten with the flow"
