"""What the log tests share: a listener that remembers, and polling until something is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from engine.logs import Chunk, Consumer, Headers, Log, Partition, Position

DEADLINE_S = 40.0
OpenLog = Callable[..., Awaitable[Log]]
Opened = TypeVar("Opened", bound=Log)


class Polls(Protocol):
    """Consumers and readers."""

    async def poll(self, max_records: int, timeout_s: float) -> list[Chunk]: ...


class Listener:
    """Remembers what it was told; ``on_revoke`` runs inside the call."""

    def __init__(self) -> None:
        self.assignments: list[tuple[dict[Partition, Position], int]] = []
        self.revocations: list[tuple[Partition, ...]] = []
        self.owned: dict[Partition, Position] = {}
        self.epoch = 0
        self.on_revoke: Callable[[Sequence[Partition]], Awaitable[None]] | None = None

    async def assigned(self, positions: Mapping[Partition, Position], epoch: int) -> None:
        self.assignments.append((dict(positions), epoch))
        self.owned.update(positions)
        self.epoch = epoch

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        if self.on_revoke is not None:
            await self.on_revoke(partitions)
        self.revocations.append(tuple(partitions))
        for partition in partitions:
            self.owned.pop(partition, None)


@asynccontextmanager
async def opening(make: Callable[..., Opened]) -> AsyncIterator[Callable[..., Awaitable[Opened]]]:
    """A way to open logs; all are closed at the end, the last one first."""
    logs: list[Opened] = []

    async def opener(**keys: Any) -> Opened:
        log = make(**keys)
        await log.start()
        logs.append(log)
        return log

    try:
        yield opener
    finally:
        for log in reversed(logs):
            await log.close()


async def joined(log: Log, topic: str) -> tuple[Consumer, Listener]:
    """The first member of the topic's group, once it owns something."""
    listener = Listener()
    consumer = log.consumer(f"g-{topic}", [topic], listener)
    await consumer.start()
    await wait_for(lambda: bool(listener.owned), consumer)
    return consumer, listener


def count(chunks: Sequence[Chunk]) -> int:
    """How many records."""
    return sum(len(chunk.offsets) for chunk in chunks)


def values(chunks: Sequence[Chunk]) -> dict[tuple[str, int], list[bytes | None]]:
    """The values per (topic, partition), in the order they came."""
    found: dict[tuple[str, int], list[bytes | None]] = {}
    for chunk in chunks:
        found.setdefault((chunk.topic, chunk.partition), []).extend(chunk.values)
    return found


def rows(chunks: Sequence[Chunk]) -> list[tuple[int, int, bytes | None, bytes | None, Headers]]:
    """(offset, timestamp, key, value, headers) in the order they came."""
    return [row for chunk in chunks for row in zip(*chunk[3:], strict=True)]


async def poll_until(source: Polls, wanted: int, max_records: int = 500) -> list[Chunk]:
    """Poll until ``wanted`` records came. Fails when they do not come in time, or more come than asked for."""
    chunks: list[Chunk] = []
    async with asyncio.timeout(DEADLINE_S):
        while count(chunks) < wanted:
            polled = await source.poll(max_records, 0.5)
            assert count(polled) <= max_records
            chunks += polled
    return chunks


async def wait_for(condition: Callable[[], bool], *sources: Polls) -> list[Chunk]:
    """Poll ``sources`` until ``condition`` holds; what they gave meanwhile."""
    chunks: list[Chunk] = []
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            for polled in await asyncio.gather(*(source.poll(500, 0.05) for source in sources)):
                chunks += polled
    return chunks
