"""Platforms that fail: who is tried again, when, how often, and how those end whom no attempt helps."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from aiohttp import web

from engine.clock import Clock
from engine.send import Outcome
from tests.integration.support import (
    DEADLINE_S,
    Answer,
    Arrived,
    Worker,
    channel,
    configured,
    gateway,
    now_ms,
    opened,
    partnered,
    send,
    within,
    working,
)

QUICKLY = 'retry = { attempts = 4, first = "2ms", most = "10ms" }'
OK = web.json_response


def failing(times: int, status: int, headers: dict[str, str] | None = None) -> Answer:
    """Fails so often, then accepts everybody."""
    left = times

    async def answer(_: Arrived) -> web.Response:
        nonlocal left
        left -= 1
        return web.Response(status=status, headers=headers) if left >= 0 else OK({"results": []})

    return answer


@pytest.mark.parametrize("status", [500, 502, 503, 429, 307])
async def test_the_whole_batch_again_until_it_is_taken(tmp_path: Path, status: int) -> None:
    async with partnered(tmp_path, QUICKLY, failing(3, status)) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b"], campaign="k"))
        told = await worker.judged()
        assert [end.attempts for id in "ab" for end in [told.end("i", id)]] == [4, 4]
        assert told.end("i", "a").outcome is Outcome.ACCEPTED
        assert [call.ids for call in partner.calls] == [["a", "b"]] * 4
        assert len({call.batch for call in partner.calls}) == 1, "the same call has the same key"
        assert sum(worker.pipeline.counters.retries.values()) == 6


async def test_not_before_the_platform_wishes(tmp_path: Path) -> None:
    async with partnered(tmp_path, QUICKLY, failing(1, 503, {"Retry-After": "1"})) as (partner, worker):
        await worker.send("system", send("i"))
        await worker.judged()
        first, second = partner.calls
        assert second.at_ns - first.at_ns >= 1_000_000_000


async def test_a_recipient_is_tried_again_when_its_gateway_wishes(tmp_path: Path) -> None:
    async def answer(call: Arrived) -> web.Response:
        again = [] if len(partner.calls) > 1 else [{"id": "a", "code": "retry", "retry_after_ms": 300}]
        return OK({"results": again})

    async with partnered(tmp_path, QUICKLY, answer) as (partner, worker):
        await worker.send("system", send("i", ["a", "b"]))
        told = await worker.judged()
        first, second = partner.calls
        assert (first.ids, second.ids) == (["a", "b"], ["a"])
        assert second.at_ns - first.at_ns >= 300_000_000
        assert (told.end("i", "a").attempts, told.end("i", "b").attempts) == (2, 1)


async def test_a_platform_that_is_not_there_yet(tmp_path: Path) -> None:
    with socket.socket() as bound:  # refused for certain, and the port is ours
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        config = configured(tmp_path, channel("partner", f"http://127.0.0.1:{port}/hook", QUICKLY))
        async with working(config) as worker:
            await worker.send("basic", send("i"))
            await worker.until(lambda: worker.pipeline.counters.retries["partner", "could not connect"], "refused")
            bound.close()
            async with gateway(port) as partner:
                told = await worker.judged()
                assert partner.ids == {"u": 1}
            end = told.end("i")
            assert (end.outcome, end.attempts > 1) == (Outcome.ACCEPTED, True)


async def test_attempts_run_out(tmp_path: Path) -> None:
    async def answer(call: Arrived) -> web.Response:
        return OK({"results": [{"id": id, "code": "retry"} for id in call.ids if id.startswith("never")]})

    async with partnered(tmp_path, QUICKLY, answer) as (partner, worker):
        value = send("i", ["a", "never1", "b", "never2"])
        await worker.send("basic", value, send("j", "never3"))
        told = await worker.judged()
        for id, to in (("i", "never1"), ("i", "never2"), ("j", "never3")):
            assert told.end(id, to) == (Outcome.DEAD, "retries exhausted after 4: retry", 4, "retry")
            assert partner.ids[to] == 4
        assert told.end("i", "a").attempts == 1
        dead = {dead.said.origin: dead for dead in told.dead}
        some, whole = (dead[origin] for origin in sorted(dead, key=lambda o: told.records[o] != value))
        assert (some.value, some.said.positions, some.said.attempts) == (value, [1, 3], 4)
        assert whole.said.positions is None


async def test_refused_for_everybody(tmp_path: Path) -> None:
    async with partnered(tmp_path, "batch = 2\n" + QUICKLY, failing(9, 403)) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b", "c", "d"]))
        told = await worker.judged()
        assert len(partner.calls) == 2
        assert {end.outcome for ends in told.outcomes().values() for end in ends} == {Outcome.DEAD}
        assert {told.end("i", id).code for id in "abcd"} == {"http_403"}
        assert sorted(p for dead in told.dead for p in dead.said.positions or []) == [0, 1, 2, 3]


async def test_every_recipient_of_a_batch_its_own_way(tmp_path: Path) -> None:
    async def answer(call: Arrived) -> web.Response:
        codes = {"gone": "failed", "again": "retry", "odd": "surely"}
        tried = partner.ids
        rows = [{"id": id, "code": codes[id], "reason": "why"} for id in call.ids if id in codes]
        return OK({"results": [row for row in rows if row["code"] == "failed" or tried[row["id"]] < 3]})

    async with partnered(tmp_path, QUICKLY, answer) as (partner, worker):
        await worker.send("basic", send("i", ["fine", "gone", "again", "odd"]), send("j", "also"))
        told = await worker.judged()
        assert told.end("i", "fine")[:3] == (Outcome.ACCEPTED, "", 1)
        assert told.end("i", "gone")[:3] == (Outcome.FAILED, "why", 1)
        assert told.end("i", "again")[:3] == (Outcome.ACCEPTED, "", 3)
        assert told.end("i", "odd")[:3] == (Outcome.ACCEPTED, "", 3)
        assert told.end("j", "also")[:3] == (Outcome.ACCEPTED, "", 1)
        assert not told.dead


async def test_a_call_whose_effect_nobody_knows(tmp_path: Path) -> None:
    """See test_pipeline_never.py for channels that forbid repeats."""
    hung = asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        if len(partner.calls) == 1:
            await hung.wait()
        return OK({"results": []})

    more = 'timeout = "200ms"\n' + QUICKLY
    async with partnered(tmp_path, more, answer) as (partner, worker):
        await worker.send("basic", send("i"))
        told = await worker.judged()
        hung.set()
        assert told.end("i")[:3] == (Outcome.ACCEPTED, "", 2)
        assert partner.ids == {"u": 2}


async def test_expired_between_two_attempts(tmp_path: Path) -> None:
    async with gateway(answer=failing(99, 500)) as partner:
        config = configured(tmp_path, channel("partner", partner.url, 'retry = { first = "200ms", most = "1s" }'))
        async with working(config) as worker:
            await worker.send("basic", send("i", deadline=now_ms() + 400))
            told = await worker.judged()
            end = told.end("i")
            assert end.outcome is Outcome.EXPIRED
            assert 1 <= end.attempts == len(partner.calls)


# --- rests


async def test_a_rest_the_platform_wants_is_the_accounts_alone(tmp_path: Path) -> None:
    """After a few calls that found it out of service the account rests, and the other one goes on."""

    async def answer(call: Arrived) -> web.Response:
        out = call.account == "a" and sum(c.account == "a" for c in partner.calls) <= 4
        return web.Response(status=503) if out else OK({"results": []})

    more = QUICKLY + "\n[channels.partner.accounts.a]\n[channels.partner.accounts.b]\n"
    async with partnered(tmp_path, more, answer) as (partner, worker):
        await worker.send("basic", send("a", account="a"))
        await worker.until(lambda: worker.pipeline.counters.throttled["partner"], "a rests")
        await worker.send("basic", send("b", account="b"))
        await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 1, "b goes")
        told = await worker.judged()
        end = told.end("a")
        assert (end.outcome, end.attempts) == (Outcome.ACCEPTED, 4)
        assert [call.account for call in partner.calls] == ["a"] * 4 + ["b", "a"]


async def test_drained_within_its_deadline_though_the_platform_hangs(tmp_path: Path) -> None:
    hung = asyncio.Event()

    async def answer(call: Arrived) -> web.Response:
        await hung.wait()
        return OK({"results": []})

    async with gateway(answer=answer) as partner:
        config = configured(tmp_path, channel("partner", partner.url, 'timeout = "1h"'))
        async with opened(config) as log:
            worker = Worker(config, log, Clock())
            await worker.pipeline.start()
            await worker.send("system", send("hangs"))
            await worker.until(lambda: partner.calls, "it hangs")
            with within(DEADLINE_S):
                assert await worker.pipeline.stop(0.2), "told and committed, all the same"
        hung.set()
        async with working(config) as worker:
            told = await worker.judged()
            assert told.end("hangs").outcome is Outcome.ACCEPTED
            assert partner.ids == {"u": 2}
