"""A channel that cannot keep up and may refuse; on a clock that leaps, so that it is overloaded for a minute."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from structlog.testing import capture_logs

from engine.send import Outcome
from ext.schedule import CHANNEL
from tests.integration.support import TIERS, Ahead, Gateway, Told, Worker, channel, configured, gateway, send, working

S = 1_000_000_000
# 60 recipients a second, six of them for system; due a second after they come.
MORE = 'batch = 10\nlimits = [{ recipients = 60, per = "1s" }]\n'
REFUSE = MORE + 'overload = { policy = "refuse", most = "2s" }\n'
SOON = "".join(f'[tiers.{tier}]\npacing = "asap"\nlinger = "0s"\ndue_after = "1s"\n' for tier in TIERS)


async def leap(worker: Worker, clock: Ahead) -> None:
    """A second later; returns when what may leave then has."""
    pipeline = worker.pipeline
    clock.ahead_ns += S
    pipeline.gates.look(clock.now_ns())
    pipeline.dispatcher.wake()
    while pipeline.dispatcher._pumping:  # noqa: ASYNC110  a pump is one callback of the loop
        await asyncio.sleep(0)
    await worker.until(
        lambda: not sum(pipeline.counters.calls_in_flight.values()) and not pipeline.core.stats()["ready"][2],
        "at the limit",
    )


async def surge(worker: Worker, clock: Ahead, seconds: int, partner: Gateway | None) -> None:
    """Twice what the channel can, of 16 campaigns in turn, and a system send every second."""
    for second in range(seconds):
        for n in range(10):
            ids = [f"{second}.{n}.{k}" for k in range(10)]
            await worker.send("basic", send(f"b{second}.{n}", ids, campaign=f"c{(second * 10 + n) % 16}"))
        await worker.send("system", send(f"s{second}", f"s{second}"))
        if partner is not None:
            await worker.until(lambda seen=second + 1: urgent(partner) == seen, "each in its second")  # type: ignore[misc]
        await worker.until(lambda all_=11 * (second + 1): sum(worker.pipeline.counters.consumed_sends) == all_)  # type: ignore[misc]
        await leap(worker, clock)


async def drained(worker: Worker, clock: Ahead) -> Told:
    while worker.pipeline.core.stats()["queued"][2]:
        await leap(worker, clock)
    return await worker.judged()


def refused(told: Told) -> Counter[str | None]:
    """Sends refused, by campaign."""
    assert {receipt.reason for receipt in told.receipts if receipt.outcome is Outcome.DEAD} <= {"overloaded"}
    dead = [receipt for receipt in told.receipts if receipt.outcome is Outcome.DEAD]
    assert all(receipt.tier == "basic" for receipt in dead), "never system"
    return Counter(receipt.campaign for receipt in dead for _ in receipt.sends)


def urgent(partner: Gateway) -> int:
    return sum(id.startswith("s") for id in partner.ids)


async def test_some_campaigns_are_refused_others_get_through_and_system_is_untouched(tmp_path: Path) -> None:
    seconds, clock = 40, Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, REFUSE), tiers=SOON)
        with capture_logs() as said:
            async with working(config, clock) as worker:
                await surge(worker, clock, seconds, partner)
                gate = worker.pipeline.gates.by_channel["partner"]
                assert gate.share > 0
                waiting = worker.pipeline.core.stats()["queued"][2]
                assert waiting < (100 - 54) * seconds / 2, "half of what would have come to wait"
                told = await drained(worker, clock)
                lost = refused(told)
                assert max(lost.values()) > 2 * lost["c12"], "campaign by campaign"
                assert worker.ended() == {
                    Outcome.DEAD: 10 * lost.total(),
                    Outcome.ACCEPTED: seconds + 100 * seconds - 10 * lost.total(),
                }
                assert gate.refused == [0, 10 * lost.total()]
                assert len(told.dead) == lost.total(), "kept, to be replayed"
                assert {dead.said.reason for dead in told.dead} == {"overloaded"}
                await leap(worker, clock)
                await worker.send("basic", send("after", "after", campaign=max(lost, key=lambda c: lost[c])))
                await worker.until(lambda: partner.ids["after"] == 1, "nobody waits: everybody comes in")
        events = [line["event"] for line in said if line["event"].startswith("a channel is")]
        both = ["a channel is overloaded: it refuses sends", "a channel is no longer overloaded"]
        assert events == both * (len(events) // 2)
        assert events


async def test_by_default_everybody_waits(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, MORE), tiers=SOON)
        async with working(config, clock) as worker:
            await surge(worker, clock, 20, partner)
            await drained(worker, clock)
            assert worker.ended() == {Outcome.ACCEPTED: 2020}


async def test_a_paused_channel_is_not_overloaded(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url, REFUSE), tiers=SOON)
        async with working(config, clock) as worker:
            handle = worker.pipeline.channels["partner"].handle
            worker.pipeline.core.pause(CHANNEL, handle)
            await surge(worker, clock, 20, None)
            worker.pipeline.core.resume(CHANNEL, handle)
            await drained(worker, clock)
            assert worker.ended() == {Outcome.ACCEPTED: 2020}
