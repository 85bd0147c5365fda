"""The whole path on a real log and over real HTTP: every recipient ends in exactly one outcome, and it is told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from engine.clock import NS_PER_S
from engine.dispatch import SHUT_NS
from engine.errors import LogUnavailable
from engine.logs import Chunk
from engine.send import Outcome
from tests.integration.support import (
    IN_MEMORY,
    QUICK,
    Ahead,
    Arrived,
    Worker,
    as_json,
    channel,
    configured,
    corp,
    gateway,
    now_ms,
    order,
    record,
    registered,
    send,
    working,
)

ACCOUNTS = """[channels.notice.accounts.a]
corpid = "ww0"
corpsecret = "s"
agentid = 1
[channels.notice.accounts.b]
corpid = "ww1"
corpsecret = "s"
agentid = 2
"""
RETRY = 'retry = { attempts = 20, first = "2ms", most = "20ms", budget_per_s = 100_000 }'
TEXT = {"type": "text", "text": "hello"}


async def sometimes(call: Arrived) -> web.Response:
    """A gateway that has its moods; what it says follows from the recipient and the batch alone."""
    dice = random.Random(call.batch)
    if dice.random() < 0.1:
        return web.Response(status=500)
    await asyncio.sleep(0)
    results: list[dict[str, Any]] = []
    for id in call.ids:
        if id.startswith("gone"):
            results.append({"id": id, "code": "failed", "reason": "gone"})
        elif id.startswith("later") and dice.random() < 0.5:
            results.append({"id": id, "code": "retry", "retry_after_ms": 1})
    return web.json_response({"results": results})


def mixed(dice: random.Random, number: int) -> bytes:
    """One of many kinds of sends."""
    id, now = f"i{number}", now_ms()
    kind = dice.randrange(12)
    size = dice.choice([1, 1, 1, 2, 30, 250]) if kind < 6 else 1
    to = [f"{dice.choice(['u', 'u', 'u', 'gone', 'later'])}{number}-{n}" for n in range(size)]
    keys: dict[str, Any] = {
        "campaign": f"k{dice.randrange(5)}",
        "tenant": f"t{dice.randrange(3)}",
        "content": {"n": dice.randrange(3)},
    }
    if kind == 6:
        return as_json({"id": id, "channel": "partner", "to": to, **keys, "meta": {"x": 1}})
    if kind == 7:
        return send(id, [{"id": to[0], "data": {"name": "n"}}, to[0], "\x07"], **keys)
    if kind == 8:
        return send(id, to, **keys, deadline=now - 1)
    if kind == 9:
        return send(id, [*to, f"bad{number}", "@all"], "notice", account=dice.choice("ab"), content=TEXT, campaign="k1")
    if kind == 10:
        return send(id, to, **{**keys, "content": {"ref": dice.choice(["early", "other"])}})
    if kind == 11:
        return dice.choice([b"", b"junk", b"{}", send(id, to, "nowhere"), send("i0", to, **keys)])
    if dice.random() < 0.2:
        keys["not_before"] = now + dice.randrange(300)
    return send(id, to, **keys)


async def test_a_mixed_feed_ends_in_one_outcome_each(tmp_path: Path) -> None:
    dice = random.Random(7)
    async with gateway(answer=sometimes) as partner, corp() as notice:
        config = configured(
            tmp_path,
            channel("partner", partner.url, "batch = 100\n" + RETRY),
            channel("notice", notice.url, "batch = 3\n" + ACCOUNTS, "wecom.message"),
        )
        async with working(config) as worker:
            await worker.append(registered("early", {"t": "x"}), registered("other", TEXT, "notice"))
            records = [record(dice.choice(["system", "template", "basic"]), mixed(dice, n)) for n in range(600)]
            for start in range(0, len(records), 100):
                await worker.append(*records[start : start + 100])
                await worker.until(lambda: True)
            told = await worker.judged()
            ends = Counter(end.outcome for ends in told.outcomes().values() for end in ends)
            assert set(ends) == {
                Outcome.ACCEPTED, Outcome.FAILED, Outcome.DEAD, Outcome.EXPIRED, Outcome.DUPLICATE,
            }  # fmt: skip
            assert ends == worker.ended()
            assert worker.instants > 100
            took = Counter(id for (_, id), (*_, end) in told.outcomes().items() if end.outcome is Outcome.ACCEPTED)
            delivered = partner.ids + notice.ids
            assert {id for id in took if not delivered[id]} == set()
            assert max(len(call.ids) for call in partner.calls) == 100
            assert notice.largest == 3
            assert all(len(set(call.ids)) == len(call.ids) for call in partner.calls)


async def test_receipts_and_metrics_tell_the_same(tmp_path: Path) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.send("basic", *(send(f"i{n}", [f"u{n}", f"v{n}"], campaign="k", meta={"n": n}) for n in range(50)))
        told = await worker.judged()
        assert {(r.tier, r.channel, r.account, r.tenant, r.campaign, r.outcome) for r in told.receipts} == {
            ("basic", "partner", "default", "default", "k", "accepted")
        }
        batches = {call.batch for call in partner.calls}
        assert {receipt.batch for receipt in told.receipts} == batches
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in worker.snapshot.collect()
            for sample in family.samples
        }
        assert samples["surgetank_recipients_total", "basic", "partner", "accepted"] == 100
        assert samples["surgetank_taken_in_recipients_total", "basic"] == 100
        assert samples["surgetank_dispatch_attempts_total", "partner", "ok"] == len(partner.calls)


async def test_own_data_travels_with_its_recipient(tmp_path: Path) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        to = ["plain", {"id": "ann", "data": {"n": "Ann"}}, {"id": "王", "data": {"n": "王"}}, {"id": "none"}]
        await worker.send("basic", send("i", to), send("j", [{"id": "bob", "data": {"n": "Bob"}}]))
        await worker.judged()
        assert partner.ids == Counter(["plain", "ann", "王", "none", "bob"])
        assert {id: data for call in partner.calls for id, data in call.data.items()} == {
            "ann": {"n": "Ann"}, "王": {"n": "王"}, "bob": {"n": "Bob"},
        }  # fmt: skip


async def test_system_leaves_before_a_queued_basic_backlog(tmp_path: Path) -> None:
    async with gateway() as partner:
        limits = 'batch = 1\nlimits = [{ calls = 10, per = "1s" }]'
        async with working(configured(tmp_path, channel("partner", partner.url, limits))) as worker:
            await worker.send("basic", *(send(f"b{n}", f"b{n}") for n in range(15)))
            await worker.until(lambda: len(partner.calls) >= 9, "basic has had its share")
            before = len(partner.calls)
            await worker.send("system", *(send(f"s{n}", f"s{n}") for n in range(5)))
            await worker.judged()
            after = [call.ids[0][0] for call in partner.calls[before:]]
            # One is reserved for system and goes at once; as soon as the window opens the other four go, before basic.
            assert after[:5] == ["s"] * 5
            assert before == 9


async def test_template_and_basic_share_a_channel_of_few_connections(tmp_path: Path) -> None:
    """Both have something to send all the time, and hardly ever is a connection free."""
    async with gateway() as partner:
        tiers = QUICK.replace("[tiers.template]\n", "[tiers.template]\nweight = 3\n")
        config = configured(
            tmp_path, channel("partner", partner.url, "in_flight = 2\nbatch = 1"), IN_MEMORY, tiers=tiers
        )
        async with working(config) as worker:
            await worker.append(order("pause", "p", channel="partner"))
            await worker.until(lambda: worker.pipeline.orders.standing()["pause"], "paused")
            for tier in ("basic", "template"):
                await worker.send(tier, *(send(f"{tier}{n}", f"{tier}{n}") for n in range(100)))
            await worker.until(lambda: sum(worker.pipeline.core.stats()["paused"]) == 200, "all wait")
            await worker.append(order("resume", "r", channel="partner"))
            await worker.judged()
            assert 58 <= sum(call.ids[0].startswith("template") for call in partner.calls[:80]) <= 62


def _left(worker: Worker) -> int:
    return worker.pipeline.opens.count[2]


async def test_at_the_budget_intake_stops_and_goes_on(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def hang(_: Arrived) -> web.Response:
        await released.wait()
        return web.json_response({"results": []})

    tiers = '[tiers.basic]\npacing = "asap"\nlinger = "0s"\nbudget = { sends = 600, bytes = "64MiB" }\n'
    async with gateway(answer=hang) as partner:
        config = configured(tmp_path, channel("partner", partner.url, 'timeout = "1m"'), tiers=tiers)
        async with working(config) as worker:
            await worker.send("basic", *(send(f"b{n}", f"b{n}") for n in range(5000)))
            await worker.until(lambda: _left(worker) >= 600, "the budget is used")
            # Paused: polls go on (for the group's sake) and bring nothing.
            intake = worker.pipeline.intakes[2]
            await worker.until(lambda: intake.assignment.consumer.lag() and intake.last_poll_ms, "polled")
            await worker.until(lambda: sum(worker.pipeline.counters.in_flight) > 0, "calls hang")
            await worker.send("system", send("s", "s"))  # the other tiers go on
            await worker.until(lambda: worker.pipeline.counters.taken_in[0] == 1, "system is taken in")
            assert _left(worker) < 600 + 500
            assert worker.pipeline.counters.consumed_sends[2] < 600 + 500
            released.set()
            await worker.judged()
            assert partner.ids.total() == 5001
            assert worker.pipeline.counters.backpressure_ns["consume"] > 0


async def test_intake_goes_on_though_the_log_failed_while_it_was_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, failed = asyncio.Event(), asyncio.Event()

    async def hang(_: Arrived) -> web.Response:
        await released.wait()
        return web.json_response({"results": []})

    tiers = '[tiers.basic]\npacing = "asap"\nlinger = "0s"\nbudget = { sends = 10, bytes = "4MiB" }\n'
    clock = Ahead()
    async with gateway(answer=hang) as partner:
        config = configured(tmp_path, channel("partner", partner.url, 'timeout = "1m"'), tiers=tiers)
        async with working(config, clock) as worker:
            consumer = worker.pipeline.intakes[2].assignment.consumer
            poll = consumer.poll

            async def fails_once_paused(most: int, timeout_s: float) -> list[Chunk]:
                if most == 1 and not failed.is_set():
                    failed.set()
                    released.set()
                    raise LogUnavailable("for once")
                return await poll(most, timeout_s)

            monkeypatch.setattr(consumer, "poll", fails_once_paused)
            await worker.send("basic", *(send(f"b{n}", f"b{n}") for n in range(10)))
            await worker.until(lambda: _left(worker) >= 10, "the budget is used")
            clock.ahead_ns += 2 * NS_PER_S
            await worker.until(failed.is_set, "paused")
            await worker.send("basic", *(send(f"c{n}", f"c{n}") for n in range(10)))
            await worker.judged()
            assert partner.ids.total() == 20


async def test_after_a_stop_nothing_is_told_as_expired_before_the_group_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stood still may have lost its partitions, and another worker may have delivered what expired here."""
    clock, answers = Ahead(), asyncio.Event()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with working(config, clock) as worker:
            consumer, dispatcher = worker.pipeline.intakes[2].assignment.consumer, worker.pipeline.dispatcher
            commit = consumer.commit

            async def commit_later(*arguments: Any, **options: Any) -> None:
                await answers.wait()
                await commit(*arguments, **options)

            monkeypatch.setattr(consumer, "commit", commit_later)
            late = now_ms() + 3_600_000
            await worker.send("basic", send("i", not_before=late, deadline=late + 1_000))
            await worker.until(lambda: _left(worker) == 1, "it is queued")
            clock.ahead_ns += 7_200 * NS_PER_S
            stopped_ns = clock.now_ns()
            dispatcher.wake()
            try:
                await worker.until(lambda: dispatcher._timer_ns > stopped_ns + 3 * SHUT_NS, "it looks now and then")
                assert not worker.ended()
            finally:
                answers.set()
            await worker.until(lambda: worker.ended()[Outcome.EXPIRED] == 1, "it is told")
            assert not partner.calls
