"""Pauses over the control topic, in a running worker and in one that starts later."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.clock import NS_PER_S
from engine.send import Outcome
from tests.integration.support import (
    DEADLINE_S,
    IN_MEMORY,
    Ahead,
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

ACCOUNTS = "[channels.partner.accounts.a]\n[channels.partner.accounts.b]\n"
HELD = {"campaign": "k", "tenant": "t", "account": "a"}
PAUSED = [{"campaign": "k"}, {"campaign": "k", "tenant": "t"}, {"tenant": "t"}, {"channel": "partner", "account": "a"}]


async def replied(worker: Worker, id: str) -> int:
    """The recipients of the only reply to that command, once it stands on the log."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            worker.check()
            found = [reply for reply in (await worker.told()).replies if reply.reply_to == id]
            if found:
                (reply,) = found
                return reply.recipients


def paused(worker: Worker) -> int:
    return sum(worker.pipeline.core.stats()["paused"])


@pytest.mark.parametrize("on", PAUSED, ids=str)
async def test_what_is_paused_waits_and_goes_when_resumed(tmp_path: Path, on: Mapping[str, Any]) -> None:
    async with partnered(tmp_path, ACCOUNTS) as (partner, worker):
        await worker.append(order("pause", "p", **on))
        assert await replied(worker, "p") == 0
        await worker.send("basic", send("held", ["a", "b"], **HELD), send("free", "c", account="b", tenant="u"))
        await worker.send("system", send("too", ["d"], **HELD))
        await worker.until(lambda: partner.ids == {"c": 1} and paused(worker) == 3, "the others go on")
        await worker.append(order("resume", "r", **on))
        await worker.judged()
        assert partner.ids == {"a": 1, "b": 1, "c": 1, "d": 1}
        assert await replied(worker, "r") == 3
        # Nothing is remembered of it.
        await worker.send("basic", send("later", "e", **HELD))
        await worker.judged()
        assert not worker.pipeline.orders.paused


@pytest.mark.parametrize("on", [{"channel": "partner"}, {"tier": "basic"}], ids=str)
async def test_a_channel_or_tier(tmp_path: Path, on: Mapping[str, Any]) -> None:
    async with gateway() as one, gateway() as other:
        config = configured(tmp_path, channel("partner", one.url), channel("other", other.url), IN_MEMORY)
        async with working(config) as worker:
            await worker.send("basic", send("i", ["a", "b"]))
            await worker.judged()
            await worker.append(order("pause", "p", **on))
            await worker.send("basic", send("held", ["c"]))
            await worker.send("template", send("free", "d", channel="other"))
            await worker.until(lambda: other.ids == {"d": 1} and paused(worker) == 1, "held")
            assert one.ids == {"a": 1, "b": 1}
            await worker.append(order("resume", "r", **on))
            await worker.judged()
            assert one.ids == {"a": 1, "b": 1, "c": 1}


async def test_a_pause_survives_a_restart_and_ends_by_itself(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), IN_MEMORY)
        async with working(config, clock) as worker:
            await worker.append(order("pause", "p", campaign="k"), order("pause", "q", tier="system"))
            await worker.append(order("resume", "r", tier="system"))
            await worker.send("basic", send("i", ["a"], campaign="k"))
            await worker.until(lambda: paused(worker) == 1, "held")
        async with working(config, clock) as worker:
            await worker.send("basic", send("j", ["b"], campaign="k"))
            await worker.send("system", send("s", ["c"]))
            await worker.until(lambda: paused(worker) == 2 and partner.ids == {"c": 1}, "held again")
            clock.ahead_ns += 3601 * NS_PER_S
            told = await worker.judged()
            assert told.end("i", "a").outcome is told.end("j", "b").outcome is Outcome.ACCEPTED
        async with working(config, clock) as worker:
            await worker.send("basic", send("k", ["d"], campaign="k"))
            await worker.until(lambda: partner.ids["d"] == 1, "one that starts now knows nothing of it")
            await worker.all_ended(1)


async def test_a_campaign_paused_twice_is_resumed_twice(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        await worker.append(order("pause", "p", campaign="k"), order("pause", "q", campaign="k", tenant="t"))
        for tenant in "tu":
            await worker.send("basic", send(tenant, tenant, campaign="k", tenant=tenant))
        await worker.until(lambda: paused(worker) == 2, "held")
        await worker.append(order("resume", "r", campaign="k"))
        await worker.until(lambda: partner.ids == {"u": 1}, "the other tenant's goes")
        assert paused(worker) == 1
        await worker.append(order("resume", "s", campaign="k", tenant="t"))
        await worker.judged()


async def test_what_is_paused_expires_and_is_cancelled_and_its_names_are_free(tmp_path: Path) -> None:
    clock = Ahead()
    async with partnered(tmp_path, clock=clock) as (partner, worker):
        await worker.append(order("pause", "p", lasts_ms=86_400_000, campaign="k"), order("pause", "q", tenant="t"))
        await worker.send("basic", send("i", ["a"], campaign="k", deadline=now_ms() + 60_000))
        await worker.send(
            "basic", send("j", ["b"], campaign="l", tenant="t"), send("k", ["c"], campaign="m", tenant="t")
        )
        await worker.until(lambda: paused(worker) == 3, "held")
        clock.ahead_ns += 61 * NS_PER_S
        await worker.append(cancel("l", now_ms() + 61_000))
        await worker.until(lambda: worker.ended() == {Outcome.EXPIRED: 1, Outcome.CANCELLED: 1}, "ended")
        # Other names take the handles that are free now, and are not paused.
        await worker.send("basic", *(send(f"n{n}", f"n{n}", campaign=f"c{n}", tenant=f"t{n}") for n in range(9)))
        await worker.until(lambda: len(partner.ids) == 9, "they go")
        assert paused(worker) == 1
        await worker.append(order("resume", "r", tenant="t"))
        await worker.judged()


async def test_a_pause_of_what_a_worker_does_not_have_is_refused(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        await worker.append(order("pause", "p", channel="partnr"))
        await worker.append(order("pause", "q", channel="partner", account="x"))
        assert await replied(worker, "q") == 0
        refused = {reply.reply_to: reply.refused for reply in (await worker.told()).replies}
        assert refused == {"p": "no channel partnr", "q": "channel partner has no account x"}
        await worker.send("basic", send("i", "a"))
        await worker.judged()
        assert partner.ids == {"a": 1}
