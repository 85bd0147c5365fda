"""Groups on a real Kafka: who owns what, and what happens when it changes hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from engine.errors import StaleEpoch
from engine.logs import Consumer, Log, Partition, Position, Record, TopicSpec
from engine.logs.kafka import KafkaLog
from tests.contract.log_kit import Listener, opening, poll_until, rows, wait_for

pytestmark = pytest.mark.kafka
Opener = Callable[[], Awaitable[KafkaLog]]


@pytest.fixture
async def opened(kafka_bootstrap: str) -> AsyncIterator[Opener]:
    async with opening(lambda: KafkaLog(kafka_bootstrap)) as opener:
        yield opener


async def joining(log: Log, topic: str, listener: Listener, beside: Consumer) -> Consumer:
    """Another member; the one ``beside`` it must poll meanwhile, or the group does not get anywhere."""
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    starting = asyncio.create_task(consumer.start())
    await wait_for(starting.done, beside)
    await starting
    return consumer


async def test_two_members_share_the_partitions(opened: Opener, topic: str) -> None:
    log, other = await opened(), await opened()
    await log.create_topics([TopicSpec(topic, partitions=6)])
    await log.append([Record(topic, b"%d" % n, partition=n % 6) for n in range(60)])
    first, second = Listener(), Listener()
    one = log.consumer(f"g-{topic}", [topic], first)
    await one.start()
    assert len(await poll_until(one, 60)) >= 6
    two = await joining(other, topic, second, one)
    await wait_for(lambda: len(first.owned) == len(second.owned) == 3, one, two)
    assert set(first.owned).isdisjoint(second.owned)
    # The sticky assignment: the first keeps three of its own; its epoch has moved on.
    assert [len(partitions) for partitions in first.revocations] == [6]
    assert first.epoch == 2
    assert second.epoch == 1

    await log.append([Record(topic, b"%d" % n, partition=n % 6) for n in range(60, 120)])
    for consumer, listener in ((one, first), (two, second)):
        await consumer.commit({partition: Position(10) for partition in listener.owned})
    taken: list[int] = []

    async def take() -> None:
        for consumer, listener in ((one, first), (two, second)):
            for chunk in await consumer.poll(500, 0.05):
                assert chunk.epoch == listener.epoch
                assert Partition(chunk.topic, chunk.partition) in listener.owned
                taken.extend(int(value or b"") for value in chunk.values if int(value or b"") >= 60)

    async with asyncio.timeout(40):
        while len(taken) < 60:
            await take()
    assert sorted(taken) == list(range(60, 120))

    await two.close()
    await wait_for(lambda: len(first.owned) == 6, one)
    assert first.epoch >= 3


async def test_a_member_with_a_name_gives_its_share_up_when_it_leaves(kafka_bootstrap: str, topic: str) -> None:
    """Kafka keeps the place of such a member for its session, 30 s, unless it says that it will not come back."""
    async with opening(lambda member: KafkaLog(kafka_bootstrap, member=member)) as opener:
        log, other = await opener(member="one"), await opener(member="two")
        await log.create_topics([TopicSpec(topic, partitions=4)])
        first, second = Listener(), Listener()
        one = log.consumer(f"g-{topic}", [topic], first)
        await one.start()
        two = await joining(other, topic, second, one)
        await wait_for(lambda: len(first.owned) == len(second.owned) == 2, one, two)
        async with asyncio.timeout(25):
            await two.close()
            await wait_for(lambda: len(first.owned) == 4, one)


async def test_a_revoked_partition_is_committed_before_it_moves(opened: Opener, topic: str) -> None:
    log, other = await opened(), await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    await log.append([Record(topic, b"%d" % n, partition=n % 2) for n in range(20)])
    first, second = Listener(), Listener()
    one = log.consumer(f"g-{topic}", [topic], first)

    async def commit(partitions: Sequence[Partition]) -> None:
        assert set(partitions) == {Partition(topic, 0), Partition(topic, 1)}
        await one.commit({partition: Position(10, "last words") for partition in partitions})

    first.on_revoke = commit
    await one.start()
    await poll_until(one, 20)
    two = await joining(other, topic, second, one)
    again = await wait_for(lambda: len(first.owned) == len(second.owned) == 1, one, two)
    assert again == []
    assert set(second.owned.values()) == {Position(10, "last words")}
    first.on_revoke = None


async def test_a_commit_after_the_partition_moved_is_stale(opened: Opener, topic: str) -> None:
    log, other = await opened(), await opened()
    await log.create_topics([TopicSpec(topic, partitions=2)])
    first, second = Listener(), Listener()
    one = log.consumer(f"g-{topic}", [topic], first)
    await one.start()
    await wait_for(lambda: len(first.owned) == 2, one)
    two = await joining(other, topic, second, one)
    await wait_for(lambda: len(first.owned) == len(second.owned) == 1, one, two)
    (moved,) = second.owned
    with pytest.raises(StaleEpoch):
        await one.commit({moved: Position(1)})
    await two.commit({moved: Position(0)})


async def test_nothing_is_handed_out_before_the_listener_has_returned(opened: Opener, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"%d" % n) for n in range(10)])
    may_go_on, entered = asyncio.Event(), asyncio.Event()

    class Slow(Listener):
        async def assigned(self, *args: object) -> None:
            entered.set()
            await may_go_on.wait()
            await super().assigned(*args)  # type: ignore[arg-type]

    listener = Slow()
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    await consumer.start()
    await asyncio.wait_for(entered.wait(), 40)
    for _ in range(10):  # long enough for aiokafka to have fetched them
        assert await consumer.poll(500, 0.1) == []
    may_go_on.set()
    assert [row[0] for row in rows(await poll_until(consumer, 10))] == list(range(10))


async def test_what_the_listener_raises_is_not_lost(opened: Opener, topic: str) -> None:
    log = await opened()
    await log.create_topics([TopicSpec(topic)])
    await log.append([Record(topic, b"x")])

    class Broken(Listener):
        async def assigned(self, *args: object) -> None:
            if not self.assignments:
                self.assignments.append(({}, 0))
                raise ZeroDivisionError("a fault in the listener")
            await super().assigned(*args)  # type: ignore[arg-type]

    consumer = log.consumer(f"g-{topic}", [topic], Broken())
    await consumer.start()
    with pytest.raises(ZeroDivisionError):
        await wait_for(lambda: False, consumer)
    # The consumer is made anew and goes on.
    assert [row[3] for row in rows(await poll_until(consumer, 1))] == [b"x"]


async def test_consumers_in_one_process_do_not_share_the_assignors_memory(opened: Opener, topic: str) -> None:
    log, names = await opened(), [f"{topic}-{n}" for n in range(3)]
    await log.create_topics([TopicSpec(name, partitions=4) for name in names])
    listeners = [Listener() for _ in names]
    consumers = [log.consumer(f"g-{name}", [name], listener) for name, listener in zip(names, listeners, strict=True)]
    await asyncio.gather(*(consumer.start() for consumer in consumers))
    await wait_for(lambda: all(len(listener.owned) == 4 for listener in listeners), *consumers)
    for name, listener in zip(names, listeners, strict=True):
        assert set(listener.owned) == {Partition(name, number) for number in range(4)}
