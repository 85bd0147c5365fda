"""What waits on the later topics, read beside the engine (shell).

In: a log, its configuration, and which sends are asked for. Out: how many of them wait there, for what and until when,
and how far that was looked for.
Invariant: a record counts that its group has not done with, by its position and the map of what is done above it, and
whose time has not come; one that is due is a worker's, who tells of it.
Never: joins a group, commits, or reads more records than it is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

from engine import wire, wire_map
from engine.config import Config, later_topics
from engine.decode import decode
from engine.errors import MapUnreadable, Reject
from engine.logs import Chunk, Headers, Log, Partition, Position
from engine.progress import Keep, fetch
from engine.send import Send, Tier
from engine.topics import MAX_MAP_BYTES
from engine.wire_map import Map, Pointer
from ext.ledger import Ledger

POLL_RECORDS, POLL_S = 5_000, 0.2


class Waits(msgspec.Struct, kw_only=True):
    """Of one campaign, tenant and account, for one reason. ms since the epoch: ``next``, when the first of it is looked
    at again; ``until``, before when none of it may leave; None: what keeps it may end sooner."""

    tier: str
    channel: str
    account: str
    tenant: str
    campaign: str | None
    reason: str
    sends: int = 0
    recipients: int = 0
    next: int
    until: int | None


class Looking:
    """One look. ``wants``: a send and its tenant."""

    def __init__(self, log: Log, config: Config, wants: Callable[[Send, str], bool], now_ms: int, most: int) -> None:
        self.found: dict[tuple[object, ...], Waits] = {}
        self.read = 0  # records
        self.all = True  # nothing was left to be looked at
        self._log = log
        self._config = config
        self._wants = wants
        self._now_ms = now_ms
        self._most = most

    async def run(self) -> None:
        """Tier by tier, the urgent one first. Raises LogUnavailable."""
        for tier in Tier:
            async for chunk, ledger in self._chunks(tier):
                self._take(tier, chunk, ledger)

    async def _chunks(self, tier: Tier) -> AsyncIterator[tuple[Chunk, Ledger]]:
        """What its group has not passed."""
        topics = list(later_topics(self._config, tier))
        ledgers = await self._ledgers(f"{self._config.log.prefix}.later.{tier.label}")
        reader = await self._log.reader(topics, at={one: ledger.position for one, ledger in ledgers.items()})
        try:
            while not await reader.at_end():
                if self.read >= self._most:
                    self.all = False
                    return
                for chunk in await reader.poll(min(POLL_RECORDS, self._most - self.read), POLL_S):
                    self.read += len(chunk.offsets)
                    place = Partition(chunk.topic, chunk.partition)
                    yield chunk, ledgers.setdefault(place, Ledger(place, chunk.offsets[0], 0))
        finally:
            await reader.close()

    async def _ledgers(self, group: str) -> dict[Partition, Ledger]:
        log = self._config.log
        keep = Keep(self._log, log.prefix, group, log.metadata_limit, MAX_MAP_BYTES)
        committed = await self._log.committed(group)
        said = {place: _said(position) for place, position in committed.items()}
        pointers = {at: (committed[at].offset, one) for at, one in said.items() if isinstance(one, Pointer)}
        maps: Mapping[Partition, Map | MapUnreadable] = await fetch(keep, pointers) if pointers else {}
        ledgers = {}
        for place, position in committed.items():
            ledger = ledgers[place] = Ledger(place, position.offset, 0)
            known = maps.get(place, said[place])
            if isinstance(known, Map):
                ledger.restore(known.stamp_ms, known.codec, known.payload)
        return ledgers

    def _take(self, tier: Tier, chunk: Chunk, ledger: Ledger) -> None:
        ledger.open_many(chunk.offsets, chunk.timestamps_ms)
        for offset, value, headers in zip(chunk.offsets, chunk.values, chunk.headers, strict=True):
            if wire.back_ms(headers) > self._now_ms and not ledger.is_done(offset):
                self._one(tier, value, headers)

    def _one(self, tier: Tier, value: bytes | None, headers: Headers) -> None:
        try:
            send, told = decode(value), wire.history(headers)
        except Reject:
            return  # intake will say what is wrong with it
        account = self._account(send)
        tenant = send.tenant or account
        if told is None or not self._wants(send, tenant):
            return
        key = (tier, send.channel, account, tenant, send.campaign, told.reason)
        waits = self.found.get(key)
        if waits is None:
            waits = self.found[key] = Waits(
                tier=tier.label, channel=send.channel, account=account, tenant=tenant, campaign=send.campaign,
                reason=told.reason, next=told.back_ms, until=told.until_ms or None,
            )  # fmt: skip
        waits.sends += 1
        waits.recipients += len(send.to) if told.positions is None else len(told.positions)
        waits.next = min(waits.next, told.back_ms)
        if waits.until is not None and told.until_ms:
            waits.until = min(waits.until, told.until_ms)

    def _account(self, send: Send) -> str:
        channel = self._config.channels.get(send.channel)
        return send.account or next(iter(channel.accounts if channel is not None else ()), "default")


def _said(position: Position) -> Map | Pointer | None:
    try:
        return wire_map.decode_text(position.metadata, position.offset)
    except MapUnreadable:
        return None
