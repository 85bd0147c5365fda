"""Writes what happened to the log: receipts, and records that ended dead; then lets the commit stage know (shell).

In: endings (who, how) and the records they complete. Out: receipts and dead-letter records, acknowledged; after that,
and only then, completions, and settlements of records of which something is left.
Invariant: a recipient counts as done only after its receipt was acknowledged.
Never: blocks delivery. While the log does not answer, what is to be written waits here; ``full`` tells the pump when
to stop making calls, and intake when to stop reading.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import structlog

from engine import wire
from engine.backoff import Backoff
from engine.clock import Clock
from engine.commit import Ledger
from engine.counters import Counters
from engine.errors import LogUnavailable, RecordRefused
from engine.logs import Headers, Log, Record
from engine.open_sends import Flow, OpenSend
from engine.send import Outcome, Tier
from ext.receipts import Told

logger = structlog.get_logger("surgetank.record")
MAX_BACKLOG = 200_000  # sends that ended and whose receipts are not acknowledged
MAX_BACKLOG_BYTES = 256 << 20  # of those receipts and dead letters
HEADS = 1024  # of receipts, remembered
GATHER_S = 0.05  # what ends within it goes with one append: nobody waits for a receipt, and an append has its price


class Facts(NamedTuple):
    """What a receipt tells of a send that never became a flow; None: not known."""

    tier: Tier
    channel: str | None
    account: str | None
    tenant: str | None
    campaign: str | None


class Recorder:
    """One per process. ``write`` and ``dead`` only queue; ``run`` appends."""

    def __init__(
        self,
        log: Log,
        prefix: str,
        clock: Clock,
        counters: Counters,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``before``: awaited before each append."""
        self._log = log
        self._before = before
        self._counters = counters
        self._clock = clock
        self._receipts = f"{prefix}.receipts"
        self._dead = f"{prefix}.dead"
        self._records: list[Record] = []
        self._completions: list[tuple[Ledger, array[int]]] = []
        self._settled: list[tuple[Ledger, int, array[int]]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.refused = 0  # records the log will never take: see docs/operations.md
        self.backlog = 0  # completions not yet acknowledged
        self.backlog_bytes = 0  # of records not yet acknowledged

    def full(self, share: float = 1.0) -> bool:
        """Whether as much waits to be acknowledged as may, or ``share`` of it."""
        return self.backlog >= MAX_BACKLOG * share or self.backlog_bytes >= MAX_BACKLOG_BYTES * share

    def told(self, told: Told) -> None:
        """What compiled code has told of a call's recipients: receipts, and what is done with them."""
        self._tell(told.records)
        self._settled += told.settled
        for ledger, offsets in told.completions:
            self.complete(ledger, offsets)

    def receipt(
        self,
        flow: Flow | Facts,
        outcome: Outcome,
        code: str,
        reason: str,
        batch: str,
        platform_id: str,
        parts: Iterable[bytes],
    ) -> None:
        """One ending of one campaign; ``parts``: its `sends` as msgpack, a record for each."""
        facts = _facts(flow, outcome, code, reason, batch, platform_id, self._clock.wall_ms())
        self._tell(wire.encode_receipts(facts, parts))

    def dead(
        self,
        send: OpenSend,
        reason: str,
        detail: str,
        attempts: int,
        positions: Sequence[int] | None,
        declined: int = 0,
    ) -> None:
        """Keep what has no way on of a send (``positions`` None: all of it), as it came."""
        hop = wire.hop_of(send.headers)
        dead = wire.dead_headers(reason, detail, send.origin, hop, attempts, send.first_seen_ms, positions, declined)
        self.dead_record(send.record_key, send.value, send.headers, dead)

    def dead_record(self, key: bytes | None, value: bytes | None, headers: Headers, dead: Headers) -> None:
        """Keep a record; ``dead`` takes the place of older headers of ours."""
        self.move(self._dead, key, value, headers, dead)

    def move(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, ours: Headers) -> None:
        """Put a record on another topic; ``ours`` takes the place of older headers of ours."""
        record = Record(topic, value, key, headers=wire.with_headers(headers, ours))
        self._records.append(record)
        self.backlog_bytes += _size(record)
        self._awake()

    def complete(self, ledger: Ledger, offsets: array[int]) -> None:
        """These offsets are to be completed once everything queued before is acknowledged."""
        self._completions.append((ledger, offsets))
        self.backlog += len(offsets)
        self._awake()

    def settle(self, ledger: Ledger, offset: int, positions: array[int]) -> None:
        """Some recipients (uint16) of a record, which is not complete yet: noted as done once everything queued before
        is acknowledged."""
        self._settled.append((ledger, offset, positions))
        self._awake()

    async def run(self) -> None:
        """Append until cancelled; what is queued while one append is under way goes with the next."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            records, self._records = self._records, []
            size = self.backlog_bytes
            completions, self._completions = self._completions, []
            settled, self._settled = self._settled, []
            ended = list(self._counters.ended)
            if records:
                if self._before is not None:
                    await self._before()
                await self._append(records)
            for ledger, offset, positions in settled:
                ledger.settle(offset, max(positions) + 1, positions)
            for ledger, offsets in completions:
                ledger.complete_many(offsets)
                self.backlog -= len(offsets)
            self.backlog_bytes -= size
            self._counters.told = ended
            if not self._wake.is_set():
                self._idle.set()

    async def flushed(self, timeout_s: float) -> bool:
        """Wait until everything queued so far has been acknowledged; False when that takes longer."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _tell(self, receipts: Iterable[bytes]) -> None:
        for value in receipts:
            self._records.append(Record(self._receipts, value))
            self.backlog_bytes += len(value)
        self._awake()

    def _awake(self) -> None:
        if not self._wake.is_set():
            self._wake.set()
            self._idle.clear()

    async def _append(self, records: list[Record]) -> None:
        backoff = Backoff(0.1, 5.0)
        while True:
            try:
                return await self._log.append(records)
            except RecordRefused as error:
                return await self._without_refused(records, error)
            except LogUnavailable as error:
                # Some may have been written: told twice is allowed, told never is not.
                waits = {"records": len(records), "error": str(error), "again_in_s": backoff.next_s}
                logger.warning("receipts wait for the log", **waits)
                await backoff.wait()

    async def _without_refused(self, records: list[Record], error: RecordRefused) -> None:
        """One record that the log will never take (too large for its topic, say) must not hold up all others."""
        if len(records) > 1:
            for record in records:
                await self._append([record])
            return
        self.refused += 1
        record = records[0]
        logger.critical("the log refuses a record; it is not kept", topic=record.topic, why=str(error))


@lru_cache(HEADS)
def receipt_head(flow: Flow, outcome: Outcome, code: str, reason: str) -> bytes:
    """What receipts of calls that end so begin with. Remembered: most calls of a flow end alike."""
    return wire.receipt_head(_facts(flow, outcome, code, reason))


def _facts(
    flow: Flow | Facts, outcome: Outcome, code: str, reason: str, batch: str = "", platform_id: str = "", at_ms: int = 0
) -> wire.ReceiptFacts:
    return wire.ReceiptFacts(
        tier=flow.tier.label,
        channel=flow.channel,
        account=flow.account,
        tenant=flow.tenant,
        campaign=flow.campaign,
        outcome=outcome,
        code=wire.tellable(code),
        reason=wire.tellable(reason),
        batch=batch,
        platform_id=wire.tellable(platform_id),
        at=at_ms,
    )


def _size(record: Record) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + headers
