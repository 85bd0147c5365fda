"""Calls on channels with ``repeats = "never"`` are written to the log before they are made, so that whoever takes a
partition over knows which of its recipients may have been reached (shell).

In: calls about to be made, and their ends. Out: records on the attempts topic, acknowledged; for a send that is read
again, the calls its recipients were in. Such a call is made again exactly, under its old name, where the platform
remembers names (``Driver.remembers_s``), and no call is where it does not.
Invariant: nobody is in a call whose attempt is not acknowledged; of two attempts with the same recipient the first has
an End that stands before the second; receipts come after the End.
Never: writes for other channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from engine.admit import Channel
from engine.backoff import Backoff
from engine.begun import Begun, Known, Noted, members
from engine.clock import Clock
from engine.drivers import Action, Call, CallResult, Verdict
from engine.errors import LogUnavailable, RecordRefused, Reject
from engine.logs import Chunk, Log, Partition, Reader, Record
from engine.send import Origin, Outcome
from engine.settle import Settlement
from engine.wire_attempt import Attempt, Ended, decode, encode_attempt, encode_end, keys_of
from ext.columns import Batch

logger = structlog.get_logger("surgetank.attempts")
READ_RECORDS = 1_000
TIDY_EVERY_S = 10.0
TOMBSTONES = 1_000  # an append
MS_PER_S = 1_000


CUT_OFF = Ended(Outcome.UNKNOWN, "", "a worker died during the call")
LAPSED = CallResult(Verdict(Action.UNKNOWN, "lapsed", "no answer while a repeat was safe"), left=False)
REFUSED = CallResult(Verdict(Action.DEAD, "attempt", "the log refuses a record of the call"), left=False)


class Attempts:
    """One per process."""

    def __init__(
        self,
        log: Log,
        prefix: str,
        groups: Sequence[str],
        channels: Mapping[str, Channel],
        content: Callable[[], int],
        free: Callable[[int], None],
        clock: Clock,
    ) -> None:
        """``groups``: whose commits say what is over. ``content`` and ``free``: a content's handle that nobody has."""
        self.wanted = frozenset(name for name, channel in channels.items() if not channel.repeats)
        self._topic = f"{prefix}.attempts"
        self._log = log
        self._groups = groups
        self._channels = channels
        self._content = content
        self._free = free
        self._clock = clock
        # Calls of records that are read again, with the row there: by partition, offset, position.
        self._known: dict[Partition, dict[int, dict[int, tuple[Begun, int]]]] = {}
        self._queued: dict[tuple[int, int], tuple[Begun, int]] = {}  # by handle and position, while in the core
        self._standing: dict[str, dict[Partition, int]] = {}  # batches with records on the topic: their last offsets
        self._writing: list[tuple[Record, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- written

    async def begin(self, batch: Batch, call: Call) -> Noted:
        """To be awaited before the call is made; waits while the log does not answer."""
        begun = Begun(
            Attempt(
                batch=call.batch,
                channel=batch.flow.channel,
                account=call.account,
                at=self._clock.wall_ms(),
                content=batch.content.prepared.key,
                ids=list(call.ids),
                data=call.data,
                members=members(batch),
            )
        )
        self._stands(begun.attempt)
        try:
            await asyncio.shield(self._write(*encode_attempt(begun.attempt)))
        except RecordRefused:
            return Noted(begun, range(len(batch)), again=False, refused=True)
        return Noted(begun, range(len(batch)), again=False)

    def forbids(self, noted: Noted) -> CallResult | None:
        """Why the call must not be made (any more), as its result."""
        if noted.refused:
            return REFUSED
        return LAPSED if noted.again and self._lapsed(noted.begun) else None

    def settled(self, batch: Batch, noted: Noted, settlement: Settlement, result: CallResult) -> bool:
        """Write down how the call ended; True: who is to be tried again is to be with exactly this call."""
        begun, rows, handles, positions = noted.begun, noted.rows, batch.handles, batch.positions
        stays = bool(settlement.again) and noted.unsure(result)
        ended = [
            (Ended(ending.outcome, ending.code, ending.reason), [rows[at] for at in ending.who])
            for ending in settlement.endings
        ]
        free = [] if stays else [at for again in settlement.again for at in again.who]
        if ended or free:
            self.end(begun, ended, [rows[at] for at in free], result.platform_id)
        for at in [*free, *(at for ending in settlement.endings for at in ending.who)]:
            self.drop(handles[at], [positions[at]])
        return stays

    def end(self, begun: Begun, endings: Iterable[tuple[Ended, Sequence[int]]], free: Sequence[int], id: str) -> None:
        """Rows of the call have ended so, others were surely not delivered; receipts may be queued now, not before.
        ``id``: the platform's."""
        begun.platform_id = id or begun.platform_id
        for ended, rows in endings:
            begun.ended.update(dict.fromkeys(rows, ended))
        begun.free.update(free)
        self._write(*encode_end(begun.end()))

    async def flushed(self) -> None:
        """Wait until all that was written so far is acknowledged."""
        await self._idle.wait()

    async def run(self) -> None:
        """Append until cancelled, one append at a time, so that the order holds."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            writing, self._writing = self._writing, []
            await self._append(writing)
            if not self._wake.is_set():
                self._idle.set()

    def _write(self, key: bytes, value: bytes) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing.append((Record(self._topic, value, key), written))
        self._idle.clear()
        self._wake.set()
        return written

    async def _append(self, writing: Sequence[tuple[Record, asyncio.Future[None]]]) -> None:
        backoff = Backoff(0.1, 5.0)
        while True:
            try:
                await self._log.append([record for record, _ in writing])
            except RecordRefused as error:
                await self._refused(writing, error)
                return
            except LogUnavailable as error:
                logger.warning("attempts wait for the log", error=str(error), again_in_s=backoff.next_s)
                await backoff.wait()
            else:
                break
        for _, written in writing:
            if not written.done():
                written.set_result(None)

    async def _refused(self, writing: Sequence[tuple[Record, asyncio.Future[None]]], error: RecordRefused) -> None:
        """One too large for the topic must not stop the others' calls."""
        if len(writing) > 1:
            for one in writing:
                await self._append([one])
            return
        logger.critical("the log refuses an attempt record", topic=self._topic, why=str(error))
        written = writing[0][1]
        if not written.done():
            written.set_exception(error)
            written.exception()  # who writes an End does not look

    async def tidy(self) -> None:
        """Take away, until cancelled, what is about records that are committed."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            try:
                await self._tidy()
            except LogUnavailable as error:
                logger.warning("old attempts stay for now", error=str(error))

    async def _tidy(self) -> None:
        if not self._standing:
            return
        committed: dict[Partition, int] = {}
        for group in self._groups:
            committed |= {where: position.offset for where, position in (await self._log.committed(group)).items()}
        over = [
            name
            for name, lasts in self._standing.items()
            if all(last < committed.get(where, 0) for where, last in lasts.items())
        ]
        for first in range(0, len(over), TOMBSTONES):
            names = over[first : first + TOMBSTONES]
            await self._log.append([Record(self._topic, None, key) for name in names for key in keys_of(name)])
            for name in names:
                del self._standing[name]

    def _stands(self, attempt: Attempt) -> None:
        lasts: dict[Partition, int] = {}
        for topic, number, offset, _ in attempt.members:
            where = Partition(topic, number)
            lasts[where] = max(offset, lasts.get(where, -1))
        self._standing[attempt.batch] = lasts

    # --- read again

    async def restore(self, positions: Mapping[Partition, int]) -> None:
        """Read what stands on the topic about records from these positions on: to be awaited between the taking over of
        the partitions and their first records. Cost: what calls of the last minutes take to read."""
        if not self.wanted:
            return
        backoff = Backoff(0.2, 5.0)
        while True:
            try:
                found = await self._read()
                break
            except LogUnavailable as error:
                logger.warning("attempts wait for the log", error=str(error), again_in_s=backoff.next_s)
                await backoff.wait()
        self._known |= {where: {} for where in positions}
        for begun in found.values():
            self._stands(begun.attempt)
            if begun.attempt.channel in self.wanted:
                self._note_rows(begun, positions)

    async def _read(self) -> dict[str, Begun]:
        found: dict[str, Begun] = {}
        reader: Reader = await self._log.reader([self._topic])
        try:
            while not await reader.at_end():
                for chunk in await reader.poll(READ_RECORDS, 0.2):
                    self._take(chunk, found)
        finally:
            await reader.close()
        return found

    def _take(self, chunk: Chunk, found: dict[str, Begun]) -> None:
        for offset, key, value in zip(chunk.offsets, chunk.keys, chunk.values, strict=True):
            if key is None or value is None:
                continue
            try:
                read = decode(key, value)
            except Reject as reject:
                logger.error("an attempt cannot be read", offset=offset, key=key, reason=str(reject))
                continue
            if isinstance(read, Attempt):  # the newest last: dicts keep their order, and newer ones take rows over
                found.pop(read.batch, None)
                found[read.batch] = Begun(read)
            elif (begun := found.get(read.batch)) is not None:
                begun.learn(read)

    def _note_rows(self, begun: Begun, from_: Mapping[Partition, int]) -> None:
        row = 0
        for topic, number, offset, positions in begun.attempt.members:
            where = Partition(topic, number)
            if where in from_ and offset >= from_[where]:
                rows = self._known[where].setdefault(offset, {})
                rows.update({position: (begun, row + at) for at, position in enumerate(positions)})
            row += len(positions)

    def any_of(self, where: Partition, offsets: Sequence[int]) -> bool:
        """Whether any of these records was in such a call."""
        known = self._known.get(where, {})
        return bool(known) and any(offset in known for offset in offsets)

    def of(self, place: Origin) -> bool:
        """Whether some of the record's recipients may have been reached by such a call, or surely were."""
        known = self._known.get(Partition(place.topic, place.partition), {})
        return bool(known) and any(row not in begun.free for begun, row in known.get(place.offset, {}).values())

    def take(self, place: Origin, positions: Iterable[int], content: bytes) -> Known:
        """What became of these recipients of a record; ``content``: its prepared content's key. Once a record."""
        rows = self._known.get(Partition(place.topic, place.partition), {}).pop(place.offset, {})
        found = Known({}, {}, [])
        for position in positions:
            begun, row = rows.get(position, (None, 0))
            if begun is None or row in begun.free:
                found.others.append(position)
            elif row in begun.ended:
                found.ended.setdefault(begun.ended[row], []).append(position)
            elif self.repeatable(begun, content):
                found.again.setdefault(begun, {})[position] = row
            else:
                found.ended.setdefault(CUT_OFF, []).append(position)
        return found

    def repeatable(self, begun: Begun, content: bytes) -> bool:
        """Whether exactly this call can be made again and the platform will know it."""
        attempt = begun.attempt
        return attempt.data is not None and attempt.content == content and not self._lapsed(begun)

    def _lapsed(self, begun: Begun) -> bool:
        """Whether the platform may have forgotten the call's name."""
        remembers_s = self._channels[begun.attempt.channel].driver.remembers_s
        return self._clock.wall_ms() - begun.attempt.at >= remembers_s * MS_PER_S

    # --- made again

    def queue(self, noted: Noted, handle: int, batch_rows: Sequence[int], positions: Sequence[int]) -> int:
        """These rows of a batch, at these positions of one send, go back into the core; see ``queue_rows``."""
        rows = [noted.rows[row] for row in batch_rows]
        return self.queue_rows(noted.begun, handle, dict(zip(positions, rows, strict=True)))

    def queue_rows(self, begun: Begun, handle: int, rows: Mapping[int, int]) -> int:
        """These recipients (position: row) are about to go into the core, to be called again in this call alone; the
        content's handle they go under."""
        if begun.content is None:
            begun.content = self._content()
        for position, row in rows.items():
            if (handle, position) not in self._queued:
                begun.queued += 1
                self._queued[handle, position] = begun, row
        return begun.content

    def queued(self, batch: Batch) -> Noted | None:
        """The call that a batch repeats; None: it is a new one."""
        if not self._queued or not len(batch):
            return None
        first = self._queued.get((batch.handles[0], batch.positions[0]))
        if first is None:
            return None
        pairs = zip(batch.handles, batch.positions, strict=True)
        return Noted(first[0], [self._queued[pair][1] for pair in pairs], again=True)

    def told_apart(self, handles: Sequence[int], positions: Sequence[int]) -> Sequence[object]:
        """The handles, but two recipients of which one is in such a call and one is not differ."""
        if not self._queued:
            return handles
        return [(pair[0], pair in self._queued) for pair in zip(handles, positions, strict=True)]

    def drop(self, handle: int, positions: Sequence[int]) -> bool:
        """These recipients have ended, or belong to another worker; True: some were in such a call."""
        if not self._queued:
            return False
        found = False
        for position in positions:
            got = self._queued.pop((handle, position), None)
            if got is None:
                continue
            found, begun = True, got[0]
            begun.queued -= 1
            if not begun.queued and begun.content is not None:
                self._free(begun.content)
                begun.content = None
        return found
