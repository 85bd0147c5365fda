"""What goes wrong elsewhere when partitions come and go, one test for each: on a real Kafka, whose group a second
member joins and leaves."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web

from engine.commit import Ledger
from engine.config import load
from engine.consume import POLL_RECORDS
from engine.logs import Partition, Record
from engine.logs.kafka import KafkaLog
from engine.send import Tier
from tests.contract.log_kit import Listener
from tests.integration.support import IN_MEMORY, Arrived, Gateway, Worker, channel, gateway, now_ms, send, working
from tests.integration.test_progress_kafka import Site

pytestmark = pytest.mark.kafka
WITHIN_S = 90.0
BASIC = Tier.BASIC
BUDGET = 'budget = { sends = 100, bytes = "4MiB" }'


@asynccontextmanager
async def grouped(
    directory: Path, bootstrap: str, more: str = "", budget: str = ""
) -> AsyncIterator[tuple[Gateway, Worker, str]]:
    """A worker that owns the two partitions of its tier, and its topic. ``more``: of the channel."""
    prefix = f"t{uuid4().hex}"
    async with gateway() as partner:
        path = Site(directory, bootstrap, prefix, "one", channel("partner", partner.url, more)).path
        path.write_text(path.read_text().replace("[tiers.basic]\n", f"[tiers.basic]\n{budget}\n"))
        async with working(load(path)) as worker:
            yield partner, worker, f"{prefix}.basic"


async def eventually(worker: Worker, condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            worker.check()
            await asyncio.sleep(0.02)
    worker.check()


async def passing(worker: Worker, bootstrap: str, topic: str) -> None:
    """A second member comes and goes; all partitions are the worker's again."""
    counters, log = worker.pipeline.counters, KafkaLog(bootstrap)
    assigned = counters.rebalances[BASIC, "assigned"]
    await log.start()
    try:
        guest = log.consumer(topic, [topic], Listener())
        await guest.start()
        await eventually(worker, lambda: counters.rebalances[BASIC, "assigned"] > assigned)
        assigned = counters.rebalances[BASIC, "assigned"]
        await guest.close()
        await eventually(worker, lambda: counters.rebalances[BASIC, "assigned"] > assigned)
        await eventually(worker, lambda: len(worker.pipeline.intakes[BASIC].ledgers) == 2)
    finally:
        await log.close()


def records(topic: str, values: list[bytes]) -> list[Record]:
    return [Record(topic, value, partition=n % 2) for n, value in enumerate(values)]


async def test_stall_after_rebalance(tmp_path: Path, kafka_bootstrap: str) -> None:
    """What is queued of partitions that went must not fill the budget of those that came."""
    hourly = f'limits = [{{ calls = 1, per = "1h" }}]\nbatch = 1\n{IN_MEMORY}'
    async with grouped(tmp_path, kafka_bootstrap, hourly) as (partner, worker, topic):
        await worker.append(*records(topic, [send(f"i{n}", f"u{n}") for n in range(50)]))
        await eventually(worker, lambda: len(partner.ids) == 1 and worker.pipeline.opens.count[BASIC] == 49)
        for _ in range(2):
            await passing(worker, kafka_bootstrap, topic)
            await eventually(worker, lambda: worker.pipeline.opens.count[BASIC] == 49)
        assert worker.pipeline.core.stats()["queued"][BASIC] == 49


async def test_in_flight_counter_leak_on_revoke(tmp_path: Path, kafka_bootstrap: str) -> None:
    go_on = asyncio.Event()

    async def hang(_: Arrived) -> web.Response:
        await go_on.wait()
        return web.json_response({"results": []})

    async with grouped(tmp_path, kafka_bootstrap, "batch = 5\nin_flight = 2") as (partner, worker, topic):
        partner.answer = hang
        await worker.append(*records(topic, [send(f"i{n}", f"u{n}") for n in range(50)]))
        await eventually(worker, lambda: len(partner.calls) == 1)
        passed = asyncio.create_task(passing(worker, kafka_bootstrap, topic))
        await eventually(worker, lambda: worker.pipeline.counters.rebalances[BASIC, "revoked"] > 0)
        go_on.set()
        await passed
        await eventually(worker, lambda: len(partner.ids) == 50 and not worker.pipeline.opens)
        assert worker.pipeline.counters.in_flight == [0, 0, 0]
        assert not sum(worker.pipeline.counters.calls_in_flight.values())


async def test_stale_entry_swallowing_a_redelivered_record(tmp_path: Path, kafka_bootstrap: str) -> None:
    """What is read again under a new epoch is not taken for what is still queued under the old one."""
    async with grouped(tmp_path, kafka_bootstrap) as (partner, worker, topic):
        due = now_ms() + 15_000
        await worker.append(*records(topic, [send(f"i{n}", f"u{n}", not_before=due) for n in range(50)]))
        await eventually(worker, lambda: worker.pipeline.core.stats()["scheduled"][BASIC] == 50)
        await passing(worker, kafka_bootstrap, topic)
        await eventually(worker, lambda: len(partner.ids) == 50)
        await eventually(worker, lambda: not worker.pipeline.opens)
        assert set(partner.ids.values()) == {1}


async def test_metrics_leak_per_rebalance(tmp_path: Path, kafka_bootstrap: str) -> None:
    async with grouped(tmp_path, kafka_bootstrap) as (_, worker, topic):
        await passing(worker, kafka_bootstrap, topic)
        before = series(worker)
        await passing(worker, kafka_bootstrap, topic)
        assert series(worker) == before


def series(worker: Worker) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sample.labels.items())) for family in worker.snapshot.collect() for sample in family.samples
    }


async def test_unbounded_retry_queue(tmp_path: Path, kafka_bootstrap: str) -> None:
    """What waits to be tried again counts against the tier's budget: intake stops at it."""

    async def busy(_: Arrived) -> web.Response:
        return web.Response(status=503)

    retry = 'retry = { attempts = 200, first = "10s", most = "1m" }'
    async with grouped(tmp_path, kafka_bootstrap, retry, BUDGET) as (partner, worker, topic):
        partner.answer = busy
        await worker.append(*records(topic, [send(f"i{n}", f"u{n}") for n in range(3000)]))
        await full(worker)
        stats, states = worker.pipeline.core.stats, ("waiting", "queued")
        await eventually(worker, lambda: sum(stats()[state][BASIC] for state in states) > 0)  # their calls have ended


async def test_polling_while_blocked_until_out_of_memory(tmp_path: Path, kafka_bootstrap: str) -> None:
    """At the budget records stay with the broker, in whose group we remain."""
    go_on = asyncio.Event()

    async def wait(_: Arrived) -> web.Response:
        await go_on.wait()
        return web.json_response({"results": []})

    async with grouped(tmp_path, kafka_bootstrap, 'timeout = "1m"', BUDGET) as (partner, worker, topic):
        partner.answer = wait
        await worker.append(*records(topic, [send(f"i{n}", f"u{n}") for n in range(3000)]))
        await full(worker)
        assert len(worker.pipeline.intakes[BASIC].ledgers) == 2
        go_on.set()
        await eventually(worker, lambda: len(partner.ids) == 3000)
        assert set(partner.ids.values()) == {1}


async def full(worker: Worker) -> None:
    """It holds its budget, and wants no more."""
    intake, opens = worker.pipeline.intakes[BASIC], worker.pipeline.opens
    await eventually(worker, lambda: opens.count[BASIC] >= 100)
    await eventually(worker, lambda: not intake.assignment.reading)
    assert opens.count[BASIC] <= 100 + POLL_RECORDS


def test_wrong_offset_after_a_gap() -> None:
    """Offsets that no record has (compaction, transactions) are done; the position is the next one that is not."""
    ledger = Ledger(Partition("t", 0), 0, 1)
    ledger.open_many([0, 1, 5, 6, 9], [0] * 5)
    ledger.complete_many(array("q", [1, 5, 0]))
    assert (ledger.watermark, ledger.snapshot().offset) == (6, 6)
    ledger.complete_many(array("q", [9, 6]))
    assert (ledger.watermark, ledger.snapshot().offset) == (10, 10)
    again = Ledger(Partition("t", 0), 10, 2)
    again.open_many([12], [0])
    assert again.snapshot().offset == 12
