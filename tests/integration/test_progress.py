"""What was done before a stop or a crash is not done again: positions and maps of what is done, on a real log."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from random import Random

import msgspec
from aiohttp import web

from engine import wire_map
from engine.clock import Clock
from engine.config import Config
from engine.logs import Log, Partition
from engine.send import Outcome, Tier
from engine.wire_map import Pointer
from tests.integration.support import (
    Arrived,
    Gateway,
    Worker,
    channel,
    configured,
    gateway,
    now_ms,
    opened,
    send,
    working,
)

FAR_MS = 600_000  # within the horizon: it waits in memory
BASIC = Partition("surgetank.basic", 0)


def small(config: Config) -> Config:
    """Only small maps fit into a commit."""
    return msgspec.structs.replace(config, log=msgspec.structs.replace(config.log, metadata_limit=1024, partitions=1))


async def committed(worker: Worker) -> None:
    """Everything done so far is committed."""
    counters = worker.pipeline.counters
    await worker.until(lambda: not any(counters.in_flight), "all answered")
    await worker.until(lambda: not any(map(counters.uncommitted, Tier)), "all committed")
    assert not any(ledger.dirty for ledger in worker.ledgers())


def reached(partner: Gateway, recipients: int) -> bool:
    return len(partner.ids) == recipients


def waits(n: int) -> bytes:
    """A send that will not leave during a test."""
    return send(f"w{n}", f"w{n}", not_before=now_ms() + FAR_MS)


async def test_a_clean_stop_repeats_nothing(tmp_path: Path) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        async with working(config) as worker:
            await worker.send("basic", waits(0), *(send(f"i{n}", f"u{n}") for n in range(100)), waits(1), partition=0)
            await worker.until(lambda: len(partner.ids) == 100, "delivered")
        async with working(config) as worker:
            await worker.send("basic", *(send(f"j{n}", f"v{n}") for n in range(100)))
            await worker.until(lambda: len(partner.ids) == 200, "delivered")
            await committed(worker)
            assert set(partner.ids.values()) == {1}
            assert worker.pipeline.counters.already_done[Tier.BASIC] == 100
            assert worker.pipeline.core.stats()["scheduled"] == [0, 0, 2]


async def test_a_large_send_goes_on_where_it_stood(tmp_path: Path) -> None:
    hang = asyncio.Event()

    async def answer(_: Arrived) -> web.Response:
        if len(partner.calls) > 7:
            await hang.wait()
        return web.json_response({"results": []})

    async with gateway(answer=answer) as partner:
        part = channel("partner", partner.url, "batch = 10\nin_flight = 2")
        config = configured(tmp_path, part)
        large = [f"u{n}" for n in range(200)]
        async with opened(config) as log:
            worker = Worker(config, log, Clock())
            await worker.pipeline.start()
            await worker.send("basic", send("large", [*large, "u0"]))
            await worker.until(lambda: len(partner.calls) == 9, "two calls hang")
            await worker.until(lambda: not any(map(worker.pipeline.counters.uncommitted, Tier)), "all committed")
            assert await worker.pipeline.stop(0.1)  # which cuts them off
        cut = [id for call in partner.calls[7:] for id in call.ids]
        hang.set()
        async with working(config) as worker:
            await worker.until(lambda: len(partner.ids) == 200, "all of them")
            await committed(worker)
            assert {id: calls for id, calls in partner.ids.items() if calls > 1} == dict.fromkeys(cut, 2)
            told = await worker.told()
            ends = {to: [end.outcome for end in ends] for (_, to), ends in told.outcomes().items()}
            assert ends == {id: [Outcome.ACCEPTED] for id in large[1:]} | {"u0": [Outcome.DUPLICATE, Outcome.ACCEPTED]}
            assert await worker.committed() == told.ends


async def test_a_map_too_large_for_a_commit_comes_back(tmp_path: Path) -> None:
    random = Random(7)
    async with gateway() as partner:
        config = small(configured(tmp_path, channel("partner", partner.url, "batch = 1000")))
        values = [waits(n) if not n or random.random() < 0.5 else send(f"i{n}", f"u{n}") for n in range(9_000)]
        ready = sum(b"not_before" not in value for value in values)
        nonces: list[bytes] = []
        for life in range(3):
            async with working(config) as worker:
                if not life:
                    await worker.send("basic", *values, partition=0)
                await worker.send("basic", send(f"n{life}", f"n{life}"), partition=0)
                await worker.until(partial(reached, partner, ready + life + 1), "delivered")
                await committed(worker)
                position = (await worker.log.committed("surgetank.basic"))[BASIC]
                pointer = wire_map.decode_text(position.metadata, position.offset)
                assert isinstance(pointer, Pointer)
                nonces.append(pointer.nonce)
                assert sum(worker.pipeline.counters.already_done) == (ready + life if life else 0)
                assert set(partner.ids.values()) == {1}
                keys = await standing(worker.log)
        assert len(set(nonces)) == 3, "each owner has its own"
        assert {key.split(b"/")[3] for key in keys} == {nonces[-1].hex().encode()}, "the others are removed"


async def standing(log: Log) -> set[bytes]:
    """The keys of the progress topic that have a value."""
    reader = await log.reader(["surgetank.progress"])
    newest: dict[bytes, bytes | None] = {}
    while not await reader.at_end():
        for chunk in await reader.poll(1_000, 0.2):
            newest.update((key or b"", value) for key, value in zip(chunk.keys, chunk.values, strict=True))
    await reader.close()
    return {key for key, value in newest.items() if value is not None}
