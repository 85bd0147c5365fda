"""Several worker processes under a supervisor, on a real Kafka: they die, hang and drain, and nothing is missing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web

from bench.kafka import free_port
from bench.stack import Samples
from engine.clock import NS_PER_S, Clock
from engine.config import load
from engine.logs import Partition, Record
from engine.send import Outcome
from engine.supervise import Supervisor
from engine.supervise_child import Child
from tests.integration.support import (
    IN_MEMORY,
    QUICK,
    Arrived,
    Gateway,
    Told,
    busiest,
    channel,
    gateway,
    opened,
    read,
    send,
)
from tests.integration.test_kafka_crashes import gone

pytestmark = pytest.mark.kafka
WITHIN_S = 90.0
TWO_GROUPS = '[[workers]]\ntiers = ["system"]\n[[workers]]\ntiers = ["template", "basic"]\nprocesses = 2\n'
NAMES = ("system-1", "template-basic-1", "template-basic-2")
COUNTERS = ("consumed_sends_total", "recipients_total", "dispatch_attempts_total", "batch_recipients_count")

# `surgetank` with a fault: it dies of a record that says so, wherever it meets it.
DEADLY = """
import os, signal
from engine import consume

def deadly(real):
    def take(values, *rest):
        if any(value is not None and b"deadly" in value for value in values):
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(values, *rest)
    return take

class Taker:
    def __init__(self, *arguments, **keys):
        self._real = real_taker(*arguments, **keys)
        self.take = deadly(self._real.take)
    def __getattr__(self, name):
        return getattr(self._real, name)

real_taker, consume.Taker = consume.Taker, Taker
consume.decode_many = deadly(consume.decode_many)
from engine.cli import main
main(prog_name="surgetank")
"""


class Fleet:
    """A supervisor, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process, said: Path, url: str) -> None:
        self.process = process
        self._said = said
        self._url = url

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]

    def pids(self, worker: str) -> list[int]:
        """Of each life that served."""
        return [e["pid"] for e in self.events if e["event"] == "serving" and e.get("worker") == worker]

    async def probe(self, name: str) -> tuple[int, str]:
        """0: nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self._url}/{name}") as response:
                return response.status, await response.text()
        except aiohttp.ClientConnectionError:
            return 0, ""

    async def samples(self) -> Samples:
        status, text = await self.probe("metrics")
        assert status == 200
        return Samples(text)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.02)

    async def ready(self) -> None:
        await self.answering("readyz", 200, "ok\n")

    async def answering(self, probe: str, status: int, text: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while (await self.probe(probe)) != (status, text):
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        async with asyncio.timeout(WITHIN_S):
            return await self.process.wait()


class Place:
    """A log of its own on the broker, and a configuration."""

    def __init__(self, directory: Path, bootstrap: str) -> None:
        self.directory = directory
        self.prefix = f"t{uuid4().hex}"
        self.file = directory / "surgetank.toml"
        self.port = free_port()
        self._log = f'[log]\nkind = "kafka"\nbootstrap = "{bootstrap}"\nprefix = "{self.prefix}"\npartitions = 4\n'

    def configure(self, *parts: str, workers: str = TWO_GROUPS, top: str = "") -> None:
        head = f'state = "{self.directory}/state"\n{top}\n'
        http = f'[http]\nmetrics = "127.0.0.1:{self.port}"\nadmin = ""\n'
        self.file.write_text("\n".join((head, self._log, http, QUICK, workers, *parts)))

    async def append(self, tier: str, values: Sequence[bytes], key: bytes | None = None) -> None:
        async with opened(load(self.file), engine=False) as log:
            await log.append([Record(f"{self.prefix}.{tier}", value, key) for value in values])

    async def told(self) -> Told:
        config = load(self.file)
        async with opened(config, engine=False) as log:
            return await read(log, config)

    async def committed(self) -> dict[Partition, int]:
        found = {}
        async with opened(load(self.file), engine=False) as log:
            for tier in ("system", "template", "basic"):
                for where, position in (await log.committed(f"{self.prefix}.{tier}")).items():
                    if position.offset:
                        found[where] = position.offset
        return found

    async def limits(self, *words: str) -> dict[str, Any]:
        """What each worker answers to the command."""
        arguments = ("-m", "engine.cli", "limits", *words, "-c", str(self.file), "--json")
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == 0, out
        workers: dict[str, Any] = json.loads(out)["workers"]
        return workers

    @asynccontextmanager
    async def serving(self, *options: str, command: Sequence[str] = ("-m", "engine.cli")) -> AsyncIterator[Fleet]:
        said = self.directory / f"said-{uuid4().hex}"
        with said.open("wb") as stderr:
            arguments = (*command, "serve", "-c", str(self.file), "--log-format", "json", *options)
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=stderr, stderr=stderr)
        fleet = Fleet(process, said, f"http://127.0.0.1:{self.port}")
        try:
            yield fleet
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
def place(tmp_path: Path, kafka_bootstrap: str) -> Place:
    return Place(tmp_path, kafka_bootstrap)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def all_gone(pids: Sequence[int]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not all(gone(pid) for pid in pids):  # noqa: ASYNC110 - they are no children of ours
            await asyncio.sleep(0.05)


async def test_a_killed_worker_is_started_again_and_the_sums_never_go_back(place: Place) -> None:
    async with gateway() as partner:
        place.configure(channel("partner", partner.url, "batch = 5"))
        for number, tier in enumerate(("system", "template", "basic")):
            await place.append(tier, [send(f"{tier}{n}", f"u{number}-{n}") for n in range(200)])
        async with place.serving() as fleet:
            await fleet.ready()
            assert (await fleet.probe("startupz"), await fleet.probe("livez")) == ((200, "ok\n"), (200, "ok\n"))
            await fleet.until(lambda: len(partner.ids) == 600)
            await eventually(lambda: counted(fleet, "recipients_total", 600))
            await eventually(lambda: settled(fleet))
            before = await fleet.samples()
            assert before.by("worker_up", "worker") == dict.fromkeys(NAMES, 1.0)
            assert before.by("recipients_total", "tier") == {"system": 200.0, "template": 200.0, "basic": 200.0}
            assert before.by("kafka_assigned_partitions", "tier") == {"system": 4.0, "template": 4.0, "basic": 4.0}
            assert before.sum("build_info") == 1.0
            os.kill(fleet.pids("template-basic-1")[0], signal.SIGKILL)
            await place.append("basic", [send(f"more{n}", f"m{n}") for n in range(200)])
            latest = before
            while len(partner.ids) < 800 or latest.sum("worker_up") < 3:
                latest = rising(latest, await fleet.samples())
            await eventually(lambda: counted(fleet, "recipients_total", 800))
            after = rising(latest, await fleet.samples())
            assert after.by("worker_restarts_total", "worker") == {**dict.fromkeys(NAMES, 0.0), NAMES[1]: 1.0}
            assert after.by("conservation_difference_recipients", "tier") == dict.fromkeys(
                ("system", "template", "basic"), 0.0
            )
            assert len(fleet.pids("template-basic-1")) == 2
            assert len(fleet.pids("template-basic-2")) == len(fleet.pids("system-1")) == 1
            # The others kept what they had: the one that died came back under its name before it was missed.
            assigned = [e for e in fleet.events if e["event"] == "partitions assigned" and e["worker"] == NAMES[2]]
            assert len(assigned) <= 8, "two groups of two tiers, each at most once alone and once shared"
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said
            assert all(e.get("worker") in (*NAMES, "supervisor") for e in fleet.events)
        told = await place.told()
        assert set(told.outcomes()) == set(told.wanted())
        assert {end.outcome for ends in told.outcomes().values() for end in ends} == {Outcome.ACCEPTED}
        assert await place.committed() == told.ends


async def committed(place: Place) -> bool:
    """Everything on the log has ended and is committed."""
    return await place.committed() == (await place.told()).ends


async def settled(fleet: Fleet) -> bool:
    """Each partition is somebody's, and nobody is about to lose one: all have joined."""
    return (await fleet.samples()).sum("kafka_assigned_partitions") == 12


async def counted(fleet: Fleet, name: str, least: float) -> bool:
    return (await fleet.samples()).sum(name) >= least


def rising(earlier: Samples, later: Samples) -> Samples:
    """No sum went back."""
    for name in COUNTERS:
        assert later.sum(name) >= earlier.sum(name), name
    return later


async def test_asked_to_end_all_finish_what_is_under_way(place: Place) -> None:
    arrived, released = asyncio.Semaphore(0), asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        arrived.release()
        await released.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        place.configure(channel("partner", partner.url, 'batch = 1\nin_flight = 2\ntimeout = "1h"'))
        await place.append("system", [])
        async with place.serving() as fleet:
            await fleet.ready()
            await eventually(lambda: settled(fleet))
            for tier in ("system", "basic"):
                await place.append(tier, [send(f"{tier}{n}", f"{tier}-{n}") for n in range(40)])
            async with asyncio.timeout(WITHIN_S):
                for _ in range(4):
                    await arrived.acquire()
            fleet.process.send_signal(signal.SIGTERM)
            await fleet.answering("readyz", 503, "draining\n")
            released.set()
            assert await fleet.ended() == 0, fleet.said
            drained = [event for event in fleet.events if event["event"] == "drained"]
            assert {event["worker"] for event in drained} == set(NAMES)
            assert sum(event["calls_cut_off"] for event in drained) == 0
        assert set(partner.ids.values()) == {1}
        told = await place.told()
        assert len(told.outcomes()) == partner.ids.total()


async def test_asked_twice_it_ends_at_once(place: Place) -> None:
    hang = asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        await hang.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        place.configure(channel("partner", partner.url, 'timeout = "1h"'))
        await place.append("system", [send("i", "u")])
        async with place.serving() as fleet:
            await fleet.ready()
            await fleet.until(lambda: partner.calls)
            fleet.process.send_signal(signal.SIGTERM)
            await fleet.answering("readyz", 503, "draining\n")
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 1
            await all_gone([pid for name in NAMES for pid in fleet.pids(name)])
        hang.set()


async def test_no_worker_outlives_its_supervisor(place: Place) -> None:
    async with gateway() as partner:
        place.configure(channel("partner", partner.url))
        await place.append("system", [])
        async with place.serving() as fleet:
            await fleet.ready()
            pids = [pid for name in NAMES for pid in fleet.pids(name)]
            fleet.process.kill()
            assert await fleet.ended() == -signal.SIGKILL
            await all_gone(pids)
            assert {e["worker"] for e in fleet.events if e["event"] == "drained"} == set(NAMES)


async def test_tiers_named_on_the_command_line_are_served_by_this_process(place: Place) -> None:
    async with gateway() as partner:
        place.configure(channel("partner", partner.url))
        await place.append("system", [send("i", "u")])
        async with place.serving("--tiers", "system") as fleet:
            await fleet.ready()
            await fleet.until(lambda: partner.calls)
            samples = await fleet.samples()
            assert samples.by("kafka_assigned_partitions", "tier") == {"system": 4.0}
            assert not samples.by("worker_up", "worker")
            assert {e["pid"] for e in fleet.events if e["event"] == "serving"} == {fleet.process.pid}
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said


async def test_a_worker_that_hangs_holds_up_no_scrape(place: Place) -> None:
    async with gateway() as partner:
        place.configure(channel("partner", partner.url))
        await place.append("system", [send(f"i{n}", f"u{n}") for n in range(20)])
        async with place.serving() as fleet:
            await fleet.ready()
            await eventually(lambda: counted(fleet, "recipients_total", 20))
            await eventually(lambda: settled(fleet))
            (pid,) = fleet.pids("system-1")
            os.kill(pid, signal.SIGSTOP)
            try:
                samples = await fleet.samples()
                assert samples.by("worker_up", "worker") == {**dict.fromkeys(NAMES, 1.0), "system-1": 0.0}
                assert samples.by("worker_missed_scrapes_total", "worker")["system-1"] >= 1
                assert samples.sum("recipients_total") == 20
                assert samples.sum("kafka_assigned_partitions") == 8
                status, why = await fleet.probe("readyz")
                assert (status, why) == (503, "system-1: no answer\n")
                assert (await fleet.probe("livez"))[0] == 200
            finally:
                os.kill(pid, signal.SIGCONT)
            await fleet.ready()


async def test_a_worker_that_hangs_is_killed_and_started_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that a minute can be made shorter; longer than a worker takes to start all the same."""
    monkeypatch.setattr("engine.supervise_watch.HANGS_S", 20.0)
    monkeypatch.setattr("engine.supervise_watch.WATCH_S", 0.5)
    async with gateway() as partner:
        place.configure(channel("partner", partner.url), workers='[[workers]]\ntiers = ["system"]\n')
        await place.append("system", [])
        config, command = load(place.file), [sys.executable, "-m", "engine.cli", "serve", "-c", str(place.file)]
        supervisor = Supervisor(config, place.file.read_text(), command, Clock())
        running = asyncio.create_task(supervisor.run())
        (child,) = supervisor._children
        try:
            await eventually(lambda: ready(child))
            child.signal(signal.SIGSTOP)
            await place.append("system", [send("i", "u")])
            await eventually(lambda: called(partner))
        finally:
            supervisor._asked()
        assert await running == 0
        assert child.restarts == 1


async def ready(child: Child) -> bool:
    return child.state is not None and not child.state.ready


async def called(partner: Gateway) -> bool:
    return bool(partner.calls)


async def test_a_record_that_kills_its_worker_ends_dead_and_its_neighbours_are_delivered(place: Place) -> None:
    script = place.directory / "deadly.py"
    script.write_text(DEADLY)
    async with gateway() as partner:
        place.configure(channel("partner", partner.url))
        ids = [f"deadly{n}" if n in (30, 70) else f"i{n}" for n in range(100)]
        await place.append("basic", [send(id, f"u-{id}") for id in ids], key=b"one partition")
        await place.append("system", [send(f"s{n}", f"s{n}") for n in range(20)])
        async with place.serving(command=[str(script)]) as fleet:
            await fleet.ready()
            await fleet.until(lambda: len(partner.ids) == 98 + 20)
            await eventually(lambda: committed(place))
            assert {e["how"] for e in fleet.events if e["event"] == "a worker has ended"} == {"SIGSEGV"}
            crashes = (await fleet.samples()).by("worker_restarts_total", "worker")
            assert crashes["system-1"] == 0
            # Two to suspect, one for each killer; and one for each worker that runs when the partition moves to it.
            assert 4 <= sum(crashes.values()) <= 6
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said
        told = await place.told()
        ends = {id: {end.outcome for end in ends} for (id, _), ends in told.by_id().items()}
        neighbours = {*ids, *(f"s{n}" for n in range(20))} - {"deadly30", "deadly70"}
        assert {id for id, outcomes in ends.items() if outcomes == {Outcome.ACCEPTED}} == neighbours
        assert sorted(dead.said.reason for dead in told.dead) == ["crashed_worker"] * 2
        assert not any(id.startswith("u-deadly") for id in partner.ids)


async def test_a_limit_is_kept_by_all_workers_together_while_one_dies_again_and_again(place: Place) -> None:
    """Counted at the platform, where every window of its length is looked at."""
    number, window_s = 12, 2.0
    async with gateway() as partner:
        limit = f'batch = 1\nlimits = [{{ calls = {number}, per = "{window_s:.0f}s" }}]'
        place.configure(channel("partner", partner.url, limit))
        for tier in ("system", "basic", "template"):
            await place.append(tier, [send(f"{tier}{n}", f"{tier}-{n}") for n in range(400)])
        async with place.serving() as fleet:
            await fleet.ready()
            for kill in range(3):
                so_far = len(partner.calls)
                await fleet.until(lambda so_far=so_far: len(partner.calls) >= so_far + number)  # type: ignore[misc]
                os.kill(fleet.pids("template-basic-1")[kill], signal.SIGKILL)
                await fleet.until(lambda kill=kill: len(fleet.pids("template-basic-1")) == kill + 2)  # type: ignore[misc]
            so_far = len(partner.calls)
            await fleet.until(lambda: len(partner.calls) >= so_far + 2 * number)
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said
        stamps = [call.at_ns for call in partner.calls]
        assert number // 3 < busiest(stamps, window_s) <= number
        tiers = {call.ids[0].partition("-")[0] for call in partner.calls}
        assert tiers >= {"system", "basic"} or tiers >= {"system", "template"}, "each group used its share"


async def test_a_limit_set_by_command_is_kept_by_all_together_and_by_who_starts_later(place: Place) -> None:
    configured, number, window_s = 300, 12, 2.0
    async with gateway() as partner:
        limit = f'batch = 1\nlimits = [{{ calls = {configured}, per = "{window_s:.0f}s" }}]'
        place.configure(channel("partner", partner.url, limit))
        on = ("channel", "partner", "--calls", "--per", f"{window_s:.0f}s")
        for tier in ("system", "basic", "template"):
            await place.append(tier, [send(f"{tier}{n}", f"{tier}-{n}") for n in range(600)])
        async with place.serving() as fleet:
            await fleet.ready()
            await fleet.until(lambda: len(partner.calls) >= 2 * number)
            told = await place.limits("set", *on[:3], str(number), *on[3:])
            assert len(told) == len(NAMES)
            assert {(use["configured"], use["number"]) for (use,) in told.values()} == {(configured // 3, number // 3)}
            obeyed_ns = time.monotonic_ns() + int(window_s * NS_PER_S)  # what was under way has arrived
            await fleet.until(lambda: time.monotonic_ns() > obeyed_ns)
            os.kill(fleet.pids("template-basic-1")[0], signal.SIGKILL)
            await fleet.until(lambda: len(fleet.pids("template-basic-1")) == 2)
            so_far = len(partner.calls)
            await fleet.until(lambda: len(partner.calls) >= so_far + 2 * number)
            reset_ns = time.monotonic_ns()
            assert len(await place.limits("reset", *on)) == len(NAMES)
            await fleet.until(lambda: len(partner.ids) == 1800)
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said
        stamps = [call.at_ns for call in partner.calls]
        assert number // 3 < busiest([at for at in stamps if obeyed_ns < at <= reset_ns], window_s) <= number
        assert number < busiest([at for at in stamps if at > reset_ns], window_s) <= configured


async def test_what_was_used_of_a_limit_counts_for_other_processes_too(place: Place) -> None:
    number = 12
    async with gateway() as partner:
        part = channel("partner", partner.url, f'batch = 1\nlimits = [{{ calls = {number}, per = "1h" }}]')
        place.configure(part, IN_MEMORY, workers="[[workers]]\nprocesses = 2\n")
        await place.append("basic", [send(f"i{n}", f"u{n}") for n in range(200)])
        async with place.serving() as fleet:
            await fleet.ready()
            await fleet.until(lambda: len(partner.calls) >= 4)
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said
        place.configure(part, IN_MEMORY, workers="[[workers]]\nprocesses = 4\n")
        async with place.serving() as fleet:
            await fleet.ready()
            await fleet.until(lambda: len(partner.calls) >= number)
            await eventually(lambda: throttled(fleet, 200 - number))
            fleet.process.send_signal(signal.SIGTERM)
            assert await fleet.ended() == 0, fleet.said
        assert len(partner.calls) == number


async def throttled(fleet: Fleet, count: int) -> bool:
    """So many wait for the limit, or more: those of partitions that went elsewhere do so in both places."""
    return (await fleet.samples()).sum("queue_recipients", state="throttled") >= count
