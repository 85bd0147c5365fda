"""How often a recipient gets a message, judged by what arrived at the platform."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter, defaultdict
from pathlib import Path

from aiohttp import web

from bench.simulator import Simulator
from bench.simulator_options import parse
from engine.clock import Clock
from engine.send import Outcome, Tier
from ext.schedule import CHANNEL, RECIPIENTS
from tests.integration.support import (
    Ahead,
    Arrived,
    Gateway,
    accept,
    busiest,
    channel,
    configured,
    gateway,
    partnered,
    send,
    working,
)
from tests.integration.test_pipeline_limits import arrived
from tests.integration.test_pipeline_process import append, serving

S = 1_000_000_000
APP = '[channels.notice.accounts.a]\ncorpid = "ww0"\ncorpsecret = "s"\nagentid = 1\n'
TEXT = {"type": "text", "text": "早安"}


def most(partner: Gateway, window_s: float) -> int:
    """The most messages one recipient got in any window of that length."""
    stamps = defaultdict(list)
    for call in partner.calls:
        for id in call.ids:
            stamps[id].append(call.at_ns)
    return max(busiest(times, window_s) for times in stamps.values())


async def test_nobody_gets_more_in_any_window_and_everybody_gets_all(tmp_path: Path) -> None:
    more = 'batch = 7\nfrequency = [{ messages = 2, per = "1s" }, { messages = 3, per = "2s" }]'
    async with partnered(tmp_path, more) as (partner, worker):
        for number in range(6):
            ids = [f"u{n}" for n in range(5 * (number % 3) + 1)]
            one = send(f"i{number}", ids, campaign=f"c{number % 2}", content={"text": str(number % 3)})
            await worker.send(("system", "template", "basic")[number % 3], one)
        await worker.judged()
        assert worker.ended() == {Outcome.ACCEPTED: 2 * (1 + 6 + 11)}
        assert most(partner, 1.0) <= 2
        assert most(partner, 2.0) <= 3
        assert worker.pipeline.frequencies.waited["partner"] > 0
        assert not worker.pipeline.counters.retries, "to wait is no attempt"


async def test_wecom_drops_nothing_silently_with_what_it_publishes(tmp_path: Path) -> None:
    """Thirty a minute to one member, in whatever case the id is written; three of them are kept for system."""
    clock = Ahead()
    async with Simulator(parse("{}"), clock=clock.now_ns) as sim:
        config = configured(tmp_path, channel("notice", f"{sim.url}/wecom", APP, "wecom.message"))
        async with working(config, clock) as worker:
            ids = ["lisi", "LiSi", "lisI"]
            sends = (send(f"b{n}", ids[n % 3], "notice", content=TEXT) for n in range(40))
            await worker.send("basic", *sends)
            await worker.until(lambda: worker.pipeline.frequencies.waited["notice"] >= 13, "others wait")
            await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 27)
            await worker.send("system", *(send(f"s{n}", "lisi", "notice", content=TEXT) for n in range(4)))
            await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 30)
            waiting = worker.pipeline.core.stats()["waiting"]
            assert waiting == [1, 0, 13]
            for _ in range(2):
                clock.ahead_ns += 70 * S
                worker.pipeline.dispatcher.wake()
                await worker.until(lambda: worker.pipeline.core.stats()["waiting"] < waiting)
            await worker.judged()
            assert worker.ended() == {Outcome.ACCEPTED: 44}
            entries = sim.ledger.entries(0, sim.ledger.rows)
            assert Counter(entry.verdict for entry in entries) == {"delivered": 44}


async def test_the_platform_would_drop_what_is_sent_without_rules(tmp_path: Path) -> None:
    """The judge of the test above can tell."""
    async with Simulator(parse(json.dumps({"wecom": {"member_limits": [{"messages": 2, "per_s": 60}]}}))) as sim:
        config = configured(tmp_path, channel("notice", f"{sim.url}/wecom", f"frequency = []\n{APP}", "wecom.message"))
        async with working(config) as worker:
            await worker.send("basic", *(send(f"b{n}", "lisi", "notice", content=TEXT) for n in range(5)))
            await worker.judged()
            entries = sim.ledger.entries(0, sim.ledger.rows)
            assert Counter(entry.verdict for entry in entries) == {"delivered": 2, "dropped": 3}


async def test_who_waits_beyond_its_deadline_expires(tmp_path: Path) -> None:
    clock = Ahead()
    more = 'frequency = [{ messages = 1, per = "30d" }]'
    async with partnered(tmp_path, more, clock=clock) as (partner, worker):
        await worker.send("basic", *(send(f"i{n}", "one", campaign=f"c{n}") for n in range(3)))
        await worker.until(lambda: worker.pipeline.frequencies.waited["partner"] == 2)
        await worker.all_ended(1)  # a call that has not begun would be too late, too
        clock.ahead_ns += 25 * 3600 * S
        worker.pipeline.dispatcher.wake()
        await worker.judged()
        assert worker.ended() == {Outcome.ACCEPTED: 1, Outcome.EXPIRED: 2}
        assert partner.ids == {"one": 1}


async def test_a_machine_that_stood_still_has_not_forgotten_the_call_under_way(tmp_path: Path) -> None:
    """The call was counted as at its timeout; time went on beyond that and the window before anybody looked."""
    clock, free = Ahead(), asyncio.Event()

    async def hangs(call: Arrived) -> web.Response:
        await free.wait()
        return await accept(call)

    more = 'timeout = "20s"\nfrequency = [{ messages = 1, per = "1s" }]\nfrequency_memory = "1MiB"'
    many = [f"u{n}" for n in range(100)]
    once = Counter([*many, "two"])
    async with partnered(tmp_path, more, clock=clock, answer=hangs) as (partner, worker):
        waited = worker.pipeline.frequencies.waited
        await worker.send("basic", send("i", many, campaign="a"))
        await arrived(partner, 1)
        clock.ahead_ns += 60 * S
        await worker.send("basic", send("j", [*many, "two"], campaign="b"))
        await arrived(partner, 2)
        await worker.until(lambda: waited["partner"] >= 100)
        worker.pipeline.frequencies.full_shares()  # a scrape looks at some of all sets
        await worker.send("basic", send("k", many, campaign="c"))
        await worker.until(lambda: waited["partner"] >= 200)
        assert partner.ids == once
        assert waited["partner"] < 2_000, "who waits does not ask all the time"
        free.set()
        await worker.judged()
        assert partner.ids == once + Counter(many) + Counter(many)
        assert most(partner, 1.0) == 1


async def test_a_step_of_the_wall_clock_forgets_nothing(tmp_path: Path) -> None:
    class Stepped(Ahead):
        def now_ns(self) -> int:
            return Clock.now_ns(self)

    clock = Stepped()
    more = 'frequency = [{ messages = 1, per = "1h" }]'
    async with partnered(tmp_path, more, clock=clock) as (partner, worker):
        await worker.send("basic", send("i", "one", campaign="a"))
        await worker.judged()
        clock.ahead_ns += 7_200 * S
        await worker.send("basic", send("j", ["one", "two"], campaign="b"))
        await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 2, "two has")
        await worker.until(lambda: worker.pipeline.frequencies.waited["partner"] == 1, "one waits")
        assert partner.ids == {"one": 1, "two": 1}


async def test_an_outage_uses_up_nobodys_messages_and_limits_count_who_left(tmp_path: Path) -> None:
    async def busy(call: Arrived) -> web.Response:
        return web.Response(status=503) if len(partner.calls) < 4 else await accept(call)

    more = (
        'retry = { attempts = 9, first = "1ms", most = "5ms" }\nlimits = [{ recipients = 1000, per = "1h" }]\n'
        'frequency = [{ messages = 1, per = "1h" }]'
    )
    async with partnered(tmp_path, more, top="") as (partner, worker):
        partner.answer = busy
        await worker.send("basic", send("i", ["one", "two"], campaign="a"))
        await worker.judged()
        assert worker.ended() == {Outcome.ACCEPTED: 2}
        await worker.send("basic", send("j", ["one", "three", "two"], campaign="b"))
        await worker.until(lambda: worker.ended()[Outcome.ACCEPTED] == 3, "three has")
        await worker.until(
            lambda: worker.pipeline.counters.moved[Tier.BASIC, "frequency"] == 2, "the others wait, on the log"
        )
        core, now = worker.pipeline.core, worker.clock.now_ns()
        limit = core.set_limit(CHANNEL, worker.pipeline.channels["partner"].handle, RECIPIENTS, 1000, 3600 * S, 100)
        counted, _, held, _ = core.use(limit, now)
        assert (counted, held) == (sum(len(call.ids) for call in partner.calls), 0), "nothing for those who wait"


async def test_a_killed_engine_has_counted_what_it_sent_and_what_was_under_way(tmp_path: Path) -> None:
    """Nothing tells the next one what the first had on its way, but the file."""
    per_s, free = 5.0, asyncio.Event()

    async def hangs_after_one(call: Arrived) -> web.Response:
        if len(partner.calls) == 2:
            await free.wait()
        return await accept(call)

    more = f'batch = 1\ntimeout = "1s"\nfrequency = [{{ messages = 2, per = "{int(per_s)}s" }}]'
    async with gateway(answer=hangs_after_one) as partner:
        async with serving(tmp_path, channel("partner", partner.url, more)) as engine:
            await engine.ready()
            await append(tmp_path, *(send(f"i{n}", "one", campaign=f"c{n}") for n in range(5)))
            await arrived(partner, 2)
            engine.process.send_signal(signal.SIGKILL)
            assert await engine.ended() == -signal.SIGKILL
            free.set()
        async with serving(tmp_path, channel("partner", partner.url, more)) as engine:
            await engine.ready()
            await arrived(partner, 4)
        assert most(partner, per_s) <= 2
