"""Workers on a real Kafka that are killed or frozen, or whose maps do not fit: what was done is not done again."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

import engine.assignment
from bench.kafka import free_port
from engine import wire_map
from engine.clock import NS_PER_S
from engine.config import load
from engine.counters import Counters
from engine.errors import RecordRefused
from engine.logs import Partition, Position, Record, TopicSpec
from engine.logs.kafka import KafkaLog
from engine.send import Tier
from engine.wire_map import Pointer
from tests.contract.log_kit import joined, opening
from tests.integration.support import QUICK, Ahead, Arrived, channel, gateway, now_ms, opened, read, send, working
from tests.integration.test_pipeline_process import Engine, running

pytestmark = pytest.mark.kafka
WITHIN_S = 90.0


@pytest.fixture
def prefix() -> str:
    """Of topics and groups nobody else uses."""
    return f"t{uuid4().hex}"


class Site:
    """A worker's configuration: the log is shared, the state and the port are its own."""

    def __init__(self, directory: Path, bootstrap: str, prefix: str, name: str, part: str, log: str = "") -> None:
        self.name, self.directory, self.port = name, directory, free_port()
        self.path = directory / f"{name}.toml"
        where = f'[log]\nkind = "kafka"\nbootstrap = "{bootstrap}"\nprefix = "{prefix}"\npartitions = 2\n'
        http = f'[http]\nmetrics = "127.0.0.1:{self.port}"\nadmin = ""\n'
        self.path.write_text(f'state = "{directory}/{name}"\n{where}session_timeout = "6s"\n{log}\n{http}{QUICK}{part}')

    def serving(self) -> AbstractAsyncContextManager[Engine]:
        """``serve`` in a process of its own."""
        return running(self.path, self.port, self.directory / f"{self.name}-{uuid4().hex}.log")


async def gauge(engine: Engine, name: str, labels: str) -> float:
    """-1: nobody answers."""
    _, text = await engine.probe("metrics")
    found = re.search(rf"^surgetank_{name}{{{re.escape(labels)}}} (\S+)$", text, re.MULTILINE)
    return -1.0 if found is None else float(found[1])


async def until(engine: Engine, name: str, labels: str, value: float) -> None:
    """Wait until its metrics say so."""
    async with asyncio.timeout(WITHIN_S):
        while await gauge(engine, name, labels) != value:
            assert engine.process.returncode is None, engine.said
            await asyncio.sleep(0.1)


async def eventually(condition: Callable[[], bool], *engines: Engine) -> None:
    """Wait until it holds; the engines must live as long."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            assert all(engine.process.returncode is None for engine in engines), [one.said for one in engines]
            await asyncio.sleep(0.05)


def assignments(engine: Engine) -> int:
    return sum(event["event"] == "partitions assigned" for event in engine.events)


def all_done(counters: Counters, ended: int) -> bool:
    """All 30,000 are read, so many have ended, and it is committed."""
    done = counters.consumed_sends[Tier.BASIC] == 30_000 and counters.ended[Tier.BASIC] == ended
    return done and not counters.uncommitted(Tier.BASIC)


def spread(prefix: str, values: list[bytes]) -> list[Record]:
    return [Record(f"{prefix}.basic", value, partition=n % 2) for n, value in enumerate(values)]


async def test_killed_it_repeats_only_what_was_in_flight(tmp_path: Path, kafka_bootstrap: str, prefix: str) -> None:
    go_on = asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        if len(partner.calls) > 30:
            await go_on.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        site = Site(
            tmp_path, kafka_bootstrap, prefix, "one", channel("partner", partner.url, "batch = 10\nin_flight = 2")
        )
        far = now_ms() + 600_000  # within the horizon: it waits in memory
        waiting = [send(f"w{n}", f"w{n}", not_before=far) for n in range(20)]
        quick = [send(f"i{n}", f"u{n}") for n in range(200)]
        large = [send(f"l{k}", [f"l{k}-{n}" for n in range(120)]) for k in range(4)]
        values = [*waiting, *quick, *large]
        Random(5).shuffle(values)
        async with opened(load(site.path)) as log:
            await log.append(spread(prefix, values))
        async with site.serving() as engine:
            await eventually(lambda: len(partner.calls) == 32, engine)
            await until(engine, "uncommitted_recipients", 'tier="basic"', 0)
            engine.process.send_signal(signal.SIGKILL)
            await engine.ended()
        in_flight = {id for call in partner.calls[30:] for id in call.ids}
        assert set(partner.ids.values()) == {1}
        go_on.set()
        async with site.serving() as engine:
            await eventually(lambda: len(partner.ids) == 680, engine)
            await until(engine, "queue_recipients", 'state="inflight",tier="basic"', 0)
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.ended() == 0, engine.said
        assert {id for id, calls in partner.ids.items() if calls > 1} <= in_flight
        async with opened(load(site.path)) as log:
            told = (await read(log, load(site.path))).outcomes()
        assert {to for (_, to), ends in told.items() if len(ends) > 1} == set(), "what was in flight was not told"
        assert len(told) == 680


async def test_a_frozen_worker_sends_nothing_that_went_to_another(
    tmp_path: Path, kafka_bootstrap: str, prefix: str
) -> None:
    async with gateway() as partner, gateway() as other:
        one = Site(tmp_path, kafka_bootstrap, prefix, "one", channel("partner", partner.url))
        two = Site(tmp_path, kafka_bootstrap, prefix, "two", channel("partner", other.url))
        async with opened(load(one.path)) as log, one.serving() as frozen:
            await frozen.ready()
            due = now_ms() + 15_000
            await log.append(spread(prefix, [send(f"i{n}", f"u{n}", not_before=due) for n in range(50)]))
            await until(frozen, "queue_recipients", 'state="scheduled",tier="basic"', 50)
            frozen.process.send_signal(signal.SIGSTOP)
            async with two.serving() as heir:
                await eventually(lambda: len(other.ids) == 50, heir)
                frozen.process.send_signal(signal.SIGCONT)
                # Everything it had queued is due; it has none of it left once it is in the group again.
                await until(frozen, "queue_recipients", 'state="ready",tier="basic"', 0)
                await eventually(lambda: assignments(frozen) == 6, frozen, heir)
                await until(frozen, "queue_recipients", 'state="scheduled",tier="basic"', 0)
                # Both go on.
                await log.append(spread(prefix, [send(f"j{n}", f"v{n}") for n in range(50)]))
                await eventually(lambda: len(other.ids) + len(partner.ids) == 100, frozen, heir)
        assert set(other.ids.values()) == {1}
        assert not any(id.startswith("u") for id in partner.ids)


async def test_the_brokers_limit_is_4096_characters(kafka_bootstrap: str, topic: str) -> None:
    async with opening(lambda: KafkaLog(kafka_bootstrap, metadata_limit=8192)) as opener:
        log = await opener()
        await log.create_topics([TopicSpec(topic)])
        await log.append([Record(topic, b"x")])
        consumer, _ = await joined(log, topic)
        place = Partition(topic, 0)
        await consumer.commit({place: Position(1, "x" * 4096)})
        with pytest.raises(RecordRefused):
            await consumer.commit({place: Position(1, "x" * 4097)})
        assert await log.committed(f"g-{topic}") == {place: Position(1, "x" * 4096)}


async def test_a_map_the_broker_does_not_take_goes_by_the_progress_topic(
    tmp_path: Path, kafka_bootstrap: str, prefix: str
) -> None:
    random = Random(7)
    async with gateway() as partner:
        part = channel("partner", partner.url, "batch = 1000")
        config = load(Site(tmp_path, kafka_bootstrap, prefix, "one", part, "metadata_limit = 8192").path)
        far = now_ms() + 600_000  # within the horizon: it waits in memory
        values = [
            send(f"w{n}", f"w{n}", not_before=far) if not n or random.random() < 0.5 else send(f"i{n}", f"u{n}")
            for n in range(30_000)
        ]
        ready = sum(b"not_before" not in value for value in values)
        place = Partition(f"{prefix}.basic", 0)
        for life in range(2):
            async with working(config) as worker:
                if not life:
                    await worker.append(*(Record(place.topic, value, partition=0) for value in values))
                counters = worker.pipeline.counters
                await eventually(partial(all_done, counters, 0 if life else ready))
                position = (await worker.log.committed(f"{prefix}.basic"))[place]
                assert isinstance(wire_map.decode_text(position.metadata, position.offset), Pointer)
                assert counters.already_done[Tier.BASIC] == (ready if life else 0)
                assert not counters.unread_maps
        assert set(partner.ids.values()) == {1}
        assert len(partner.ids) == ready


async def test_a_stuck_consumer_is_made_anew(
    tmp_path: Path, kafka_bootstrap: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.assignment, "LOOK_EVERY_S", 0.05)
    clock, stuck = Ahead(), asyncio.Event()

    async def nothing(**_: object) -> dict[str, object]:
        stuck.set()  # the poll that was under way has ended
        await asyncio.sleep(0.05)
        return {}

    async with gateway() as partner:
        config = load(Site(tmp_path, kafka_bootstrap, prefix, "one", channel("partner", partner.url)).path)
        async with working(config, clock) as worker:
            consumer: Any = worker.pipeline.intakes[Tier.BASIC].assignment.consumer
            renewed = worker.pipeline.counters.renewed
            await worker.append(*spread(prefix, [send(f"i{n}", f"u{n}") for n in range(10)]))
            await eventually(lambda: len(partner.ids) == 10)
            monkeypatch.setattr(consumer._source.kafka, "getmany", nothing)
            await stuck.wait()
            await worker.append(*spread(prefix, [send(f"j{n}", f"v{n}") for n in range(10)]))
            await eventually(lambda: sum(consumer.lag().values()) > 0)
            clock.ahead_ns += 61 * NS_PER_S
            await eventually(lambda: len(partner.ids) == 20)
            worker.check()
            assert renewed == [0, 0, 1]
        assert set(partner.ids.values()) == {1}
