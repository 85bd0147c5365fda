"""A Kafka that dies and comes back, or never comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from bench.kafka import Broker, free_port
from engine.errors import LogUnavailable
from engine.logs import Partition, Position, Record, TopicSpec
from engine.logs.kafka import KafkaLog
from tests.contract.log_kit import joined, opening, poll_until, rows, values

pytestmark = pytest.mark.kafka
Opener = Callable[[], Awaitable[KafkaLog]]
ROOT = Path(__file__).parents[2]
# A process with a broker that it does not get to stop.
OWNER = """
import sys, time
from bench.kafka import Broker
broker = Broker()
broker.start()
print(broker.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def broker(mortal_broker: Broker) -> Broker:
    """Running, whatever the last test did to it."""
    if not mortal_broker.running:
        mortal_broker.restart()
    return mortal_broker


@pytest.fixture
async def opened(broker: Broker) -> AsyncIterator[Opener]:
    async with opening(lambda: KafkaLog(broker.bootstrap)) as opener:
        yield opener


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.05)


def spawn(*arguments: str, temporary: Path) -> subprocess.Popen[bytes]:
    """A Python process in the checkout whose temporary files go with the test."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, env=environment)


async def test_appends_and_consumers_outlive_the_broker(broker: Broker, opened: Opener, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    consumer, _ = await joined(log, topic)
    appended, stop, all_appended = 0, asyncio.Event(), asyncio.Event()
    found: list[bytes | None] = []

    async def append() -> None:
        nonlocal appended
        while not stop.is_set():
            await log.append([Record(topic, b"%d" % (appended + n), b"%d" % n) for n in range(10)])
            appended += 10
            await asyncio.sleep(0)
        all_appended.set()

    async def consume() -> None:
        while not (all_appended.is_set() and len(found) >= appended):
            try:
                found.extend(row[3] for row in rows(await consumer.poll(500, 0.2)))
            except LogUnavailable:
                await asyncio.sleep(0.1)

    async with asyncio.timeout(90):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(append())
            tasks.create_task(consume())
            await until(lambda: len(found) >= 100)
            before = appended
            await asyncio.to_thread(broker.kill)
            broker.restart()  # blocks the loop, as a stalled process would; and its parent thread must be this one
            await until(lambda: appended >= before + 100)
            stop.set()
    # Exactly once: the idempotent producer repeats nothing, the consumer's epoch neither.
    counts = Counter(found)
    assert len(found) == appended
    assert set(counts.values()) == {1}


async def test_a_commit_to_a_dead_broker_ends_in_time_and_may_be_repeated(
    broker: Broker, opened: Opener, topic: str
) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])
    consumer, _ = await joined(log, topic)
    await asyncio.to_thread(broker.kill)
    with pytest.raises(LogUnavailable):
        await consumer.commit({Partition(topic, 0): Position(1, "note")}, timeout_s=0.5)
    broker.restart()
    async with asyncio.timeout(60):
        while True:
            try:
                await consumer.commit({Partition(topic, 0): Position(1, "note")})
                break
            except LogUnavailable:
                await consumer.poll(1, 0.1)
    assert await log.committed(f"g-{topic}") == {Partition(topic, 0): Position(1, "note")}


async def test_polls_of_a_dead_broker_come_back_empty(broker: Broker, opened: Opener, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    reader = await log.reader([topic])
    consumer, _ = await joined(log, topic)
    await asyncio.to_thread(broker.kill)
    async with asyncio.timeout(30):
        for source in (consumer, reader):
            for _ in range(10):
                try:
                    assert await source.poll(500, 0.05) == []
                except LogUnavailable:
                    await asyncio.sleep(0.05)


async def test_an_append_gives_up_and_the_next_one_gets_a_new_producer(
    broker: Broker, opened: Opener, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.logs.kafka_write.DELIVERY_S", 1.0)
    monkeypatch.setattr("engine.logs.kafka_write.CLOSE_S", 0.2)
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"before")])
    await asyncio.to_thread(broker.kill)
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await log.append([Record(topic, b"lost")])
    broker.restart()
    monkeypatch.setattr("engine.logs.kafka_write.DELIVERY_S", 30.0)
    await log.append([Record(topic, b"after")])
    reader = await log.reader([topic])
    found: list[bytes | None] = []
    async with asyncio.timeout(40):
        while not await reader.at_end():
            found += [row[3] for row in rows(await reader.poll(500, 0.1))]
    assert found[0] == b"before"
    assert found[-1] == b"after"


async def test_closing_without_a_broker_ends(
    broker: Broker, opened: Opener, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.logs.kafka_write.CLOSE_S", 0.2)
    monkeypatch.setattr("engine.logs.kafka_source.STOP_S", 2.0)
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    _, listener = await joined(log, topic)
    await asyncio.to_thread(broker.kill)
    waiting = asyncio.create_task(log.append([Record(topic, b"x")]))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await log.close()
    with pytest.raises(LogUnavailable):
        await waiting
    assert listener.revocations == [(Partition(topic, 0),)]


async def test_no_broker_at_all_is_said_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    log = KafkaLog(address)
    async with asyncio.timeout(30):
        with pytest.raises(LogUnavailable, match=address):
            await log.start()
        await log.close()


def gone(pid: int) -> bool:
    """True when the process has ended (a zombie nobody has waited for counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_broker_dies_with_its_owner(broker: Broker, tmp_path: Path) -> None:
    owner = spawn("-c", OWNER, temporary=tmp_path)
    assert owner.stdout is not None
    pid = int(await asyncio.to_thread(owner.stdout.readline))
    assert not gone(pid)
    owner.kill()
    await asyncio.to_thread(owner.communicate)
    async with asyncio.timeout(30):
        await until(lambda: gone(pid))


async def test_the_command_prints_an_address_and_stops_at_ctrl_c(broker: Broker, tmp_path: Path) -> None:
    running = spawn("-m", "bench", "kafka", temporary=tmp_path)
    assert running.stdout is not None
    address = (await asyncio.to_thread(running.stdout.readline)).decode().strip()
    log = KafkaLog(address)
    await log.start()
    await log.create_topics([TopicSpec("t")])
    await log.append([Record("t", b"x")])
    reader = await log.reader(["t"])
    assert values(await poll_until(reader, 1)) == {("t", 0): [b"x"]}
    await log.close()
    os.kill(running.pid, signal.SIGINT)
    await asyncio.to_thread(running.communicate)
    assert running.returncode == 0
    with pytest.raises(LogUnavailable):
        await KafkaLog(address).start()
