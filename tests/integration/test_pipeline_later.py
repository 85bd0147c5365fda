"""What cannot leave soon waits on the log: it leaves in time, whatever happens meanwhile, and is no attempt."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from engine import wire
from engine.clock import NS_PER_MS, NS_PER_S
from engine.config import Config, later_topics
from engine.errors import LogUnavailable, RecordRefused
from engine.logs import Log, Record
from engine.metrics import Snapshot
from engine.send import Outcome, Tier
from engine.wire_control import Command, encode_command
from tests.integration.support import (
    Ahead,
    Answer,
    Arrived,
    Worker,
    accept,
    cancel,
    channel,
    configured,
    gateway,
    now_ms,
    opened,
    record,
    send,
    write_config,
)
from tests.integration.support import working as running
from tests.integration.test_cli import run
from tests.integration.test_pipeline_process import WITHIN_S, append, serving

HOUR_MS = 3_600_000
MINUTE_NS = 60 * NS_PER_S
SOON = '[later]\nhorizon = "30ms"\nretries = "30ms"\ndelays = ["20ms", "100ms", "400ms"]'
KEEN = 'retry = { attempts = 40, first = "1ms", most = "2ms" }'


async def later(log: Log, config: Config) -> AsyncIterator[tuple[str, Record]]:
    """What was ever moved, with its topic's delay."""
    topics = [topic for tier in Tier for topic in later_topics(config, tier)]
    reader = await log.reader(topics)
    try:
        while not await reader.at_end():
            for chunk in await reader.poll(1_000, 0.1):
                for key, value, headers in zip(chunk.keys, chunk.values, chunk.headers, strict=True):
                    yield chunk.topic, Record(chunk.topic, value, key, headers)
    finally:
        await reader.close()


async def moves(worker: Worker) -> list[tuple[str, wire.History]]:
    """The same, as headers."""
    found = []
    async for topic, moved in later(worker.log, worker.config):
        said = wire.history(moved.headers)
        assert said is not None
        found.append((topic.rpartition(".")[2], said))
    return found


def moved(worker: Worker, reason: str) -> int:
    return sum(count for (_, why), count in worker.pipeline.counters.moved.items() if why == reason)


def waiting(worker: Worker) -> int:
    """Records on the later topics."""
    return sum(sum(due.waiting().values()) for due in worker.pipeline.dues.values())


def held(worker: Worker) -> bool:
    """All that waits there has been looked at, and is not due."""
    kept = [due for due in worker.pipeline.dues.values() if due._kept]
    return bool(kept) and all(due._next_s() > 0.01 for due in kept)


def at_rest(worker: Worker) -> bool:
    pipeline = worker.pipeline
    return not pipeline.opens and not sum(pipeline.counters.moving) and held(worker)


# --- what may not leave before the horizon


async def test_scheduled_for_tomorrow_it_waits_on_the_log_and_leaves_in_time(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        at = now_ms() + 25 * HOUR_MS - 600_000
        async with running(config, clock) as worker:
            value = send("i", ["a", "b"], not_before=at, campaign="k", meta={"n": 1})
            await worker.append(record("basic", value, (("traceparent", b"00-1"),), key=b"key"))
            while clock.wall_ms() < at - 13 * HOUR_MS:
                await worker.until(lambda: at_rest(worker), "on the log alone")
                clock.ahead_ns += 5 * MINUTE_NS
        async with running(config, clock) as worker:  # half-way: another life
            while not sum(worker.pipeline.core.stats()["waiting"]):
                await worker.until(
                    lambda: at_rest(worker) or sum(worker.pipeline.core.stats()["waiting"]), "on the log, or back"
                )
                clock.ahead_ns += 5 * MINUTE_NS * at_rest(worker)
            assert 0 < at - clock.wall_ms() <= 20 * 60_000
            clock.ahead_ns += (at - clock.wall_ms() - 1_000) * NS_PER_MS
            worker.pipeline.dispatcher.wake()
            await worker.until(lambda: True)
            assert not partner.calls
            clock.ahead_ns += 1_000 * NS_PER_MS
            worker.pipeline.dispatcher.wake()
            told = await worker.judged()
            assert at <= clock.wall_ms() <= at + 5_000
            assert [call.ids for call in partner.calls] == [["a", "b"]]
            assert told.end("i", "a") == (Outcome.ACCEPTED, "", 1, ""), "a hop is no attempt"
            way = await moves(worker)
        assert [said.hop for _, said in way] == list(range(1, len(way) + 1))
        assert {topic for topic, _ in way} == {"1h", "10m"}
        first = way[0][1]
        assert (first.reason, first.attempts, first.positions) == ("not_before", 0, None)
        assert at <= first.until_ms <= at + 10, "as its partition's next turn saw the clock"
        assert all(said.origin == first.origin and said.first_seen_ms == first.first_seen_ms for _, said in way)
        async with opened(config) as log:
            async for _, record_ in later(log, config):
                assert (record_.value, record_.key, record_.headers[0]) == (value, b"key", ("traceparent", b"00-1"))


async def committed(log: Log, group: str, count: int) -> None:
    """Wait until the group has done with so many records."""
    async with asyncio.timeout(WITHIN_S):
        name = f"surgetank.{group}"
        while sum(at.offset for at in (await log.committed(name)).values()) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def test_killed_while_it_waits_it_leaves_once_and_in_time(tmp_path: Path) -> None:
    async with gateway() as partner:
        parts = (channel("partner", partner.url), '[later]\nhorizon = "2s"\ndelays = ["500ms", "2s"]')
        config = configured(tmp_path, *parts)
        at = now_ms()
        async with opened(config, engine=False) as log:
            for group in ("basic", "later.basic"):  # each time it stands on the next later topic
                async with serving(tmp_path, *parts) as engine:
                    await engine.ready()
                    if group == "basic":
                        at = now_ms() + 12_000
                        await append(tmp_path, send("i", ["a", "b"], not_before=at))
                    await committed(log, group, 1)
                    os.kill(engine.process.pid, signal.SIGKILL)
                    await engine.ended()
        async with serving(tmp_path, *parts) as engine:
            async with asyncio.timeout(WITHIN_S):
                while not partner.calls:
                    assert engine.process.returncode is None, engine.said
                    await asyncio.sleep(0.01)
            await engine.ready()
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.ended() == 0
        assert now_ms() >= at
        assert partner.ids == {"a": 1, "b": 1}
        code, out, _ = await run("audit", "-c", tmp_path / "surgetank.toml", "--grace", "1h", "--json")
        audited = json.loads(out)
        assert (code, audited["recipients"], audited["missing"], audited["repeated"]) == (0, 2, 0, 0)
        assert audited["outcomes"] == {"accepted": 2}


async def test_the_audit_knows_what_waits(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        write_config(tmp_path, channel("partner", partner.url))
        async with running(config) as worker:
            await worker.send("basic", send("i", ["a", "b"], not_before=now_ms() + HOUR_MS), send("j"))
            await worker.until(lambda: at_rest(worker) and partner.calls, "one waits, one is delivered")
            await worker.until(lambda: not any(ledger.uncommitted for ledger in worker.ledgers()), "committed")
            assert worker.pipeline.opens.sizes == [0, 0, 0], "what waits there counts against no budget"
            names = {metric.name: metric for metric in Snapshot(worker.pipeline).collect()}
            assert {s.labels["tier"]: s.value for s in names["surgetank_later_sends"].samples}["basic"] == 1
        code, out, _ = await run("audit", "-c", tmp_path / "surgetank.toml", "--json")
        audited = json.loads(out)
        assert (code, audited["waiting"], audited["missing"], audited["outcomes"]) == (0, 2, 0, {"accepted": 1})
        assert audited["read"]["later"] == 1
        code, out, _ = await run("why", "--send", "i", "-c", tmp_path / "surgetank.toml", "--timeout", "100ms")
        waits, nobody = out.splitlines()
        assert waits.startswith(
            "on the log: basic, partner/default, tenant default: 1 sends, 2 recipients: not before "
        )
        assert (code, nobody) == (1, "no worker answered within 100ms")
        code, out, _ = await run("why", "k", "-c", tmp_path / "surgetank.toml", "--timeout", "100ms", "--json")
        assert json.loads(out)["later"] == {"read": 1, "all": True, "waits": []}


async def test_cancelled_while_it_waits(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with running(config, clock) as worker:
            at = now_ms() + 3 * HOUR_MS
            ends = [send(f"i{n}", ["a", "b"], not_before=at, campaign="k") for n in range(3)]
            stays = [send(f"kept{n}", not_before=at, campaign="k2") for n in range(6)]
            await worker.send("basic", stays[0], ends[0], stays[1], ends[1], stays[2], ends[2], *stays[3:])
            await worker.until(lambda: at_rest(worker) and waiting(worker) == 9, "on the log")
            commanded = Command(id="c", command="cancel", campaign="k", at=clock.wall_ms(), expires=at)
            key, text = encode_command(commanded)
            await worker.append(Record("surgetank.control", text, key))
            await worker.until(lambda: worker.ended()[Outcome.CANCELLED] == 6, "at once, as it is known here")
            await worker.until(lambda: at_rest(worker), "the others go on waiting")
            assert not partner.calls
            assert all(at <= said.until_ms <= at + 100 for _, said in await moves(worker)), "no hop shortens the wait"
            clock.ahead_ns += (at - clock.wall_ms() + 1) * NS_PER_MS
            told = await worker.judged()
            assert [reply.recipients for reply in told.replies] == [6]
            assert partner.ids == {"u": 6}


async def test_cancelled_as_it_moves_or_while_nobody_is_there(tmp_path: Path) -> None:
    """What a command covers ends as soon as somebody sees it on the later topic, not when it is due."""
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        at = now_ms() + 3 * HOUR_MS
        async with running(config, clock) as worker:
            await worker.send("basic", send("i", ["a", "b"], not_before=at, campaign="k"), send("j", not_before=at))
            await worker.until(lambda: at_rest(worker) and waiting(worker) == 2, "on the log")
        async with opened(config) as log:
            await log.append([cancel("k", now_ms())])
        async with running(config, clock) as worker:
            await worker.until(lambda: worker.ended()[Outcome.CANCELLED] == 2, "at once")
            await worker.until(lambda: at_rest(worker) and waiting(worker) == 1, "the other goes on waiting")
            assert not partner.calls


async def test_what_expires_while_it_waits_is_told_so(tmp_path: Path) -> None:
    clock = Ahead()
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with running(config, clock) as worker:
            at = now_ms() + HOUR_MS
            await worker.send("basic", send("i", not_before=at, deadline=at))
            await worker.until(lambda: at_rest(worker), "on the log")
            clock.ahead_ns += 61 * MINUTE_NS
            told = await worker.judged()
            assert told.end("i").outcome is Outcome.EXPIRED
            assert not partner.calls


async def test_its_id_stays_taken_while_it_waits(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with running(config) as worker:
            await worker.send("basic", send("i", not_before=now_ms() + HOUR_MS))
            await worker.until(lambda: at_rest(worker), "on the log")
            await worker.send("basic", send("i", "other"))
            await worker.until(lambda: worker.ended()[Outcome.DUPLICATE] == 1, "the second is a duplicate")
            assert not partner.calls


async def test_an_id_that_is_free_again_may_wait_there_again(tmp_path: Path) -> None:
    """Its first send was moved as often, and reached nobody."""
    clock = Ahead()
    seen: list[Arrived] = []

    async def answer(call: Arrived) -> web.Response:
        seen.append(call)
        failed = {"results": [{"id": "a", "code": "failed"}]}
        return web.json_response(failed) if len(seen) == 1 else await accept(call)

    async with gateway(answer=answer) as partner:
        async with running(configured(tmp_path, channel("partner", partner.url)), clock) as worker:
            for _ in range(2):
                await worker.send("basic", send("i", ["a"], not_before=clock.wall_ms() + HOUR_MS))
                await worker.until(lambda: at_rest(worker), "on the log")
                clock.ahead_ns += 61 * MINUTE_NS
                worker.pipeline.dispatcher.wake()
                told = await worker.judged()
        ends = Counter(end.outcome for ends in told.outcomes().values() for end in ends)
        assert ends == {Outcome.FAILED: 1, Outcome.ACCEPTED: 1}


async def test_urgent_first_when_all_are_due_at_once(tmp_path: Path) -> None:
    """The tier's priority holds for what comes back, and what comes back in crowds holds up nobody else's."""
    clock = Ahead()
    go_on = asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        await go_on.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        config = configured(tmp_path, channel("partner", partner.url, "in_flight = 2\nbatch = 1"))
        async with running(config, clock) as worker:
            at = now_ms() + HOUR_MS
            crowd = [send(f"b{n}", f"b{n}", not_before=at) for n in range(300)]
            await worker.send("basic", *crowd)
            await worker.send("system", send("s", "s", not_before=at))
            await worker.until(lambda: at_rest(worker) and waiting(worker) == 301, "on the log")
            clock.ahead_ns += 61 * MINUTE_NS
            await worker.until(lambda: "s" in partner.ids, "urgent")
            assert len(partner.calls) <= 2, "beside it only what had left before it came back"
            go_on.set()
            await worker.judged()


# --- retries


def out_of_order(calls: int) -> tuple[list[Arrived], Answer]:
    """Answers 500 so often."""
    seen: list[Arrived] = []

    async def answer(call: Arrived) -> web.Response:
        seen.append(call)
        return await accept(call) if len(seen) > calls else web.Response(status=500)

    return seen, answer


async def test_retries_that_wait_long_wait_on_the_log(tmp_path: Path) -> None:
    clock = Ahead()
    _, answer = out_of_order(2)
    async with gateway(answer=answer) as partner:
        retry = 'retry = { first = "20s", most = "20m" }'
        config = configured(tmp_path, channel("partner", partner.url, retry), '[later]\nretries = "5s"')
        async with running(config, clock) as worker:
            await worker.send("template", send("i", ["a", "b"]))
            await worker.until(lambda: at_rest(worker), "the first retry waits there")
            clock.ahead_ns += MINUTE_NS
            await worker.until(lambda: moved(worker, "retry") == 4 and at_rest(worker), "the second too")
            clock.ahead_ns += MINUTE_NS
            told = await worker.judged()
            assert told.end("i", "a") == (Outcome.ACCEPTED, "", 3, "")
            way = await moves(worker)
        assert [(topic, said.hop, said.attempts, said.reason) for topic, said in way] == [
            ("1m", 1, 1, "retry"),
            ("1m", 2, 2, "retry"),
        ]
        assert way[0][1].detail == "server error"


async def test_an_outage_uses_up_nobodys_attempts(tmp_path: Path) -> None:
    """Without the budget each would have been called some 40 times, and be dead."""
    out = True

    async def answer(call: Arrived) -> web.Response:
        return web.Response(status=500) if out else await accept(call)

    sends = 200
    retry = 'retry = { attempts = 12, first = "1ms", most = "2ms", budget_percent = 20, budget_per_s = 1 }'
    async with gateway(answer=answer) as partner:
        config = configured(tmp_path, channel("partner", partner.url, "batch = 1\n" + retry), SOON)
        async with running(config) as worker:
            await worker.send("basic", *(send(f"i{n}", f"u{n}") for n in range(sends)))
            # Each has been called, and then has come back from the log more often than it has attempts.
            await worker.until(lambda: moved(worker, "retry_budget") > 15 * sends, "out for long")
            retries = len(partner.calls) - sends
            seconds = worker.clock.now_ns() / NS_PER_S - partner.calls[0].at_ns / NS_PER_S
            assert retries <= 10 + seconds + sends * 0.2 + 1, "a fifth, and one a second"
            assert not worker.ended()
            out = False
            told = await worker.judged()
            ends = [end for ends in told.outcomes().values() for end in ends]
            assert {end.outcome for end in ends} == {Outcome.ACCEPTED}
            assert not told.dead
            assert max(end.attempts for end in ends) < 12


async def test_a_part_of_a_send_moves_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def answer(call: Arrived) -> web.Response:
        again = [{"id": id, "code": "retry"} for id in call.ids if id != "fine" and partner.ids[id] < 4]
        return web.json_response({"results": again})

    async with gateway(answer=answer) as partner:
        retry = 'retry = { first = "60ms", most = "60ms" }'
        config = configured(tmp_path, channel("partner", partner.url, "batch = 2\n" + retry), SOON)
        async with running(config) as worker:
            await worker.send("basic", send("i", ["fine", "x", "y", "z", "x"], meta="m"))
            told = await worker.judged()
            way = await moves(worker)
            assert {id: max(end.attempts for end in told.by_id()["i", id]) for id in ("fine", "x", "y", "z")} == {
                "fine": 1, "x": 4, "y": 4, "z": 4,
            }  # fmt: skip
            assert partner.ids == {"fine": 1, "x": 4, "y": 4, "z": 4}
        assert all(said.positions and 0 not in said.positions and 4 not in said.positions for _, said in way)


# --- the log fails


class Fails:
    """The log's ``append``, which fails for later topics as often as told: before or after it has written."""

    def __init__(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.written = False
        self.error: type[Exception] = LogUnavailable
        self.failed = 0
        self._append = log.append
        monkeypatch.setattr(log, "append", self.append)

    async def append(self, records: Sequence[Record]) -> None:
        to_later = any(".later." in one.topic for one in records)
        if to_later and self.left:
            self.left -= 1
            self.failed += 1
            if self.written:
                await self._append(records)
            raise self.error("for a test")
        await self._append(records)


@pytest.mark.parametrize("written", [False, True])
async def test_a_move_that_fails_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), SOON)
        async with running(config) as worker:
            fails = Fails(worker.log, monkeypatch)
            fails.left, fails.written = 2, written
            at = now_ms() + 1_500
            await worker.send("basic", send("i", ["a", "b"], not_before=at), send("j", not_before=at))
            await worker.until(lambda: fails.failed == 1, "it has failed")
            assert sum(worker.pipeline.counters.moving), "it is ours until the log has it"
            assert worker.pipeline.opens
            await worker.judged()
            assert fails.failed == 2
            assert partner.ids == {"a": 1, "b": 1, "u": 1}
            assert bool(sum(worker.pipeline.counters.replayed_twice)) == written


async def test_what_the_log_refuses_to_move_waits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), SOON)
        async with running(config) as worker:
            fails = Fails(worker.log, monkeypatch)
            fails.left, fails.error = 1 << 30, RecordRefused
            at = now_ms() + 500
            await worker.send("basic", send("i", ["a", "b"], not_before=at), send("j", not_before=at))
            await worker.judged()
            assert worker.pipeline.later.refused == 2
            assert now_ms() >= at
            assert partner.ids == {"a": 1, "b": 1, "u": 1}


async def test_stopped_while_it_moves_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), SOON)
        async with opened(config) as log:
            fails = Fails(log, monkeypatch)
            fails.left = 1 << 30
            worker = Worker(config, log, Ahead())
            await worker.pipeline.start()
            await worker.send("basic", send("i", ["a", "b"], not_before=now_ms() + 1_000))
            await worker.until(lambda: fails.failed, "it cannot move")
            assert await worker.pipeline.stop(0.1)
        async with running(config) as worker:
            told = await worker.judged()
            assert told.end("i", "a").outcome is Outcome.ACCEPTED
            assert partner.ids == {"a": 1, "b": 1}
