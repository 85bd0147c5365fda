"""Which partitions of a tier are ours: takes them over with what is known to be done of them, and gives them back
(shell).

In: the consumer's assignments and revocations. Out: a ledger for each partition, restored from its last commit; chunks
of a partition only once it has one.
Invariant: what a commit says is done is not done again, unless it cannot be read, which is counted; once a partition is
given back, nothing that ends counts for it.
Never: awaits the task that polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from engine import wire_map
from engine.attempts import Attempts
from engine.clock import NS_PER_S, Clock
from engine.commit import Committer, Ledger
from engine.counters import Counters
from engine.errors import LogUnavailable, MapUnreadable
from engine.logs import Chunk, Consumer, Partition, Position
from engine.progress import Keep, Progress, fetch
from engine.record import Recorder
from engine.send import Tier
from engine.state.flight import Flight
from engine.wire_map import Map, Pointer

logger = structlog.get_logger("surgetank.assignment")
DRAIN_S = 5.0  # for calls under way and their receipts; a third of the time a rebalance may take is 20
LOOK_S = 0.01
LOOK_EVERY_S = 5.0
STUCK_NS = 60 * NS_PER_S
FEW = 100  # of lag: where a partition ends in what transactions leave, it is never quite 0
MOST_WAITING = 5_000  # records of partitions whose map is on its way


class Stuck:
    """Whether a consumer is: for a minute wanted records wait and none comes, or what is done is not committed."""

    def __init__(self, tier: Tier, counters: Counters, now_ns: int) -> None:
        self._tier = tier
        self._counters = counters
        self._read = self._committed = -1
        self._lag = 0  # when the last record came
        self._read_ns = self._committed_ns = now_ns

    def look(self, lag: int, reading: bool, now_ns: int) -> bool:
        """To be asked every few seconds; once it has said so, not again for a minute."""
        counters, tier = self._counters, self._tier
        if counters.consumed_sends[tier] != self._read or not reading:
            self._read, self._lag, self._read_ns = counters.consumed_sends[tier], lag, now_ns
        elif lag <= min(self._lag, FEW):
            self._read_ns = now_ns
        if counters.committed[tier] != self._committed or counters.told[tier] <= counters.committed[tier]:
            self._committed, self._committed_ns = counters.committed[tier], now_ns
        if now_ns - min(self._read_ns, self._committed_ns) <= STUCK_NS:
            return False
        self._read_ns = self._committed_ns = now_ns
        return True


class Assignment:
    """One tier's; its consumer's listener."""

    def __init__(
        self,
        tier: Tier,
        keep: Keep,
        committer: Committer,
        recorder: Recorder,
        attempts: Attempts,
        drop: Callable[[Tier], None],
        flight: Flight,
        counters: Counters,
        clock: Clock,
    ) -> None:
        """``drop``: gives back what is queued of a tier."""
        self.tier = tier
        self.keep = keep
        self.ledgers: dict[Partition, Ledger] = {}
        self.progress: dict[Partition, Progress] = {}
        self.consumer: Consumer
        self.assigned_once = False
        self.stopping = False  # the pipeline sees to what is under way
        self.reading = False  # intake wants records
        self._committer = committer
        self._recorder = recorder
        self._attempts = attempts
        self._drop = drop
        self._flight = flight
        self._counters = counters
        self._waiting: dict[Partition, list[Chunk]] = {}  # for their map, of partitions that are ours
        self._ready: list[Chunk] = []
        self._restoring: asyncio.Task[None] | None = None
        self._clock = clock
        self._stuck = Stuck(tier, counters, clock.now_ns())

    @property
    def full(self) -> bool:
        """Whether so much waits for maps that no more should be read."""
        return sum(len(chunk.offsets) for chunks in self._waiting.values() for chunk in chunks) >= MOST_WAITING

    def gate(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """What of these, and of those kept back before, may be taken in now."""
        if self._restoring is not None and self._restoring.done():
            self._restoring.result()
            self._restoring = None
        ready, self._ready = self._ready, []
        for chunk in chunks:
            self._waiting.get(Partition(chunk.topic, chunk.partition), ready).append(chunk)
        return ready

    async def assigned(self, positions: Mapping[Partition, Position], epoch: int) -> None:
        """Ours from these positions on."""
        gated: dict[Partition, tuple[int, Map | Pointer | None]] = {}
        for partition, (position, metadata) in positions.items():
            said = self._said(partition, position, metadata)
            if isinstance(said, Pointer) or self._attempts.wanted:
                self._waiting[partition] = []
                gated[partition] = position, said
            else:
                self._own(partition, position, epoch, said, b"" if said is None else said.nonce)
        if gated:
            self._restoring = asyncio.create_task(self._restore(gated, epoch))
        self.assigned_once = True
        self._counters.rebalances[self.tier, "assigned"] += 1
        logger.info("partitions assigned", tier=self.tier.label, partitions=len(positions), epoch=epoch)

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what is under way, commit what is done; what is not belongs to the next owner."""
        if not partitions:
            return
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)
            self._restoring = None
        self._waiting.clear()
        for ledger in self.ledgers.values():
            ledger.leaving = True
        self._drop(self.tier)
        if not self.stopping:
            await self._drain()
        await self._committer.commit(self)
        for ledger in self.ledgers.values():
            ledger.stale = True
        self._flight.forfeit(self.tier)
        self.ledgers.clear()
        self.progress.clear()
        self._counters.rebalances[self.tier, "revoked"] += 1
        logger.info("partitions revoked", tier=self.tier.label, partitions=len(partitions))

    def refuted(self, ledger: Ledger) -> None:
        """The first record read is not the one its map speaks of."""
        ledger.refuted = False
        self._unread(ledger.partition, MapUnreadable("refuted", "the topic was made anew, or its records removed"))

    async def watch(self) -> None:
        """Make the consumer anew when it is stuck though the log answers, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._stuck.look(self._lag(), self.reading, self._clock.now_ns()):
                continue
            try:
                await self.keep.log.committed(self.keep.group)
            except LogUnavailable:
                continue  # nothing is wrong with the consumer alone
            self._counters.renewed[self.tier] += 1
            logger.error("the consumer is stuck; it is made anew", tier=self.tier.label)
            await self.consumer.renew()

    def _lag(self) -> int:
        return sum(self.consumer.lag().values())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._counters.in_flight[self.tier] or self._counters.moving[self.tier]:  # noqa: ASYNC110 - calls end in callbacks
                    await asyncio.sleep(LOOK_S)
                await self._recorder.flushed(DRAIN_S)
        except TimeoutError:
            logger.warning("calls outlast the rebalance", tier=self.tier.label, after_s=DRAIN_S)

    async def _restore(self, gated: Mapping[Partition, tuple[int, Map | Pointer | None]], epoch: int) -> None:
        pointers = {
            partition: (position, said) for partition, (position, said) in gated.items() if isinstance(said, Pointer)
        }
        found = await fetch(self.keep, pointers) if pointers else {}
        await self._attempts.restore({partition: position for partition, (position, _) in gated.items()})
        for partition, (position, said) in gated.items():
            nonce = b"" if said is None else said.nonce
            known = found.get(partition, said)
            if isinstance(known, MapUnreadable):
                self._unread(partition, known)
            self._own(partition, position, epoch, known if isinstance(known, Map) else None, nonce)
            self._ready += self._waiting.pop(partition)

    def _said(self, partition: Partition, position: int, metadata: str) -> Map | Pointer | None:
        try:
            return wire_map.decode_text(metadata, position)
        except MapUnreadable as error:
            self._unread(partition, error)
            return None

    def _own(self, partition: Partition, position: int, epoch: int, said: Map | None, before: bytes) -> None:
        ledger = Ledger(partition, position, epoch)
        if said is not None:
            try:
                ledger.restore(said.stamp_ms, said.codec, said.payload)
            except ValueError as error:
                self._unread(partition, MapUnreadable("damaged", str(error)))
        self.ledgers[partition] = ledger
        self.progress[partition] = Progress(self.keep, ledger, before)

    def _unread(self, partition: Partition, error: MapUnreadable) -> None:
        self._counters.unread_maps[self.tier, error.reason] += 1
        logger.warning(
            "what is done is not known; reading again from the committed position",
            tier=self.tier.label, topic=partition.topic, partition=partition.number, error=str(error),
        )  # fmt: skip
