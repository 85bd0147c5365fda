"""The engine as a process: it starts, drains, is killed, and starts again; nothing is missing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from bench.kafka import free_port
from engine.clock import Clock
from engine.config import load
from engine.errors import LogUnavailable
from engine.logs import Reader
from engine.logs.sqlite import SqliteLog
from engine.pipeline import _started
from engine.send import Outcome, Tier
from tests.integration.support import (
    Arrived,
    Told,
    channel,
    configured,
    gateway,
    opened,
    read,
    record,
    send,
    working,
    write_config,
)
from tests.integration.test_cli import run

WITHIN_S = 40.0  # a process starts in about a second on a machine at rest


class Engine:
    """``serve`` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, said: Path, port: int) -> None:
        self.process = process
        self._said = said
        self._url = f"http://127.0.0.1:{port}"

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said.splitlines()]

    async def probe(self, name: str) -> tuple[int, str]:
        """0: nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self._url}/{name}") as response:
                return response.status, await response.text()
        except aiohttp.ClientConnectionError:
            return 0, ""

    async def ready(self, status: int = 200, text: str = "ok\n") -> None:
        """Wait until its answer to that question is this."""
        async with asyncio.timeout(WITHIN_S):
            while (await self.probe("readyz")) != (status, text):
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        async with asyncio.timeout(WITHIN_S):
            return await self.process.wait()


@asynccontextmanager
async def serving(directory: Path, *parts: str, config: str = "", top: str = "") -> AsyncIterator[Engine]:
    """``config``: a whole file instead."""
    port = free_port()
    path = write_config(directory, *parts, top=top, metrics=f"127.0.0.1:{port}")
    if config:
        path.write_text(config)
    async with running(path, port, directory / f"said-{port}") as engine:
        yield engine


@asynccontextmanager
async def running(path: Path, port: int, said: Path) -> AsyncIterator[Engine]:
    """``serve`` with that configuration, whose metrics are on that port; what it says goes to a file."""
    with said.open("wb") as stderr:
        arguments = ("-m", "engine.cli", "serve", "-c", str(path), "--log-format", "json")
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=stderr, stderr=stderr)
    try:
        yield Engine(process, said, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def log_of(directory: Path) -> Told:
    config = load(directory / "surgetank.toml")
    async with opened(config, engine=False) as log:
        return await read(log, config)


async def append(directory: Path, *values: bytes, tier: str = "basic") -> None:
    async with opened(load(directory / "surgetank.toml"), engine=False) as log:
        await log.append([record(tier, value) for value in values])


async def test_asked_to_end_it_finishes_what_is_under_way(tmp_path: Path) -> None:
    arrived, released = asyncio.Event(), asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        arrived.set()
        await released.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        one_an_hour = 'batch = 1\nlimits = [{ calls = 1, per = "1h" }]'
        async with serving(tmp_path, channel("partner", partner.url, one_an_hour)) as engine:
            await engine.ready()
            assert (await engine.probe("livez"))[0] == (await engine.probe("startupz"))[0] == 200
            await append(tmp_path, *(send(f"i{n}", f"u{n}") for n in range(50)))
            async with asyncio.timeout(WITHIN_S):
                await arrived.wait()
            status, metrics = await engine.probe("metrics")
            assert status == 200
            differences = [
                line for line in metrics.splitlines() if line.startswith("surgetank_conservation_difference")
            ]
            assert len(differences) == 3
            assert all(line.endswith(" 0.0") for line in differences)
            engine.process.send_signal(signal.SIGTERM)
            await engine.ready(503, "draining\n")
            assert (await engine.probe("livez"))[0] == 200
            released.set()
            assert await engine.ended() == 0, engine.said
            assert engine.events[-1]["event"] == "drained"
        told = await log_of(tmp_path)
        assert [end.outcome for ends in told.outcomes().values() for end in ends] == [Outcome.ACCEPTED]
        async with working(configured(tmp_path, channel("partner", partner.url))) as worker:
            await worker.until(lambda: partner.ids.total() == 50, "the rest")
            await worker.until(lambda: not any(ledger.uncommitted for ledger in worker.ledgers()), "committed")
            told = await worker.told()
            assert {key: len(ends) for key, ends in told.outcomes().items()} == told.wanted()
            assert set(partner.ids.values()) == {1}


async def test_killed_at_any_moment_nothing_is_missing(tmp_path: Path) -> None:
    hang = asyncio.Event()
    part = ""

    async def answer(_: Arrived) -> web.Response:
        if 20 < len(partner.calls) <= 24:
            await hang.wait()  # these are in flight when it is killed
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        part = channel("partner", partner.url, "batch = 10\nin_flight = 4")
        write_config(tmp_path, part)
        large = send("large", [f"l{n}" for n in range(400)])
        await append(tmp_path, large, *(send(f"i{n}", [f"u{n}", f"v{n}"]) for n in range(300)))
        for kill in range(2):
            async with serving(tmp_path, part) as engine:
                async with asyncio.timeout(WITHIN_S):
                    while len(partner.calls) < (22 if kill == 0 else 40):
                        assert engine.process.returncode is None, engine.said
                        await asyncio.sleep(0.002)
                os.kill(engine.process.pid, signal.SIGKILL)
                assert await engine.ended() == -signal.SIGKILL
                hang.set()
        async with serving(tmp_path, part) as engine:
            async with asyncio.timeout(WITHIN_S):
                while len(partner.ids) < 1000:
                    assert engine.process.returncode is None, engine.said
                    await asyncio.sleep(0.01)
            await engine.ready()
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.ended() == 0, engine.said
        config = configured(tmp_path, part)
        async with working(config) as worker:  # what it gave back, if anything
            await worker.until(lambda: not any(ledger.uncommitted for ledger in worker.ledgers()), "committed")
            told = await worker.told()
            assert await worker.committed() == told.ends
        wanted = told.wanted()
        assert set(told.outcomes()) == set(wanted)
        assert {end.outcome for ends in told.outcomes().values() for end in ends} == {Outcome.ACCEPTED}
        assert set(partner.ids) == {id for _, id in wanted}
        code, out, _ = await run("audit", "-c", tmp_path / "surgetank.toml", "--grace", "1h", "--json")
        audited = json.loads(out)
        assert (code, audited["recipients"], audited["missing"], audited["unexplained"]) == (0, 1000, 0, 0)
        # Not those whose first call was under way, or not told of yet, when it was killed.
        assert audited["repeated"] <= sum(calls > 1 for calls in partner.ids.values())


async def test_a_log_that_fails_while_the_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened again, as another engine could not while the first one holds it."""
    real, failed = SqliteLog.reader, 0

    async def reader(self: SqliteLog, *topics: Any, **keys: Any) -> Reader:
        nonlocal failed
        failed += 1
        if failed == 2:
            raise LogUnavailable("for once")
        return await real(self, *topics, **keys)

    monkeypatch.setattr(SqliteLog, "reader", reader)
    pipeline = await _started(configured(tmp_path, channel("partner", "http://127.0.0.1:1/")), list(Tier), Clock())
    try:
        assert pipeline.ready
        assert failed > 2
        assert await pipeline.stop()
    finally:
        await pipeline.log.close()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[channels.x]\ndriver = 'nope'\nbase_url = 'http://x'\n", ["surgetank.toml:2", "nope", "webhook"]),
        ("state = 7\n", ["surgetank.toml:1", "state"]),
        ("[log\n", ["surgetank.toml:1"]),
        ("", ["channels"]),
    ],
)
async def test_a_broken_configuration_is_told(tmp_path: Path, config: str, words: list[str]) -> None:
    async with serving(tmp_path, config=config or "# empty\n") as engine:
        assert await engine.ended() == 2
        assert all(word in engine.said for word in words), engine.said
        assert "Traceback" not in engine.said


@pytest.mark.parametrize(
    ("host", "why"), [("127.0.0.1", "Address already in use"), ("192.0.2.1", "Cannot assign requested address")]
)
async def test_a_place_to_listen_that_cannot_be_had_is_told(tmp_path: Path, host: str, why: str) -> None:
    async with gateway() as taken:
        address = f"{host}:{urlsplit(taken.url).port}"
        config = f"""[http]
metrics = "{address}"
[channels.partner]
driver = "webhook"
base_url = "{taken.url}"
"""
        async with serving(tmp_path, config=config) as engine:
            assert await engine.ended() == 2
            told = f'surgetank.toml:2: http.metrics = "{address}": cannot listen on {address}: {why}'
            assert told in engine.said
            assert "Traceback" not in engine.said


@pytest.mark.parametrize(
    "broken",
    [
        "log.db is text",
        "log.db is a directory",
        "log.db is another program's",
        "seen.db is text",
        "seen.db is a directory",
        "state is a file",
    ],
)
async def test_files_that_cannot_be_used_are_told(tmp_path: Path, broken: str) -> None:
    state = tmp_path / "state"
    if broken == "state is a file":
        state.write_text("here")
    else:
        state.mkdir()
    if broken == "log.db is text":
        (tmp_path / "log.db").write_text("not a database, and longer than a header of one is " * 99)
    elif broken == "log.db is a directory":
        (tmp_path / "log.db").mkdir()
    elif broken == "seen.db is text":
        (state / "seen.db").write_text("not a database, and longer than a header of one is " * 99)
    elif broken == "seen.db is a directory":
        (state / "seen.db").mkdir()
    elif broken == "log.db is another program's":
        db = sqlite3.connect(tmp_path / "log.db")
        db.executescript("PRAGMA application_id = 7; CREATE TABLE t (x);")
        db.close()
    async with serving(tmp_path, channel("partner", "http://127.0.0.1:1/")) as engine:
        assert await engine.ended() == 1, engine.said
        (last,) = [event for event in engine.events if event["level"] == "critical"]
        path = str(state if "state" in broken else state / "seen.db" if "seen" in broken else tmp_path / "log.db")
        assert path in last["error"]
        assert "Traceback" not in engine.said


async def test_a_second_engine_on_the_same_state_is_refused(tmp_path: Path) -> None:
    async with gateway() as partner:
        part = channel("partner", partner.url)
        async with serving(tmp_path, part) as engine:
            await engine.ready()
            async with serving(tmp_path, part) as second:
                assert await second.ended() == 1
                (last,) = [event for event in second.events if event["level"] == "critical"]
                assert f"{tmp_path}/state/lock: another engine uses this directory" in last["error"]
            assert (await engine.probe("readyz"))[0] == 200


async def test_asked_twice_it_ends_at_once(tmp_path: Path) -> None:
    arrived, hang = asyncio.Event(), asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        arrived.set()
        await hang.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        async with serving(tmp_path, channel("partner", partner.url, 'timeout = "1h"')) as engine:
            await engine.ready()
            await append(tmp_path, send("i", "u"))
            async with asyncio.timeout(WITHIN_S):
                await arrived.wait()
            engine.process.send_signal(signal.SIGTERM)
            await engine.ready(503, "draining\n")
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.ended() == 1
            assert engine.events[-1]["event"] == "asked again to end: not drained"
        hang.set()
