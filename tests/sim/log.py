"""One process's access to the simulated broker: a third implementation of ``engine.logs.Log`` (tests/contract runs over
it too). Every question it asks travels over a ``Link``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from engine.errors import LogUnavailable, StaleEpoch
from engine.logs import (
    AssignmentListener,
    Chunk,
    Consumer,
    Partition,
    Position,
    Reader,
    Record,
    TopicDifference,
    TopicSpec,
)
from engine.logs.checks import MAX_METADATA, check_metadata
from tests.sim.broker import Broker

T = TypeVar("T")


class _Ear:
    """Somebody who waits for records; told on his own loop."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def call(self) -> None:
        if not self.event.is_set() and not self._loop.is_closed():
            self._loop.call_soon(self.event.set)

    async def wait(self, deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self.event.wait()
        self.event.clear()


class Link(Protocol):
    """A connection to the broker."""

    async def call(self, act: Callable[[], T]) -> T:
        """Do ``act`` at the broker, and bring back what it returns or raises. Raises LogUnavailable: may be done."""


class Direct:
    """A link that nothing happens to."""

    async def call(self, act: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return act()


class SimLog:
    """One process's access. ``link`` makes a connection."""

    def __init__(
        self, broker: Broker, link: Callable[[], Link], *, first_start: str = "earliest", heartbeat_s: float = 1.0,
        metadata_limit: int = MAX_METADATA,
    ) -> None:  # fmt: skip
        self.broker = broker
        self.link = link
        self.first_start = first_start
        self.heartbeat_s = heartbeat_s
        self.metadata_limit = metadata_limit
        self.member: str | None = None  # its name, if it has one
        self.open: list[_Places] = []
        self.acked: Callable[[Sequence[Record]], None] = lambda records: None  # told of what is acknowledged
        self.commit_begins: Callable[[], object] = lambda: None  # what it returns goes with the commit
        self._link: Link | None = None

    async def start(self) -> None:
        link = self.link()
        await link.call(lambda: None)
        self._link = link

    async def close(self) -> None:
        for one in tuple(self.open):
            await one.close()
        self._link = None

    async def ask(self, act: Callable[[], T]) -> T:
        """Over the connection that producer and administration share."""
        if self._link is None:
            raise LogUnavailable("the log is not open")
        return await self._link.call(act)

    async def append(self, records: Sequence[Record]) -> None:
        await self.ask(lambda: self.broker.append(records))
        self.acked(records)

    async def put(self, record: Record) -> tuple[Partition, int]:
        (place,) = await self.ask(lambda: self.broker.append([record]))
        return place

    async def fetch(self, places: Sequence[tuple[Partition, int]]) -> list[Record | None]:
        return await self.ask(lambda: [self.broker.find(*place) for place in places])

    def consumer(self, group: str, topics: Sequence[str], listener: AssignmentListener) -> Consumer:
        return SimConsumer(self, group, topics, listener)

    async def reader(
        self, topics: Sequence[str], *, from_end: bool = False, at: Mapping[Partition, int] | None = None
    ) -> Reader:
        def places() -> dict[Partition, int]:
            partitions = self.broker.partitions(topics)
            bounds = {partition: self.broker.bounds(partition)[from_end] for partition in partitions}
            return bounds | {partition: offset for partition, offset in (at or {}).items() if partition in bounds}

        return SimReader(self, await self.ask(places))

    async def trim(self, ends: Mapping[Partition, int]) -> None:
        await self.ask(lambda: self.broker.trim(ends))

    async def committed(self, group: str) -> dict[Partition, Position]:
        return await self.ask(lambda: dict(self.broker.group(group).positions))

    async def check_topics(self, wanted: Sequence[TopicSpec]) -> list[TopicDifference]:
        return await self.ask(lambda: self.broker.differences(wanted))

    async def create_topics(self, wanted: Sequence[TopicSpec]) -> list[str]:
        return await self.ask(lambda: self.broker.create(wanted))


class _Places:
    """Reads partitions on from where it stands."""

    def __init__(self, log: SimLog) -> None:
        self.log = log
        self.nexts: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}
        self._link = log.link()
        self._ear = _Ear()
        self.closed = False
        log.broker.ears[self._ear] = None
        log.open.append(self)

    async def call(self, act: Callable[[], T]) -> T:
        return await self._link.call(act)

    def silence(self) -> None:
        self.closed = True
        self._ear.event.set()
        self.log.broker.ears.pop(self._ear, None)
        if self in self.log.open:
            self.log.open.remove(self)

    def wanted(self) -> dict[Partition, int]:
        """Where it reads on, and nowhere else."""
        return dict(self.nexts)

    def waiting(self) -> bool:
        """Whether there is anything (a fetch that is held until there is would tell as much)."""
        topics = self.log.broker.topics
        return any(len(topics[p.topic].partitions[p.number]) > at for p, at in self.wanted().items())

    async def fetch(self, most: int, epoch: int) -> tuple[list[Chunk], dict[Partition, int]]:
        """Records, and how far they go; the caller moves on."""
        broker, nexts = self.log.broker, self.wanted()

        def act() -> tuple[list[Chunk], dict[Partition, int]]:
            chunks = broker.read(nexts, most, epoch)
            moved = {Partition(chunk.topic, chunk.partition): chunk.offsets[-1] + 1 for chunk in chunks}
            if not chunks:  # nothing but holes is left
                moved = {partition: broker.bounds(partition)[1] for partition in nexts}
            self.ends.update({partition: broker.bounds(partition)[1] for partition in nexts})
            return chunks, moved

        return await self.call(act)

    async def news(self, deadline: float) -> None:
        await self._ear.wait(deadline)

    async def close(self) -> None:
        self.silence()


class SimReader(_Places):
    """See ``engine.logs.Reader``."""

    def __init__(self, log: SimLog, places: Mapping[Partition, int]) -> None:
        super().__init__(log)
        self.nexts.update(places)

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not self.closed:
            if self.waiting():
                chunks, moved = await self.fetch(max_records, 0)
                self.nexts.update(moved)
                if chunks:
                    return chunks
            if asyncio.get_running_loop().time() >= deadline:
                return []
            await self.news(deadline)
        raise LogUnavailable("the reader is closed")

    async def at_end(self) -> bool:
        nexts = dict(self.nexts)
        return await self.call(lambda: all(self.log.broker.bounds(p)[1] <= at for p, at in nexts.items()))


class SimConsumer(_Places):
    """See ``engine.logs.Consumer``. Its membership is kept up by a task of its own, as a Kafka client's is."""

    def __init__(self, log: SimLog, group: str, topics: Sequence[str], listener: AssignmentListener) -> None:
        super().__init__(log)
        self._group = group
        self._topics = tuple(topics)
        self._listener = listener
        self._member: int | None = None
        self._generation = 0
        self._epoch = 0
        self._owned = asyncio.Event()
        self._failed: BaseException | None = None
        self._paused: set[Partition] = set()  # those of an assignment that is over mean nothing
        self._all_paused = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._belong())
        owned = asyncio.create_task(self._owned.wait())
        await asyncio.wait({owned, self._task}, return_when=asyncio.FIRST_COMPLETED)
        owned.cancel()

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not self.closed:
            if self._failed is not None:
                failed, self._failed = self._failed, None
                raise failed
            if self._owned.is_set() and self.waiting():
                epoch = self._epoch
                chunks, moved = await self.fetch(max_records, epoch)
                if epoch == self._epoch and self._owned.is_set():
                    self.nexts.update(moved)
                    if chunks:
                        return chunks
            if asyncio.get_running_loop().time() >= deadline:
                return []
            await self.news(deadline)
        raise LogUnavailable(f"group {self._group}: this member has left")

    async def commit(self, positions: Mapping[Partition, Position], timeout_s: float = 5.0) -> None:
        check_metadata(positions, self.log.metadata_limit)
        member, generation = self._member, self._generation
        if member is None or not positions.keys() <= self.nexts.keys():
            raise StaleEpoch(f"group {self._group} does not own that here")
        who = self.log.commit_begins()
        try:
            async with asyncio.timeout(timeout_s):
                await self.call(lambda: self.log.broker.commit(self._group, member, generation, positions, who))
        except TimeoutError as error:
            raise LogUnavailable(f"group {self._group} cannot commit: no answer") from error

    def pause(self, partitions: Collection[Partition] | None = None) -> None:
        self._all_paused = self._all_paused or partitions is None
        self._paused |= set(self.nexts if partitions is None else partitions)

    def resume(self, partitions: Collection[Partition] | None = None) -> None:
        self._all_paused = self._all_paused and partitions is not None
        self._paused -= self._paused if partitions is None else set(partitions)

    def wanted(self) -> dict[Partition, int]:
        return {} if self._all_paused else {p: at for p, at in self.nexts.items() if p not in self._paused}

    def lag(self) -> dict[Partition, int]:
        return {partition: self.ends[partition] - at for partition, at in self.nexts.items()}

    async def renew(self) -> None:
        member = self._member
        if member is not None:  # the next heartbeat is told
            await self.call(lambda: self.log.broker.leave(self._group, member))

    async def close(self) -> None:
        if self.closed:
            return
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._lose()
        self.silence()
        member, self._member = self._member, None
        if member is not None:
            with contextlib.suppress(LogUnavailable):
                await self.call(lambda: self.log.broker.leave(self._group, member))

    async def _belong(self) -> None:
        while True:
            try:
                await self._join()
                await self._stay()
            except StaleEpoch:
                self._member = None
            except LogUnavailable:
                await asyncio.sleep(0.1)
                continue
            await self._lose()

    async def _join(self) -> None:
        broker, group = self.log.broker, self._group
        self._member = member = await self.call(lambda: broker.join(group, self._member, self._topics, self.log.member))
        while (found := await self.call(lambda: broker.sync(group, member))) is None:  # noqa: ASYNC110 - over a wire
            await asyncio.sleep(0.02)
        self._generation, partitions = generation, _ = found
        first_start = self.log.first_start
        positions = await self.call(lambda: broker.positions(group, member, generation, partitions, first_start))
        self._epoch += 1
        try:
            if positions:
                await self._listener.assigned(positions, self._epoch)
        except Exception as error:  # noqa: BLE001 - the next poll raises it
            self._failed = error
        self.nexts = {partition: position.offset for partition, position in positions.items()}
        self.ends = {partition: broker.bounds(partition)[1] for partition in positions}
        self._paused = set()
        self._owned.set()

    async def _stay(self) -> None:
        """Until the group rebalances. An answer that does not come changes nothing."""
        member = self._member
        assert member is not None
        answered = True
        while answered:
            await asyncio.sleep(self.log.heartbeat_s)
            with contextlib.suppress(LogUnavailable):
                answered = await self.call(lambda: self.log.broker.heartbeat(self._group, member, self._generation))

    async def _lose(self) -> None:
        self._owned.clear()
        if not self.nexts:
            return
        try:
            await self._listener.revoked(tuple(self.nexts))
        except Exception as error:  # noqa: BLE001 - as above
            self._failed = error
        finally:
            self.nexts = {}
