"""Channels with ``repeats = "never"``: a call without an answer is made again only exactly, under its name, and where
the platform knows no names not at all; in one run and over kill -9."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from engine.config import load
from engine.errors import RecordRefused
from engine.logs import Record
from engine.send import Outcome
from tests.integration.support import (
    Arrived,
    Gateway,
    Told,
    Worker,
    cancel,
    channel,
    configured,
    corp,
    gateway,
    now_ms,
    opened,
    partnered,
    registered,
    send,
    working,
)
from tests.integration.test_pipeline_process import WITHIN_S, append, log_of, serving

OK = web.json_response
NEVER = 'repeats = "never"\ntimeout = "300ms"\nretry = { attempts = 3, first = "10ms", most = "20ms" }\n'
KEPT = NEVER.replace("300ms", "60s")  # hangs until it is killed


class Killed(Exception):
    """Of a pipeline: it tells and commits nothing more."""


class Hung:
    """A gateway's answer: the first so many calls get none."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.hangs = asyncio.Event()
        self.over = asyncio.Event()

    async def __call__(self, _: Arrived) -> web.Response:
        self.left -= 1
        if self.left >= 0:
            self.hangs.set()
            await self.over.wait()
        return OK({"results": []})


def said_by(gateway: Gateway) -> list[tuple[str, list[str]]]:
    """Each call's name and whom it was for."""
    return [(call.batch, call.ids) for call in gateway.calls]


async def test_a_call_without_an_answer_is_made_again_exactly(tmp_path: Path) -> None:
    """What came meanwhile, of the same flow, does not join it, though it would fit."""
    hung = Hung(1)
    async with partnered(tmp_path, NEVER, hung) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b"]), send("j", "c"))
        async with asyncio.timeout(WITHIN_S):
            await hung.hangs.wait()
        await worker.send("basic", send("k", "d"))
        told = await worker.judged()
        hung.over.set()
        first = said_by(partner)[0]
        assert Counter(call[0] for call in said_by(partner))[first[0]] == 2
        assert [ids for name, ids in said_by(partner) if name == first[0]] == [first[1]] * 2
        assert sorted(partner.ids) == ["a", "b", "c", "d"]
        assert partner.ids["d"] == 1
        ends = [told.end("i", "a"), told.end("i", "b"), told.end("j", "c"), told.end("k", "d")]
        assert [end.outcome for end in ends] == [Outcome.ACCEPTED] * 4


async def test_each_of_its_calls_counts_as_a_message(tmp_path: Path) -> None:
    """For either may be the one that arrived."""
    hung = Hung(1)
    rules = NEVER + 'frequency = [{ messages = 3, per = "1h" }]'
    async with partnered(tmp_path, rules, hung) as (partner, worker):
        await worker.send("basic", send("i", "a", campaign="i"))
        await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 1, "made again")
        await worker.send("basic", send("j", "a", campaign="j"))
        await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 2, "the third")
        await worker.send("basic", send("k", "a", campaign="k"))
        await worker.until(lambda: worker.pipeline.frequencies.waited["partner"] == 1, "the last one waits")
        hung.over.set()
        assert partner.ids == {"a": 3}


async def test_one_that_is_never_answered_ends_unknown(tmp_path: Path) -> None:
    hung = Hung(99)
    async with partnered(tmp_path, NEVER, hung) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b"]))
        told = await worker.judged()
        hung.over.set()
        assert [told.end("i", to).outcome for to in "ab"] == [Outcome.UNKNOWN] * 2
        assert len(set(map(str, said_by(partner)))) == 1
        assert len(partner.calls) == 3


async def test_a_busy_answer_to_the_repeat_leaves_it_as_uncertain_as_before(tmp_path: Path) -> None:
    hung, calls = Hung(1), []

    async def answer(call: Arrived) -> web.Response:
        calls.append(call)
        return web.Response(status=503) if len(calls) == 2 else await hung(call)

    async with partnered(tmp_path, NEVER, answer) as (_, worker):
        await worker.send("basic", send("i", ["a", "b"]))
        told = await worker.judged()
        hung.over.set()
        assert [told.end("i", to).outcome for to in "ab"] == [Outcome.ACCEPTED] * 2
        assert len({call.batch for call in calls}) == 1
        assert len(calls) == 3


async def test_what_was_refused_in_passing_may_go_in_another_call(tmp_path: Path) -> None:
    async def answer(call: Arrived) -> web.Response:
        return web.Response(status=503) if len(partner.calls) == 1 else OK({"results": []})

    async with partnered(tmp_path, NEVER, answer) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b"]))
        told = await worker.judged()
        assert [told.end("i", to)[:3] for to in "ab"] == [(Outcome.ACCEPTED, "", 2)] * 2


async def test_cancelled_meanwhile_it_is_unknown(tmp_path: Path) -> None:
    hung = Hung(1)
    never = NEVER.replace('"10ms"', '"10m"').replace('"20ms"', '"10m"')
    async with partnered(tmp_path, never, hung) as (_, worker):
        await worker.send("basic", send("i", ["a", "b"], campaign="c"))
        await worker.until(lambda: worker.pipeline.counters.retries.total(), "it waits to be made again")
        await worker.append(cancel("c", now_ms()))
        told = await worker.judged()
        hung.over.set()
        assert [told.end("i", to).outcome for to in "ab"] == [Outcome.UNKNOWN] * 2


async def test_records_of_calls_go_once_all_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.attempts.TIDY_EVERY_S", 0.01)
    async with partnered(tmp_path, NEVER) as (_, worker):
        await worker.send("basic", send("i", ["a", "b"]), send("j", "c"))
        await worker.judged()
        await worker.until(lambda: not worker.pipeline.attempts._standing, "tidied")
        assert set((await attempts_of(worker)).values()) == {None}
        assert len(await attempts_of(worker)) == 2 * len(worker.pipeline.counters.attempts) > 0


async def test_a_record_of_a_call_that_the_log_refuses_stops_that_call_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with partnered(tmp_path, NEVER) as (partner, worker):
        append_all = worker.log.append

        async def append_none_of_a(records: Sequence[Record]) -> None:
            if any(one.topic.endswith(".attempts") and b"too-large" in (one.value or b"") for one in records):
                raise RecordRefused("larger than the topic takes")
            await append_all(records)

        monkeypatch.setattr(worker.log, "append", append_none_of_a)
        await worker.send("basic", send("i", "too-large", campaign="c"), send("j", "b", campaign="d"))
        told = await worker.judged()
        assert partner.ids == {"b": 1}
        assert told.end("i", "too-large")[:2] == (Outcome.DEAD, "the log refuses a record of the call")
        assert told.end("j", "b").outcome is Outcome.ACCEPTED
        assert len(told.dead) == 1


async def attempts_of(worker: Worker) -> dict[bytes | None, bytes | None]:
    """The newest value of each key."""
    found: dict[bytes | None, bytes | None] = {}
    reader = await worker.log.reader(["surgetank.attempts"])
    while not await reader.at_end():
        for chunk in await reader.poll(100, 0.1):
            found.update(zip(chunk.keys, chunk.values, strict=True))
    await reader.close()
    return found


# --- where the platform knows no names

ACCOUNT = '[channels.notice.accounts.a]\ncorpid = "c"\ncorpsecret = "s"\nagentid = 1\n'
NOTICE = {"type": "text", "text": "hello"}


async def test_without_a_name_the_call_is_not_made_again(tmp_path: Path) -> None:
    async with corp() as platform:
        platform.silent = asyncio.Event()
        notice = channel("notice", platform.url, NEVER + ACCOUNT, "wecom.message")
        async with working(configured(tmp_path, notice)) as worker:
            await worker.send("basic", send("i", channel="notice", content=NOTICE))
            told = await worker.judged()
            platform.silent.set()
            assert told.end("i")[:3] == (Outcome.UNKNOWN, "no answer in time", 1)
            await worker.send("basic", send("i", "v", channel="notice", content=NOTICE))
            told = await worker.judged()  # it may have got there: the id stays taken
            assert told.end("i", "v").outcome is Outcome.DUPLICATE
            assert platform.ids == {"u": 1}


async def test_killed_in_a_call_without_a_name_it_is_unknown(tmp_path: Path) -> None:
    async with corp() as platform:
        platform.silent = asyncio.Event()
        notice = channel("notice", platform.url, KEPT + ACCOUNT, "wecom.message")
        async with serving(tmp_path, notice) as engine:
            await engine.ready()
            await append(tmp_path, send("i", channel="notice", content=NOTICE))
            async with asyncio.timeout(WITHIN_S):
                while not platform.ids:  # noqa: ASYNC110 - it is the platform's, and knows of no test
                    await asyncio.sleep(0.01)
            engine.process.kill()
            await engine.process.wait()
        platform.silent.set()
        async with working(configured(tmp_path, notice)) as worker:
            await worker.send("basic", send("j", "v", channel="notice", content=NOTICE))
            told = await worker.judged()
            assert told.end("i")[:2] == (Outcome.UNKNOWN, "a worker died during the call")
            assert told.end("j", "v").outcome is Outcome.ACCEPTED
        assert platform.ids == {"u": 1, "v": 1}


# --- kill -9


@asynccontextmanager
async def killed_in_a_call(directory: Path, more: str = "") -> AsyncIterator[Gateway]:
    """An engine that was killed while the call for a, b (of one send) and c was under way; d was queued."""
    hung = Hung(1)
    async with gateway(answer=hung) as partner:
        rule = f'{KEPT}limits = [{{ calls = 1, per = "1h" }}]\n{more}'
        async with serving(directory, channel("partner", partner.url, rule)) as engine:
            await engine.ready()
            await append(directory, send("i", ["a", "b"]), send("j", "c"))
            async with asyncio.timeout(WITHIN_S):
                await hung.hangs.wait()
            await append(directory, send("k", "d"))
            engine.process.kill()
            await engine.process.wait()
        hung.over.set()
        yield partner


def outcomes(told: Told) -> dict[str, set[Outcome]]:
    """What was told of each recipient."""
    return {to: {end.outcome for end in ends} for (_, to), ends in told.by_id().items()}


async def test_killed_in_a_call_it_makes_exactly_that_one_again(tmp_path: Path) -> None:
    async with killed_in_a_call(tmp_path) as partner:
        first = said_by(partner)[0]
        async with working(configured(tmp_path, channel("partner", partner.url, KEPT))) as worker:
            told = await worker.judged()
        again = [call for call in said_by(partner)[1:] if call[0] == first[0]]
        assert again
        assert all(call == first for call in again)
        assert partner.ids["d"] == 1
        assert outcomes(told) == {to: {Outcome.ACCEPTED} for to in "abcd"}


async def test_killed_in_a_call_whose_content_is_another_now_it_is_unknown(tmp_path: Path) -> None:
    """A registered content was registered anew: the same call cannot be made."""
    async with gateway(answer=(hung := Hung(1))) as partner:
        async with serving(tmp_path, channel("partner", partner.url, KEPT)) as engine:
            await engine.ready()
            await register(tmp_path, "old")
            await append(tmp_path, send("i", "a", content={"ref": "r"}))
            async with asyncio.timeout(WITHIN_S):
                await hung.hangs.wait()
            engine.process.kill()
            await engine.process.wait()
        hung.over.set()
        await register(tmp_path, "new")
        async with working(configured(tmp_path, channel("partner", partner.url, KEPT))) as worker:
            await worker.until(lambda: worker.ended()[Outcome.UNKNOWN] == 1, "unknown")
        assert partner.ids == {"a": 1}
        assert outcomes(await log_of(tmp_path)) == {"a": {Outcome.UNKNOWN}}


async def register(directory: Path, text: str) -> None:
    async with opened(load(directory / "surgetank.toml"), engine=False) as log:
        await log.append([registered("r", {"text": text})])


async def test_killed_before_its_receipts_it_tells_the_end_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The platform said no to one and yes to the other; the process died before that was told: both stand."""

    async def answer(call: Arrived) -> web.Response:
        return OK({"results": [{"id": "b", "code": "failed", "reason": "why"}]})

    async with gateway(answer=answer) as partner:
        config = configured(tmp_path, channel("partner", partner.url, KEPT))
        to_be_told = asyncio.Event()

        async def append_nothing(_: list[Record]) -> None:
            to_be_told.set()
            await asyncio.Event().wait()

        with suppress(Killed):
            async with working(config) as worker:
                monkeypatch.setattr(worker.pipeline.recorder, "_append", append_nothing)
                await worker.send("basic", send("i", ["a", "b"]))
                async with asyncio.timeout(WITHIN_S):
                    await to_be_told.wait()
                raise Killed
        async with working(config) as worker:
            told = await worker.judged()
        assert partner.ids == {"a": 1, "b": 1}
        assert told.end("i", "a").outcome is Outcome.ACCEPTED
        assert (told.end("i", "b").outcome, told.end("i", "b").reason) == (Outcome.FAILED, "why")
