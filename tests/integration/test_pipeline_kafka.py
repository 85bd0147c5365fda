"""Workers on a real Kafka: partitions change hands while sends are on their way, and nothing is missing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web

from engine.clock import Clock
from engine.config import Config, load
from engine.logs import Record
from engine.send import Outcome
from tests.integration.support import QUICK, TIERS, Arrived, Worker, channel, gateway, opened, read, send, within

pytestmark = pytest.mark.kafka
SENDS = 1500
WITHIN_S = 60.0


def configured(directory: Path, bootstrap: str, prefix: str, url: str, name: str) -> Config:
    """A worker's configuration: the log is shared, the state is its own."""
    log = f'[log]\nkind = "kafka"\nbootstrap = "{bootstrap}"\nprefix = "{prefix}"\npartitions = 4\n'
    path = directory / f"{name}.toml"
    path.write_text(f'state = "{directory}/{name}"\n{log}{QUICK}' + channel("partner", url, "batch = 5\nin_flight = 4"))
    return load(path)


async def test_partitions_change_hands(tmp_path: Path, kafka_bootstrap: str) -> None:
    go_on = asyncio.Event()
    stops = {20, 120}  # calls after which all wait: there is something on its way whenever partitions change hands

    async def answer(_: Arrived) -> web.Response:
        if len(partner.calls) in stops:
            go_on.clear()
        await go_on.wait()
        return web.json_response({"results": []})

    prefix = f"t{uuid4().hex}"
    async with gateway(answer=answer) as partner:
        one, two = (configured(tmp_path, kafka_bootstrap, prefix, partner.url, name) for name in ("one", "two"))
        async with opened(one) as log, opened(two) as other:
            await log.append(
                [Record(f"{prefix}.{TIERS[n % 3]}", send(f"i{n}", [f"u{n}", f"v{n}"])) for n in range(SENDS)]
            )
            first, second = Worker(one, log, Clock()), Worker(two, other, Clock())
            go_on.set()
            await first.pipeline.start()
            await first.until(lambda: len(partner.calls) >= 20, "the first delivers")
            joining = asyncio.create_task(second.pipeline.start())
            await first.until(joining.done, "the second joins")
            await joining
            await first.until(lambda: second.pipeline.ready and len(list(second.ledgers())) == 6, "it has its half")
            assert not {p for ledger in first.ledgers() for p in [ledger.partition]} & {
                ledger.partition for ledger in second.ledgers()
            }
            go_on.set()
            await first.until(lambda: second.ended().total() > 100, "the second delivers")
            await second.until(lambda: not go_on.is_set(), "all wait again")
            leaving = asyncio.create_task(first.pipeline.stop(10.0))
            await second.until(lambda: first.pipeline.dispatcher._stopped, "the first leaves")
            go_on.set()
            with within(WITHIN_S):
                assert await leaving
            assert first.snapshot.difference() == [0, 0, 0]
            wanted = (await read(other, two)).wanted()
            assert wanted.total() == 2 * SENDS
            await second.until(lambda: len(partner.ids) == 2 * SENDS, "all delivered")
            ends = (await read(other, two)).ends
            async with asyncio.timeout(WITHIN_S):
                while await second.committed() != ends:
                    second.check()
                    await asyncio.sleep(0.05)
            second.nothing_left()
            told = (await read(other, two)).outcomes()
            assert set(told) == set(wanted)
            assert {end.outcome for ends in told.values() for end in ends} == {Outcome.ACCEPTED}
            given_back = sum(first.pipeline.counters.given_back) + sum(second.pipeline.counters.given_back)
            assert given_back > 0, "something was on its way"
            assert await second.pipeline.stop(5.0)
