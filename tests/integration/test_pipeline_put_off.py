"""What is queued, or comes, while it is paused or its quota is spent for long waits on the log, and leaves in time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from engine.clock import NS_PER_S
from engine.deliver import MISSES
from engine.errors import LogUnavailable
from engine.mover import APPEND_MOVES
from engine.put_off import PUT_OFF_BUDGET
from engine.send import Outcome, Send, Tier
from engine.waiting import Looking
from engine.wire_control import Target, Window
from tests.integration.support import (
    TIERS,
    Ahead,
    Arrived,
    Gateway,
    Worker,
    accept,
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
from tests.integration.test_pipeline_changes import change
from tests.integration.test_pipeline_later import HOUR_MS, MINUTE_NS, Fails, at_rest, moved, moves, waiting
from tests.integration.test_pipeline_pause import ACCOUNTS, HELD, PAUSED

LONG = 24 * HOUR_MS


def has_sent(partner: Gateway, recipients: int) -> bool:
    return len(partner.ids) == recipients


async def pass_time(worker: Worker, clock: Ahead, minutes: int) -> None:
    """In steps, each until all that waits has been looked at."""
    for _ in range(0, minutes, 5):
        clock.ahead_ns += 5 * MINUTE_NS
        worker.pipeline.dispatcher.wake()
        await worker.until(lambda: at_rest(worker) or not (worker.pipeline.opens or waiting(worker)), "looked at")


# --- pauses


@pytest.mark.parametrize("on", [*PAUSED, {"tier": "basic"}, {"channel": "partner"}], ids=str)
async def test_what_is_paused_for_long_waits_on_the_log_until_it_is_resumed(
    tmp_path: Path, on: Mapping[str, Any]
) -> None:
    async with gateway() as partner, gateway() as other:
        channels = channel("partner", partner.url, ACCOUNTS), channel("other", other.url)
        async with working(configured(tmp_path, *channels), Ahead()) as worker:
            await worker.append(order("pause", "first", lasts_ms=60_000, **on))  # short: in memory
            await worker.send("basic", send("queued", ["a", "b"], **HELD))
            await worker.until(lambda: sum(worker.pipeline.core.stats()["paused"]) == 2, "queued")
            await worker.append(order("pause", "p", lasts_ms=LONG, **on))
            await worker.until(lambda: moved(worker, "pause") == 2, "what was queued has moved")
            await worker.send("basic", send("came", ["c"], **HELD))
            await worker.send("template", send("free", "d", "other", tenant="u"))
            await worker.until(lambda: moved(worker, "pause") == 3 and at_rest(worker), "what comes moves at once")
            assert other.ids == {"d": 1}, "others go on"
            assert worker.pipeline.opens.sizes == [0, 0, 0], "it counts against no budget"
            assert worker.pipeline.core.stats()["put_off"] == [0, 0, 3]
            for topic, said in await moves(worker):
                assert (topic, said.reason, said.hop, said.attempts) == ("1h", "pause", 1, 0)
                assert said.until_ms == 0, "it may be resumed before"
                assert said.back_ms <= now_ms() + HOUR_MS
            await worker.append(order("resume", "r", **on))
            told = await worker.judged()
            assert partner.ids == {"a": 1, "b": 1, "c": 1}, "at once"
            assert told.end("queued", "a") == (Outcome.ACCEPTED, "", 1, ""), "it was no attempt"


async def test_each_tier_waits_on_its_own_topics_and_what_may_not_be_repeated_in_memory(tmp_path: Path) -> None:
    async with gateway() as partner, gateway() as never:
        channels = channel("partner", partner.url), channel("never", never.url, 'repeats = "never"')
        async with working(configured(tmp_path, *channels), Ahead()) as worker:
            orders = [order("pause", tier, lasts_ms=LONG, tier=tier) for tier in TIERS]
            await worker.append(*orders)
            for tier in TIERS:
                await worker.send(tier, send(tier, tier), send(f"{tier}-never", f"{tier}-never", "never"))
            await worker.until(lambda: moved(worker, "pause") == 3, "moved")
            assert worker.pipeline.core.stats()["paused"] == [1, 1, 1]
            assert {tier.label: n for (tier, _), n in worker.pipeline.counters.moved.items()} == dict.fromkeys(TIERS, 1)
            await worker.append(*(order("resume", f"r{tier}", tier=tier) for tier in TIERS))
            await worker.judged()
            assert partner.ids == dict.fromkeys(TIERS, 1)
            assert never.ids == {f"{tier}-never": 1 for tier in TIERS}


async def test_it_is_looked_at_again_each_hour_and_leaves_when_the_pause_is_over(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with working(config, clock) as worker:
            await worker.append(order("pause", "p", lasts_ms=3 * HOUR_MS, campaign="k"))
            await worker.send("basic", send("i", ["a", "b"], campaign="k", not_before=now_ms() + 60_000))
            await worker.until(lambda: worker.pipeline.opens, "taken in")
            clock.ahead_ns += MINUTE_NS
            worker.pipeline.dispatcher.wake()
            await worker.until(lambda: moved(worker, "pause") == 2 and at_rest(worker), "on the log")
            await pass_time(worker, clock, 90)
        async with working(config, clock) as worker:  # another life obeys the pause, too
            await pass_time(worker, clock, 60)
            assert not partner.calls
            way = [said for _, said in await moves(worker)]
            assert 3 <= len(way) <= 7, "an hour each, then shorter ones"
            assert [said.hop for said in way] == list(range(1, len(way) + 1))
            clock.ahead_ns += 35 * MINUTE_NS
            told = await worker.judged()
            assert told.end("i", "a") == (Outcome.ACCEPTED, "", 1, "")
            assert partner.ids == {"a": 1, "b": 1}


async def test_resumed_while_no_worker_ran(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with working(config) as worker:
            await worker.append(order("pause", "p", lasts_ms=LONG, campaign="k"))
            await worker.send("basic", *(send(f"i{n}", f"u{n}", campaign="k") for n in range(20)))
            await worker.until(lambda: moved(worker, "pause") == 20 and at_rest(worker), "on the log")
            await worker.append(order("resume", "r", campaign="k"))
            await worker.pipeline.dispatcher.stop(1.0)  # it hears of it, and sends nothing more
        async with working(config) as worker:
            await worker.judged()
            assert partner.ids == {f"u{n}": 1 for n in range(20)}


async def test_another_pause_keeps_what_one_that_ends_lets_go(tmp_path: Path) -> None:
    async with partnered(tmp_path, top="") as (partner, worker):
        await worker.append(
            order("pause", "p", lasts_ms=LONG, campaign="k"), order("pause", "q", lasts_ms=LONG, tenant="t")
        )
        await worker.send("basic", send("i", ["a"], campaign="k", tenant="t"), send("j", ["b"], campaign="k"))
        await worker.until(lambda: moved(worker, "pause") == 2 and at_rest(worker), "on the log")
        await worker.append(order("resume", "r", campaign="k"))
        await worker.until(lambda: partner.ids == {"b": 1}, "one goes")
        await worker.until(lambda: at_rest(worker), "the other stays")
        await worker.append(cancel("k", now_ms()))
        await worker.until(lambda: worker.ended() == {Outcome.ACCEPTED: 1, Outcome.CANCELLED: 1}, "cancelled")


async def test_what_expires_while_it_is_paused_is_told_so(tmp_path: Path) -> None:
    clock = Ahead()
    async with partnered(tmp_path, clock=clock, top="") as (partner, worker):
        await worker.append(order("pause", "p", lasts_ms=LONG, tier="basic"))
        await worker.send("basic", send("i", deadline=now_ms() + HOUR_MS // 2))
        await worker.until(lambda: moved(worker, "pause") == 1 and at_rest(worker), "on the log")
        clock.ahead_ns += 31 * MINUTE_NS
        await worker.until(lambda: worker.ended() == {Outcome.EXPIRED: 1}, "in time")
        assert not partner.calls


# --- quotas and rests


async def test_what_a_spent_quota_keeps_waits_on_the_log_and_leaves_with_the_next_window(tmp_path: Path) -> None:
    clock = Ahead()
    more = 'batch = 2\nlimits = [{ recipients = 4, per = "2h" }]\n[channels.partner.accounts.a]'
    async with partnered(tmp_path, more, clock=clock, top="") as (partner, worker):
        to = [f"u{n}" for n in range(10)]
        await worker.send("basic", send("i", to))
        await worker.until(lambda: moved(worker, "limit") == 6 and at_rest(worker), "four have left")
        assert len(partner.ids) == 4
        _, said = (await moves(worker))[0]
        assert (said.reason, said.positions, said.until_ms) == ("limit", list(range(4, 10)), 0)
        for sent in (8, 10):
            await pass_time(worker, clock, 100)
            clock.ahead_ns += 25 * MINUTE_NS
            await worker.until(partial(has_sent, partner, sent), "the next ones")
        told = await worker.judged()
        assert partner.ids == dict.fromkeys(to, 1)
        assert told.end("i", "u9") == (Outcome.ACCEPTED, "", 1, "")


async def test_a_limit_that_is_raised_is_felt_when_it_is_looked_at_again(tmp_path: Path) -> None:
    clock = Ahead()
    more = 'batch = 1\nlimits = [{ calls = 1, per = "1d" }]'
    delays = '[later]\ndelays = ["5s", "1m"]'
    async with partnered(tmp_path, more, top=delays, clock=clock) as (partner, worker):
        await worker.send("basic", *(send(f"i{n}", f"u{n}") for n in range(3)))
        await worker.until(lambda: moved(worker, "limit") >= 2 and at_rest(worker), "spent")
        await worker.append(change("more", Target(channel="partner"), window=Window("calls", "1d"), number=100))
        clock.ahead_ns += 61 * NS_PER_S
        await worker.judged()
        assert len(partner.ids) == 3


async def test_a_long_rest_is_waited_for_on_the_log(tmp_path: Path) -> None:
    clock = Ahead()
    calls = 0

    async def answer(arrived: Arrived) -> web.Response:
        nonlocal calls
        calls += 1
        if calls > MISSES + 1:
            return await accept(arrived)
        return web.json_response({}, status=503, headers={"Retry-After": "2400"} if calls > MISSES else {})

    more = 'batch = 1\nin_flight = 1\nretry = { first = "1ms", most = "1ms" }\n[channels.partner.accounts.a]'
    async with partnered(tmp_path, more, answer=answer, clock=clock, top="") as (partner, worker):
        await worker.send("basic", *(send(f"i{n}", f"u{n}", campaign="k") for n in range(9)))
        await worker.until(lambda: moved(worker, "rest") == 9 and at_rest(worker), "it rests")
        way = [said for _, said in await moves(worker)]
        assert all(said.until_ms > now_ms() + 2_300_000 for said in way), "a worker that starts now keeps to it"
        await pass_time(worker, clock, 20)
        clock.ahead_ns += 25 * MINUTE_NS
        await worker.judged()
        assert len(partner.ids) == 9


# --- how much at once


async def test_no_more_is_taken_out_than_the_log_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sends = 2 * (APPEND_MOVES + PUT_OFF_BUDGET)
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with working(config) as worker:
            fails = Fails(worker.log, monkeypatch)
            fails.left, fails.error = 1 << 30, LogUnavailable
            await worker.append(order("pause", "p", lasts_ms=LONG, channel="partner"))
            await worker.send("basic", *(send(f"i{n}", f"u{n}", campaign=f"k{n % 7}") for n in range(sends)))
            await worker.until(lambda: worker.pipeline.counters.taken_in[2] == sends and fails.failed, "taken in")
            moving, stats = worker.pipeline.counters.moving[2], worker.pipeline.core.stats()
            assert 0 < moving <= 2 * APPEND_MOVES + PUT_OFF_BUDGET
            assert stats["queued"][2] == sends - moving
            fails.left = 0
            await worker.until(lambda: moved(worker, "pause") == sends and at_rest(worker), "all of it")
            assert not worker.pipeline.core.stats()["flows"][2]
            await worker.append(order("resume", "r", channel="partner"))
            await worker.judged()
            assert len(partner.ids) == sends


async def test_what_is_held_no_longer_than_the_horizon_stays(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (_, worker):
        await worker.append(order("pause", "p", lasts_ms=LONG, channel="partner"))
        await worker.send("basic", send("i"))
        await worker.until(lambda: worker.pipeline.core.stats()["paused"][2] == 1, "in memory")
        await worker.append(order("resume", "r", channel="partner"))
        await worker.judged()
        assert not await moves(worker)


# --- what is said of it


async def looked(worker: Worker, most: int = 1_000, **about: Any) -> Looking:
    def wants(one: Send, tenant: str) -> bool:
        return all(about[name] == found for name, found in (("id", one.id), ("tenant", tenant)) if name in about)

    looking = Looking(worker.log, worker.config, wants, now_ms(), most)
    await looking.run()
    return looking


async def test_what_waits_on_the_log_is_found_there_and_what_has_ended_is_not(tmp_path: Path) -> None:
    async with partnered(tmp_path, top="") as (partner, worker):
        for lasts_ms in (60_000, LONG):  # all of it moves at once
            await worker.append(*(order("pause", tenant, lasts_ms=lasts_ms, tenant=tenant) for tenant in "tu"))
            if lasts_ms < LONG:
                sends = (send(f"{tenant}{n}", tenant, tenant=tenant) for tenant in "tu" for n in range(5))
                await worker.send("basic", *sends)
                await worker.until(lambda: worker.pipeline.core.stats()["paused"][2] == 10, "queued")
        await worker.until(lambda: moved(worker, "pause") == 10 and at_rest(worker), "on the log")
        at = now_ms() + HOUR_MS
        await worker.send("basic", send("last", ["a", "b"], not_before=at, tenant="t"))
        await worker.until(lambda: moved(worker, "not_before") == 2 and at_rest(worker), "behind them")
        found = await looked(worker)
        assert (found.read, found.all) == (11, True)
        (scheduled,) = [one for one in found.found.values() if one.reason == "not_before"]
        assert (scheduled.sends, scheduled.recipients, scheduled.tier, scheduled.account) == (1, 2, "basic", "default")
        assert scheduled.until is not None
        assert at <= scheduled.until <= at + 10
        paused = {one.tenant: one for one in found.found.values() if one.reason == "pause"}
        assert {tenant: one.sends for tenant, one in paused.items()} == {"t": 5, "u": 5}
        assert paused["u"].until is None
        assert now_ms() < paused["u"].next <= now_ms() + HOUR_MS
        await worker.append(order("resume", "r", tenant="u"))
        await worker.until(lambda: partner.ids == {"u": 5}, "they go")
        counters = worker.pipeline.counters
        await worker.until(lambda: worker.ended().total() == 5 and not counters.uncommitted(Tier.BASIC), "committed")
        found = await looked(worker)
        assert {one.tenant for one in found.found.values()} == {"t"}, "what is done above the position has ended"
        (one,) = (await looked(worker, id="t3")).found.values()
        assert (one.sends, one.reason) == (1, "pause")
        few = await looked(worker, 2)
        assert few.read == 2
        assert not few.all
