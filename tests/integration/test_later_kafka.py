"""What waits on a real Kafka's later topics: engines are killed between its hops, and everybody gets it once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from bench.kafka import free_port
from engine.config import load
from engine.logs import Record
from tests.integration.support import (
    QUICK,
    TIERS,
    Arrived,
    Gateway,
    accept,
    channel,
    gateway,
    now_ms,
    opened,
    send,
)
from tests.integration.test_cli import run
from tests.integration.test_pipeline_process import Engine, running

pytestmark = pytest.mark.kafka
WITHIN_S = 120.0
SENDS = 300
LOG = """
state = "{directory}/state"
[log]
kind = "kafka"
bootstrap = "{bootstrap}"
prefix = "{prefix}"
partitions = 3
session_timeout = "6s"
[later]
horizon = "1s"
retries = "500ms"
delays = ["500ms", "3s"]
"""


class Place:
    """A prefix of a Kafka, and the configuration of the one engine that works on it."""

    def __init__(self, directory: Path, bootstrap: str, *parts: str) -> None:
        self.prefix = f"t{uuid4().hex}"
        self.path = directory / "c.toml"
        self._directory = directory
        self._port = free_port()
        http = f'[http]\nmetrics = "127.0.0.1:{self._port}"\nadmin = ""\n'
        log = LOG.format(directory=directory, bootstrap=bootstrap, prefix=self.prefix)
        self.path.write_text("\n".join((log, http, QUICK, *parts)))

    async def command(self, *words: str, code: int = 0) -> Any:
        """What ``surgetank`` says as JSON."""
        ended, out, err = await run(*words, "-c", self.path, "--json")
        assert ended == code, (out, err)
        return json.loads(out)

    async def append(self, *records: Record) -> None:
        async with opened(load(self.path), engine=False) as log:
            await log.append(records)

    async def taken(self, group: str, count: int) -> None:
        """Wait until the group has done with so many records."""
        async with opened(load(self.path), engine=False) as log:
            while sum(at.offset for at in (await log.committed(f"{self.prefix}.{group}")).values()) < count:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)

    def serving(self) -> AbstractAsyncContextManager[Engine]:
        return running(self.path, self._port, self._directory / f"said-{uuid4().hex}")


async def killed(engine: Engine) -> None:
    os.kill(engine.process.pid, signal.SIGKILL)
    await engine.ended()


async def until_called(engine: Engine, partner: Gateway, recipients: int) -> None:
    while len(partner.ids) < recipients:
        assert engine.process.returncode is None, engine.said
        await asyncio.sleep(0.02)


async def drained(engine: Engine) -> None:
    await engine.ready()
    engine.process.send_signal(signal.SIGTERM)
    assert await engine.ended() == 0, engine.said


async def each_once(place: Place, partner: Gateway) -> Any:
    """Each u and v of SENDS sends got it, and got it once; what the audit says."""
    assert partner.ids == Counter({f"{part}{n}": 1 for n in range(SENDS) for part in "uv"})
    audited = await place.command("audit", "--grace", "1h")
    assert (audited["recipients"], audited["missing"], audited["repeated"]) == (2 * SENDS, 0, 0)
    assert audited["outcomes"] == {"accepted": 2 * SENDS}
    return audited


async def test_killed_while_it_waits_nothing_is_lost_or_repeated(tmp_path: Path, kafka_bootstrap: str) -> None:
    async with gateway() as partner, asyncio.timeout(WITHIN_S):
        place = Place(tmp_path, kafka_bootstrap, channel("partner", partner.url, "batch = 20"))
        await place.command("topics", "create")
        at = now_ms() + 30_000
        async with place.serving() as engine:
            await engine.ready()
            values = [send(f"i{n}", [f"u{n}", f"v{n}"], not_before=at) for n in range(SENDS)]
            records = [Record(f"{place.prefix}.{TIERS[n % 3]}", value) for n, value in enumerate(values)]
            await place.append(*records)
            await asyncio.gather(*(place.taken(tier, SENDS // 3) for tier in TIERS))
            await killed(engine)
        waits = await place.command("audit")
        assert (waits["waiting"], waits["missing"], waits["outcomes"]) == (2 * SENDS, 0, {})
        async with place.serving() as engine:  # killed again, on the way from one later topic to the next
            await asyncio.gather(*(place.taken(f"later.{tier}", SENDS // 3) for tier in TIERS))
            assert not partner.calls
            await killed(engine)
        async with place.serving() as engine:
            await until_called(engine, partner, 2 * SENDS)
            await drained(engine)
        audited = await each_once(place, partner)
        assert audited["read"]["later"] >= 2 * SENDS, "some have been there more than once"


async def test_letters_of_what_has_waited_are_shown_and_sent_again(tmp_path: Path, kafka_bootstrap: str) -> None:
    refused = {"u1"}

    async def answer(call: Arrived) -> web.Response:
        return web.Response(status=400) if refused & set(call.ids) else await accept(call)

    async with gateway(answer=answer) as partner, asyncio.timeout(WITHIN_S):
        place = Place(tmp_path, kafka_bootstrap, channel("partner", partner.url, "batch = 1"))
        await place.command("topics", "create")
        async with place.serving() as engine:
            await engine.ready()
            at = now_ms() + 8_000
            values = [send(f"i{n}", f"u{n}", not_before=at, campaign="k") for n in range(3)]
            await place.append(*(Record(f"{place.prefix}.system", value) for value in values))
            letters: list[Any] = []
            while not letters:
                assert engine.process.returncode is None, engine.said
                letters = (await place.command("dead", "list"))["letters"]
            (letter,) = letters
            assert (letter["id"], letter["recipients"], letter["campaign"]) == ("i1", 1, "k")
            shown = json.loads((await run("dead", "show", "-c", place.path, letter["place"]))[1])
            assert shown["origin"].startswith(f"{place.prefix}.system:"), "where it first stood"
            assert shown["hop"] >= 1
            refused.clear()
            assert (await place.command("dead", "replay", "--all"))["letters"] == 1
            await until_called(engine, partner, 3)
            while partner.ids["u1"] < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
            await drained(engine)
        assert partner.ids == {"u0": 1, "u1": 2, "u2": 1}
        audited = await place.command("audit", "--grace", "1h")
        assert (audited["recipients"], audited["missing"]) == (3, 0)


async def test_paused_for_long_and_killed_while_it_moves_nothing_is_lost_or_repeated(
    tmp_path: Path, kafka_bootstrap: str
) -> None:
    """Three times, each time at another place: on the way to the later topics, there, and from one to the next."""
    async with gateway() as partner, asyncio.timeout(WITHIN_S):
        place = Place(tmp_path, kafka_bootstrap, channel("partner", partner.url, "batch = 20"))
        await place.command("topics", "create")
        ways = [("basic", 1), ("basic", SENDS), ("later.basic", SENDS)]
        values = [send(f"i{n}", [f"u{n}", f"v{n}"], campaign=f"k{n % 5}") for n in range(SENDS)]
        for group, done in ways:
            async with place.serving() as engine:
                await engine.ready()
                if values:
                    await place.command("pause", "channel", "partner", "--for", "24h")
                    await place.append(*(Record(f"{place.prefix}.basic", value) for value in values))
                    values = []
                await place.taken(group, done)
                assert not partner.calls
                await killed(engine)
        waits = await place.command("audit")
        assert (waits["waiting"], waits["missing"], waits["outcomes"]) == (2 * SENDS, 0, {})
        async with place.serving() as engine:
            await engine.ready()
            await place.command("resume", "channel", "partner")
            await until_called(engine, partner, 2 * SENDS)
            await drained(engine)
        await each_once(place, partner)
