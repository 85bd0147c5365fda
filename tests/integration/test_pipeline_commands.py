"""What changes while sends are on their way: cancel commands, registered contents, a log that cannot be written."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

import engine.commit
import engine.record
from engine.cancelled import Standing
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.consume import POLL_RECORDS, POLL_TIMEOUT_S
from engine.logs import Record
from engine.logs.sqlite_read import SqliteConsumer
from engine.send import Outcome, Tier
from tests.integration.support import (
    DEADLINE_S,
    Ahead,
    Arrived,
    Told,
    Worker,
    accept,
    cancel,
    channel,
    configured,
    gateway,
    now_ms,
    opened,
    partnered,
    record,
    registered,
    send,
    within,
    working,
)

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def outcomes(told: Told, id: str) -> set[Outcome]:
    return {end.outcome for (of, _), ends in told.by_id().items() for end in ends if of == id}


# --- cancel


async def test_a_campaign_is_cancelled_wherever_it_waits(tmp_path: Path) -> None:
    limited = 'batch = 1\nlimits = [{ calls = 1, per = "1h" }]\n[channels.partner.accounts.a]\n'
    async with partnered(tmp_path, limited) as (partner, worker):
        later = now_ms() + 10 * MINUTE_MS  # within the horizon
        await worker.send("basic", send("before", campaign="other"))
        await worker.until(lambda: partner.calls, "the only call of this hour is made")
        await worker.send("basic", send("queued", ["a", "b"], campaign="k"), send("stays", campaign="other"))
        await worker.send("template", send("scheduled", ["c"], campaign="k", not_before=later))
        await worker.send("system", send("theirs", ["d"], campaign="k", tenant="t"), send("none"))
        await worker.until(lambda: worker.pipeline.counters.taken_in == [2, 1, 4], "taken in")
        at = now_ms()
        await worker.append(cancel("k", at))
        await worker.until(lambda: worker.ended()[Outcome.CANCELLED] == 4, "cancelled")
        # First seen before the command, read after it; and another that came later.
        await worker.append(record("basic", send("old", campaign="k"), timestamp_ms=now_ms() - 5000))
        await worker.until(lambda: worker.ended()[Outcome.CANCELLED] == 5, "cancelled too")
        await worker.append(record("basic", send("new", ["e"], campaign="k"), timestamp_ms=at + 1))
        await worker.until(lambda: worker.pipeline.counters.taken_in[2] == 6, "taken in")
        assert len(worker.pipeline.opens) == 3
        await worker.until(lambda: not worker.pipeline.recorder.backlog, "told")
        told = await told_of(worker)
        assert [reply.recipients for reply in told.replies] == [4]
        assert {reply.reply_to for reply in told.replies} == {"c1"}
        for id in ("queued", "scheduled", "theirs", "old"):
            assert outcomes(told, id) == {Outcome.CANCELLED}
        assert not {id for id, _ in told.by_id()} & {"stays", "none", "new"}
        assert len(partner.calls) == 1


async def told_of(worker: Worker) -> Told:
    """The log, once a reply stands on it."""
    async with asyncio.timeout(DEADLINE_S):
        while not (told := await worker.told()).replies:
            worker.check()
    return told


async def test_cancelled_in_one_tenant(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (_, worker):
        later = now_ms() + 10 * MINUTE_MS  # within the horizon
        for tenant in "tu":
            await worker.send("basic", send(tenant, campaign="k", tenant=tenant, not_before=later))
        await worker.until(lambda: worker.pipeline.counters.taken_in[2] == 2, "taken in")
        await worker.append(cancel("k", now_ms(), tenant="t"))
        told = await told_of(worker)
        assert [reply.recipients for reply in told.replies] == [1]
        assert worker.ended() == {Outcome.CANCELLED: 1}
        await worker.until(lambda: not worker.pipeline.recorder.backlog, "told")
        assert outcomes(await worker.told(), "t") == {Outcome.CANCELLED}


async def test_a_retry_of_a_cancelled_campaign_is_cancelled(tmp_path: Path) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        asked.set()
        await answered.wait()
        return web.Response(status=500)

    async with partnered(tmp_path, "", answer) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b"], campaign="k"))
        await worker.until(asked.is_set, "in flight")
        await worker.append(cancel("k", now_ms()))
        assert [reply.recipients for reply in (await told_of(worker)).replies] == [0]
        answered.set()
        told = await worker.judged()
        assert [told.end("i", id)[:3] for id in "ab"] == [(Outcome.CANCELLED, "", 1)] * 2
        assert len(partner.calls) == 1
        await worker.send("basic", send("i", "again"))  # nobody was reached: the id is free
        partner.answer = accept
        assert (await worker.judged()).end("i", "again").outcome is Outcome.ACCEPTED


async def test_a_command_is_obeyed_after_a_restart(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        at = now_ms() + 10 * MINUTE_MS
        async with working(config) as worker:
            await worker.append(
                cancel("k", at),
                Record("surgetank.control", b"junk", b"cancel//junk"),
                Record("surgetank.control", None, b"cancel//none"),
                record("basic", send("scheduled", campaign="k", not_before=at)),
            )
            await worker.judged()
        async with working(config) as worker:
            await worker.send("basic", send("i", campaign="k"), send("j", "v", campaign="l"))
            await worker.all_ended(2)
            assert outcomes(await worker.told(), "i") == {Outcome.CANCELLED}
            assert partner.ids == {"v": 1}


async def test_what_waits_for_its_content_is_cancelled_and_counted(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        ref = {"ref": "never"}
        await worker.send("basic", send("held", ["a", "b"], campaign="k", content=ref))
        await worker.send("system", send("too", ["c"], campaign="k", content=ref))
        await worker.send("basic", send("other", ["d"], campaign="l", content=ref), send("none", ["e"], content=ref))
        await worker.until(lambda: worker.pipeline.counters.held == [1, 0, 4], "held")
        await worker.append(cancel("k", now_ms()))
        assert [reply.recipients for reply in (await told_of(worker)).replies] == [3]
        assert worker.pipeline.counters.held == [0, 0, 2]
        await worker.append(registered("never", {"text": "now"}))
        told = await worker.judged()
        assert outcomes(told, "held") == outcomes(told, "too") == {Outcome.CANCELLED}
        assert partner.ids == {"d": 1, "e": 1}


async def test_a_command_stands_until_it_expires(tmp_path: Path) -> None:
    clock = Ahead()
    async with partnered(tmp_path, clock=clock) as (partner, worker):
        at = now_ms()
        await worker.append(cancel("k", at), record("basic", send("before", campaign="k"), timestamp_ms=at))
        await worker.all_ended(1)
        assert worker.ended() == {Outcome.CANCELLED: 1}
        clock.ahead_ns += 2 * HOUR_MS * NS_PER_MS
        await worker.append(record("basic", send("after", "v", campaign="k"), timestamp_ms=at))
        await worker.judged()
        assert partner.ids == {"v": 1}


async def test_an_expired_command_is_not_obeyed(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        await worker.append(cancel("k", now_ms() - 2 * HOUR_MS))
        await worker.append(record("basic", send("i", campaign="k"), timestamp_ms=now_ms() - 3 * HOUR_MS))
        await worker.judged()
        assert partner.ids == {"u": 1}


async def test_a_large_campaign_is_cancelled_at_once_and_told_bit_by_bit(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        to = [f"u{n}" for n in range(10_000)]
        for n in range(3):
            await worker.send("basic", send(f"i{n}", to, campaign="k", not_before=now_ms() + 10 * MINUTE_MS))
        await worker.until(lambda: worker.pipeline.counters.taken_in[2] == 30_000, "taken in")
        await worker.append(cancel("k", now_ms()))
        told = await worker.judged()
        assert Counter(end.outcome for ends in told.outcomes().values() for end in ends) == {Outcome.CANCELLED: 30_000}
        assert not partner.calls


# --- registered contents


async def test_a_content_registered_after_its_send(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        ref = {"ref": "welcome", "data": {"name": "Ann"}}
        await worker.send("basic", send("i", ["a", "b"], content=ref), send("none", "c"))
        await worker.until(lambda: worker.pipeline.counters.held[2] == 2, "held")
        await worker.until(lambda: partner.ids == {"c": 1}, "others go on")
        await worker.append(registered("welcome", {"text": "Hello {name}"}, "partner", name={"required": True}))
        told = await worker.judged()
        assert told.end("i", "a").outcome is Outcome.ACCEPTED
        assert partner.calls[-1].content == {"text": "Hello Ann"}


@pytest.mark.parametrize("tier", ["system", "basic"])
async def test_a_content_nobody_registers(tmp_path: Path, tier: str) -> None:
    clock = Ahead()
    async with partnered(tmp_path, clock=clock) as (partner, worker):
        intake = worker.pipeline.intakes[["system", "template", "basic"].index(tier)]
        held = worker.pipeline.counters.held
        value = send("i", ["a", "b"], content={"ref": "never"})
        await worker.send(tier, value)
        await worker.until(lambda: held[intake.tier] == 2, "held")
        clock.ahead_ns += 29 * NS_PER_S
        seen = worker.clock.wall_ms()
        await worker.until(lambda: intake.last_poll_ms > seen, "looked at")
        assert held[intake.tier] == 2
        clock.ahead_ns += 2 * NS_PER_S
        told = await worker.judged()
        assert [told.end("i", id)[:2] for id in "ab"] == [(Outcome.DEAD, "content_unknown")] * 2
        (dead,) = told.dead
        assert (dead.value, dead.said.reason, dead.said.detail) == (value, "content_unknown", "never")
        assert not partner.calls
        await worker.append(registered("never", {"text": "now"}))
        await worker.send(tier, send("i", "a", content={"ref": "never"}))  # its id is free
        await worker.until(lambda: partner.ids == {"a": 1}, "delivered")


async def test_a_content_registered_anew_changes_what_is_sent(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        templates = worker.pipeline.contents.templates
        ref = {"ref": "x"}
        await worker.append(registered("x", {"text": "old"}))
        await worker.until(lambda: "x" in templates, "registered")
        # One with the old content stays open meanwhile, so that what was checked for it is still at hand.
        at = now_ms() + 600
        await worker.send("basic", send("waits", "waits", content=ref, not_before=at), send("a", "a", content=ref))
        await worker.until(lambda: partner.ids["a"], "sent")
        await worker.append(registered("x", {"text": "new"}))
        await worker.until(lambda: templates["x"].content == {"text": "new"}, "registered anew")
        await worker.send("basic", send("b", "b", content=ref))
        await worker.judged()
        assert {id: call.content["text"] for call in partner.calls for id in call.ids} == {
            "a": "old", "waits": "old", "b": "new",
        }  # fmt: skip


async def test_a_broken_registration_leaves_the_old_one(tmp_path: Path) -> None:
    async with partnered(tmp_path) as (partner, worker):
        await worker.append(
            registered("x", {"text": "good"}),
            Record("surgetank.content", b"junk", b"x"),
            Record("surgetank.content", b"\x80", b"\xff"),
            registered("gone", {"text": "gone"}),
            Record("surgetank.content", None, b"gone"),
            registered("last", {}),
        )
        await worker.until(lambda: set(worker.pipeline.contents.templates) == {"x", "last"}, "all read")
        await worker.send("basic", send("i", content={"ref": "x"}))
        await worker.judged()
        assert partner.calls[0].content == {"text": "good"}


async def test_contents_are_there_before_the_first_send_after_a_restart(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with opened(config, engine=False) as log:
            many = [registered(f"x{n}", {"n": n}) for n in range(2500)]
            await log.append([*many, record("system", send("i", content={"ref": "x2499"}))])
        async with working(config) as worker:
            await worker.judged()
            assert [call.content for call in partner.calls] == [{"n": 2499}]
            assert worker.pipeline.counters.held == [0, 0, 0]


async def test_what_waits_for_its_content_counts_against_the_budget(tmp_path: Path) -> None:
    tiers = '[tiers.basic]\npacing = "asap"\nlinger = "1ms"\nbudget = { sends = 300, bytes = "4MiB" }\n'
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), tiers=tiers)
        async with working(config) as worker:
            counters = worker.pipeline.counters
            await worker.send("basic", *(send(f"i{n}", content={"ref": "never"}) for n in range(1200)))
            await worker.until(lambda: counters.held[2] >= 300, "the budget is used")
            await worker.send("system", *(send(f"s{n}") for n in range(3)))
            await worker.until(lambda: counters.taken_in[0] == 3, "others go on")
            assert counters.held[2] < 300 + 500
            await worker.append(registered("never", {"text": "now"}))
            await worker.judged()
            assert partner.ids.total() == 1203


# --- the log


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Another process holds the file's write lock."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


async def test_receipts_wait_for_the_log_and_nothing_is_lost(tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        await answered.wait()
        return web.json_response({"results": []})

    async with partnered(tmp_path, "", answer) as (partner, worker):
        await worker.send("basic", *(send(f"i{n}", f"u{n}") for n in range(20)))
        await worker.until(lambda: partner.calls, "in flight")
        with unwritable(tmp_path / "log.db"):
            answered.set()
            await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 20, "delivered all the same")
            assert worker.pipeline.recorder.backlog == 20
            assert sum(ledger.uncommitted for ledger in worker.ledgers()) == 20
        await worker.judged()
        assert partner.ids.total() == 20


async def test_at_half_of_what_may_be_uncommitted_a_commit_is_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.commit, "COMMIT_EVERY_S", 3600.0)
    tiers = '[tiers.basic]\npacing = "asap"\nlinger = "0s"\nbudget = { uncommitted = 40 }\n'
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), tiers=tiers)
        async with working(config) as worker:
            counters = worker.pipeline.counters
            await worker.send("basic", *(send(f"b{n}") for n in range(19)))
            await worker.all_ended(19)
            assert counters.uncommitted(Tier.BASIC) == 19
            await worker.send("basic", send("one more"))
            await worker.until(lambda: counters.committed[Tier.BASIC] >= 19, "committed")


async def test_drained_within_its_deadline_though_the_log_cannot_be_written(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with opened(config) as log:
            worker = Worker(config, log, Clock())
            await worker.pipeline.start()
            await worker.send("basic", *(send(f"i{n}", f"u{n}") for n in range(20)))
            await worker.until(lambda: len(partner.calls) == 1, "in flight")
            with unwritable(tmp_path / "log.db"):
                await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 20, "delivered")
                with within(10.0):
                    assert not await worker.pipeline.stop(1.0)
        async with working(config) as worker:
            # What was told late is not known to be told: it is done again, and told again.
            await worker.all_ended(20)
            await worker.until(lambda: not any(ledger.uncommitted for ledger in worker.ledgers()), "all committed")
            told = await worker.told()
            assert await worker.committed() == told.ends
            assert set(told.outcomes()) == set(told.wanted())
            assert {end.outcome for ends in told.outcomes().values() for end in ends} == {Outcome.ACCEPTED}
            assert set(partner.ids.values()) == {2}


async def test_drained_within_its_deadline_though_nothing_can_be_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.commit, "COMMIT_EVERY_S", 3600.0)
    monkeypatch.setattr(SqliteConsumer.commit, "__defaults__", (1.0,))  # how long a commit may take
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with opened(config) as log:
            worker = Worker(config, log, Clock())
            await worker.pipeline.start()
            for tier in ("system", "template", "basic"):
                await worker.send(tier, send(tier))
            await worker.all_ended(3)
            with unwritable(tmp_path / "log.db"), within(5.0):  # one commit's time, not one for each tier and more
                assert not await worker.pipeline.stop(1.0)
        monkeypatch.undo()
        async with working(config) as worker:
            # The one that was tried may have got through after all; the others are done again.
            ends = (await worker.told()).ends
            async with asyncio.timeout(DEADLINE_S):
                while await worker.committed() != ends:
                    worker.check()
            assert partner.ids["u"] in (5, 6)


@pytest.mark.parametrize(("bound", "most"), [("MAX_BACKLOG", 100), ("MAX_BACKLOG_BYTES", 100_000)])
async def test_what_cannot_be_told_is_not_read_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(engine.record, bound, most)
    async with partnered(tmp_path) as (partner, worker):
        consumed = worker.pipeline.counters.consumed_sends
        await worker.send("basic", *[b"junk"] * 5000, send("last"))
        with unwritable(tmp_path / "log.db"):
            await worker.until(lambda: worker.pipeline.recorder.backlog > 100, "nothing can be told")
            before = list(consumed)
            # A poll under way is over by then; the group, and the probe of liveness, go on to hear of this member.
            later_ms = worker.pipeline.clock.wall_ms() + 1000 * POLL_TIMEOUT_S + 200
            for intake in worker.pipeline.all_intakes:
                await worker.until(partial(lambda of: of.last_poll_ms > later_ms, intake), "the log is polled on")
            assert consumed[2] <= before[2] + POLL_RECORDS < 5001
        await worker.judged()
        assert partner.ids == {"u": 1}


async def test_what_has_ended_while_nobody_knows_whose_it_is_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long stop what ends is told once a commit has got through; waiting for that must not take the CPU."""
    clock = Ahead()
    async with partnered(tmp_path, clock=clock) as (partner, worker):
        await worker.send("basic", send("i", ["a", "b"], campaign="k", not_before=now_ms() + 3 * HOUR_MS))
        await worker.until(lambda: worker.pipeline.opens, "taken in")
        dispatcher, turns = worker.pipeline.dispatcher, 0
        turn = dispatcher._turn

        def counted() -> None:
            nonlocal turns
            turns += 1
            turn()

        monkeypatch.setattr(dispatcher, "_turn", counted)
        with unwritable(tmp_path / "log.db"):
            clock.ahead_ns += HOUR_MS * NS_PER_MS
            assert worker.pipeline.fence.doubtful(Tier.BASIC)
            dispatcher.cancel("k", Standing(None, clock.wall_ms(), clock.wall_ms() + HOUR_MS))
            await asyncio.sleep(0.5)
            assert worker.pipeline.opens, "not told yet"
            assert 2 <= turns <= 30
        told = await worker.judged()
        assert outcomes(told, "i") == {Outcome.CANCELLED}
        assert not partner.ids
