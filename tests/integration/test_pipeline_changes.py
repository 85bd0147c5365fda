"""Limits and weights that commands change in a running worker, and in one that starts later."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from engine import wire_control
from engine.clock import NS_PER_S
from engine.logs import Record
from engine.wire_control import LimitUse, Reply, Target, Window
from tests.integration.support import (
    DEADLINE_S,
    IN_MEMORY,
    Ahead,
    Worker,
    channel,
    configured,
    gateway,
    now_ms,
    order,
    partnered,
    send,
    working,
)

CALLS_AN_HOUR = Window("calls", "1h")


def change(id: str, on: Target, /, lasts_ms: int = 3_600_000, **keys: Any) -> Record:
    """A record of the control topic."""
    at, command = now_ms(), "limit" if "window" in keys else "reweight"
    key, value = wire_control.encode_command(
        wire_control.Command(id=id, command=command, on=on, at=at, expires=at + lasts_ms, **keys)
    )
    return Record("surgetank.control", value, key)


async def replied(worker: Worker, id: str) -> Reply:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            worker.check()
            for reply in (await worker.told()).replies:
                if reply.reply_to == id:
                    return reply


def used(worker: Worker) -> list[LimitUse]:
    return worker.pipeline.limits.uses()


async def test_a_limit_has_another_number_and_what_was_used_stays(tmp_path: Path) -> None:
    more = 'batch = 1\nlimits = [{ calls = 3, per = "1h" }]'
    async with partnered(tmp_path, more) as (partner, worker):
        await worker.send("basic", *(send(f"i{n}", f"u{n}") for n in range(20)))
        await worker.until(lambda: len(partner.calls) == 3 and not sum(worker.pipeline.counters.in_flight), "used up")
        await worker.append(change("c", Target(channel="partner"), window=CALLS_AN_HOUR, number=7))
        (use,) = (await replied(worker, "c")).limits or []
        assert (use.on, use.configured) == (Target(channel="partner"), 3)
        assert use.changed_until is not None
        await worker.until(lambda: len(partner.calls) == 7 and not sum(worker.pipeline.counters.in_flight), "four more")
        (use,) = used(worker)
        assert (use.limit, use.number, use.used, use.full) == ("7 calls per 1h", 7, 7, True)
        assert worker.pipeline.orders.standing() == {"pause": 0, "limit": 1, "weight": 0}
        await worker.append(change("d", Target(channel="partner"), window=CALLS_AN_HOUR, number=2))
        await replied(worker, "d")
        await worker.append(change("e", Target(channel="partner"), window=CALLS_AN_HOUR))
        (use,) = (await replied(worker, "e")).limits or []
        assert (use.limit, use.used, use.changed_until) == ("3 calls per 1h", 7, None)
        assert len(partner.calls) == 7


async def test_a_change_survives_a_restart_and_ends_by_itself(tmp_path: Path) -> None:
    clock, on = Ahead(), Target(channel="partner")
    limited = 'batch = 1\nlimits = [{ calls = 2, per = "1h" }]'
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, limited), IN_MEMORY)
        async with working(config, clock) as worker:
            await worker.append(change("c", on, window=CALLS_AN_HOUR, number=4, lasts_ms=60_000))
            await replied(worker, "c")
        async with working(config, clock) as worker:
            await worker.send("basic", *(send(f"i{n}", f"u{n}") for n in range(9)))
            await worker.until(lambda: len(partner.calls) == 4 and not sum(worker.pipeline.counters.in_flight), "four")
            clock.ahead_ns += 61 * NS_PER_S
            await worker.until(lambda: used(worker)[0].limit == "2 calls per 1h", "as configured")
            clock.ahead_ns += 3_600 * NS_PER_S
            worker.pipeline.dispatcher.wake()  # its timer is the loop's, and an hour away
            await worker.until(lambda: len(partner.calls) == 6, "two in the next hour")
        async with working(config, clock) as worker:
            assert used(worker)[0].number == 2


async def test_a_limit_that_is_not_configured_is_there_for_a_time(tmp_path: Path) -> None:
    clock, on = Ahead(), Target(tenant="t")
    async with partnered(tmp_path, "batch = 1", clock=clock) as (partner, worker):
        await worker.append(change("c", on, window=Window("recipients", "1h"), number=3, lasts_ms=60_000))
        (use,) = (await replied(worker, "c")).limits or []
        assert (use.on, use.limit, use.configured) == (on, "3 recipients per 1h", None)
        await worker.send("basic", *(send(f"i{n}", f"i{n}", tenant="t") for n in range(9)), send("o", "o", tenant="u"))
        await worker.until(
            lambda: len(partner.calls) == 4 and not sum(worker.pipeline.counters.in_flight), "and no more"
        )
        clock.ahead_ns += 61 * NS_PER_S
        await worker.until(lambda: len(partner.calls) == 10 and not worker.pipeline.opens, "all have left")
        assert used(worker) == []


async def test_what_cannot_be_changed_is_refused_with_what_would_be_valid(tmp_path: Path) -> None:
    more = 'limits = [{ calls = 3, per = "1h" }]'
    async with partnered(tmp_path, more) as (_, worker):
        wrong = {
            "a": change("a", Target(channel="partnr"), window=CALLS_AN_HOUR, number=1),
            "b": change("b", Target(channel="partner", account="x"), window=CALLS_AN_HOUR, number=1),
            "c": change("c", Target(channel="partner"), window=Window("calls", "soon"), number=1),
            "d": change("d", Target(channel="partner"), window=Window("calls", "1h", "Moon"), number=1),
            "e": change("e", Target(channel="partner"), window=Window("calls", "2h")),
            "g": change("g", Target(channel="partner"), window=Window("calls", "9999999d"), number=1),
            "f": change("f", Target(tier="system"), weight=2),
        }
        await worker.append(*wrong.values())
        refused = {id: (await replied(worker, id)).refused for id in wrong}
        assert refused["a"] == "no channel partnr; there are partner"
        assert refused["b"] == "channel partner has no account x; it has default"
        assert refused["c"] == 'per \'soon\' is not a duration such as "1s", or "1mo"'
        assert refused["g"] == "per 9999999d must be 1ms..365d"
        assert "with `zone` it must be" in str(refused["d"])
        assert refused["e"] == "channel partner has no limit of calls per 2h; it has: calls per 1h"
        assert "system has no weight" in str(refused["f"])
        assert [use.limit for use in used(worker)] == ["3 calls per 1h"]


async def test_weights_change_what_waits_and_what_comes_and_come_back(tmp_path: Path) -> None:
    clock = Ahead()
    more = "batch = 1\nin_flight = 1\n[channels.partner.accounts.a]\n"
    async with partnered(tmp_path, more, clock=clock) as (partner, worker):
        await worker.append(order("pause", "p", tier="basic"))
        await worker.append(change("t", Target(tenant="w"), weight=4), change("k", Target(campaign="k"), weight=3))
        for tenant in "wv":
            for campaign in "kl":
                name = tenant + campaign
                sends = (send(f"{name}{n}", f"{name}{n}", tenant=tenant, campaign=campaign) for n in range(60))
                await worker.send("basic", *sends)
        await worker.until(lambda: worker.pipeline.core.stats()["paused"][2] == 240, "all of it waits")
        assert worker.pipeline.orders.standing()["weight"] == 2
        await worker.append(order("resume", "r", tier="basic"))
        await worker.until(lambda: len(partner.calls) >= 60, "some have left")
        first = [call.ids[0] for call in partner.calls[:60]]
        tenants, campaigns = Counter(id[0] for id in first), Counter(id[:2] for id in first)
        assert 3 <= tenants["w"] / tenants["v"] <= 5
        assert 2.2 <= campaigns["wk"] / campaigns["wl"] <= 4
        await worker.judged()
        clock.ahead_ns += 3_601 * NS_PER_S
        await worker.until(lambda: not worker.pipeline.orders.standing()["weight"], "as configured")
