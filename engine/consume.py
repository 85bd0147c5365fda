"""Stages consume, decode and admit, seen from outside (shell): takes the sends of one tier in.

In: chunks of records. Out: columns into the core; endings of what can never go; a ledger entry for every record.
Invariant: a record read is in its partition's ledger before anything else happens to it, and completes exactly once.
Never: drops. At the tier's budget it stops polling; what waits then waits on the log.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from engine import wire
from engine.admit import Admitted, Channel, Hold, address, admit, prepare, times
from engine.arrival import Arrival, moved, resumed
from engine.assignment import Assignment
from engine.attempts import Attempts
from engine.backoff import Backoff
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.commit import Ledger
from engine.config import TierConfig
from engine.counters import Counters
from engine.decode import decode_many
from engine.dispatch import Dispatcher
from engine.drivers import Template
from engine.errors import LogUnavailable, Reject
from engine.gates import Gates
from engine.held import Held, HeldSends
from engine.later import NOT_BEFORE, PAID, Later, Wait
from engine.later_due import LaterDue
from engine.logs import Chunk, Partition
from engine.open_sends import Content, Flow, OpenSend, OpenSends, names
from engine.overload import level_of
from engine.record import Facts, Recorder
from engine.send import Origin, Outcome, Send, Tier
from engine.state.in_hand import SLICE, Hands
from engine.state.seen import Seen
from engine.turns import Turns
from engine.wire import REPLAY
from ext.columns import Columns
from ext.intake import Taker

logger = structlog.get_logger("surgetank.consume")
POLL_RECORDS = 2_000  # at 500 a send of one recipient costs a tenth more
POLL_TIMEOUT_S = 0.2
HOLD_NS = 30 * NS_PER_S  # how long a send waits for its content to be registered
BUDGET_WAIT_S = 0.01
PAUSE_AFTER_S = 1.0
NOT_KNOWN = (None, None, None, None)
COLUMNS = ("offsets", "timestamps_ms", "keys", "values", "headers")


class Intake:
    """One tier's."""

    def __init__(
        self,
        tier: Tier,
        policy: TierConfig,
        assignment: Assignment,
        channels: Mapping[str, Channel],
        templates: Mapping[str, Template],
        opens: OpenSends,
        seen: Seen,
        dispatcher: Dispatcher,
        recorder: Recorder,
        gates: Gates,
        attempts: Attempts,
        later: Later,
        turns: Turns,
        counters: Counters,
        clock: Clock,
    ) -> None:
        self.tier = tier
        self.assignment = assignment
        self.ledgers = assignment.ledgers
        self.last_poll_ms = 0
        self.policy = policy
        self._channels = channels
        self._templates = templates
        self._opens = opens
        self._seen = seen
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._gates = gates
        self._attempts = attempts
        self._later = later
        self._turns = turns
        self._counters = counters
        self._clock = clock
        self._columns = Columns()
        self._taker = Taker(
            opens,
            seen.table,
            self._columns,
            dispatcher.cancelled,
            meters=gates.meters if tier is Tier.SYSTEM else None,
            gates=gates.by_channel,
            due_after_ms=policy.due_after // NS_PER_MS,
            max_age_ms=policy.max_age // NS_PER_MS,
            linger_ns=policy.linger,
            horizon_ns=later.horizon_ns,
        )
        self._held = HeldSends(tier, counters)
        self._stopping = False
        self._most: dict[str, int] = {}  # records of the next slice, by topic: later topics' cost more
        self._now_ns = 0  # both read once a slice
        self._offset_ns = 0
        self.in_hand: Hands
        self.due: LaterDue | None = None  # its consumer, of one that takes in from later topics

    # --- the loop

    async def run(self) -> None:
        """Poll and take in until ``stop``."""
        backoff = Backoff(0.2, 10.0)
        while not self._stopping:
            try:
                await self._room()
                room = self.policy.budget.sends - self._opens.count[self.tier] - self._held.sends
                await self._poll(max(1, min(POLL_RECORDS, room)))
                backoff.reset()
            except LogUnavailable as error:
                logger.warning(
                    "the log does not answer", tier=self.tier.label, error=str(error), again_in_s=backoff.next_s
                )
                await backoff.wait()
                continue
            self._expire_held()

    def stop(self) -> None:
        """Poll no more; records at hand are still taken in."""
        self._stopping = self.assignment.stopping = True

    async def _poll(self, most: int) -> None:
        chunks = await self.assignment.consumer.poll(most, POLL_TIMEOUT_S)
        self.last_poll_ms = self._clock.wall_ms()
        for chunk in self.assignment.gate(chunks):
            await self.take(chunk)

    async def take(self, chunk: Chunk) -> None:
        """Take a chunk in, in slices. Records of a partition that is no longer ours are left to its owner."""
        ledger = self.ledgers.get(Partition(chunk.topic, chunk.partition))
        if ledger is None or ledger.epoch != chunk.epoch:
            return
        self._most.setdefault(chunk.topic, 1)
        for start, end in self.in_hand.slices(chunk, lambda: self._most[chunk.topic]):
            if ledger.leaving:
                return
            started = self._clock.now_ns()
            self._slice(chunk, start, end, ledger)
            each_ns = (self._clock.now_ns() - started) // (end - start) + 1
            fit = self._turns.piece_ns(self.tier) // each_ns
            self._most[chunk.topic] = max(1, min(SLICE, 2 * self._most[chunk.topic], fit))
            await self._turns.mine(self.tier)

    async def _room(self) -> None:
        """Wait while the tier is over its budget, or too much is not told yet. After a second the partitions are paused
        and polled for the group's sake only: a member that does not poll is expelled."""
        self.assignment.reading = not self._full(1.0)
        if self.assignment.reading:
            return
        started = self._clock.now_ns()
        paused = False
        try:
            while self._full(0.75) and not self._stopping:
                await asyncio.sleep(BUDGET_WAIT_S)
                self._expire_held()
                if self._clock.now_ns() - started > PAUSE_AFTER_S * NS_PER_S:
                    if not paused:
                        paused = True
                        self.assignment.consumer.pause()
                    await self._poll(1)
        finally:
            if paused:
                self.assignment.consumer.resume()
            self._counters.backpressure_ns["consume"] += self._clock.now_ns() - started

    def _full(self, share: float) -> bool:
        budget, tier = self.policy.budget, self.tier
        sends, size = self._opens.count[tier] + self._held.sends, self._opens.sizes[tier] + self._held.bytes
        untold = self._recorder.full(share)  # what ends at intake has no other bound
        return sends >= budget.sends * share or size >= budget.bytes * share or untold or self.assignment.full

    def _slice(self, chunk: Chunk, start: int, end: int, ledger: Ledger) -> None:
        part = chunk.part(slice(start, end))
        self.in_hand.hold(self.tier, part)
        self._counters.consumed_sends[self.tier] += len(part.offsets)
        if ledger.open_many(part.offsets, part.timestamps_ms):
            part = self._undone(part, ledger)
        if ledger.refuted:
            self.assignment.refuted(ledger)
        self._now_ns, self._offset_ns = self._clock.now_ns(), self._clock.offset_ns()
        now_ms = self._clock.wall_ms()
        self._gates.look(self._now_ns)
        if part.offsets and self.in_hand.is_killer(part):
            self._end_killer(self._arrival(part, ledger, now_ms, 0))
        else:
            # What comes from a later topic is never common; where a call had begun, Python asks what became of it.
            common = self.due is None and not self._attempts.any_of(ledger.partition, part.offsets)
            at = self._take_common(part, ledger, now_ms, 0) if common else 0
            while at < len(part.offsets):
                self._take_one(part, ledger, now_ms, at)
                at = self._take_common(part, ledger, now_ms, at + 1) if common else at + 1
            self._dispatcher.push(self._columns, urgent=self.tier is Tier.SYSTEM)
        self.in_hand.release(self.tier)  # not where this failed: what it failed on must be found

    def _undone(self, chunk: Chunk, ledger: Ledger) -> Chunk:
        """Without the records that were done before a restart."""
        keep = [at for at, offset in enumerate(chunk.offsets) if not ledger.is_done(offset)]
        self._counters.already_done[self.tier] += len(chunk.offsets) - len(keep)
        columns: dict[str, Any] = {name: [getattr(chunk, name)[at] for at in keep] for name in COLUMNS}
        return chunk._replace(**columns)

    def _take_common(self, chunk: Chunk, ledger: Ledger, now_ms: int, start: int) -> int:
        """Take records of the common kind in; where the first other one stands."""
        taker, counters, tier = self._taker, self._counters, self.tier
        place = self._seen.place(chunk.topic, chunk.partition)
        at = taker.take(
            chunk.values, chunk.keys, chunk.headers, chunk.offsets, chunk.timestamps_ms, tier, ledger, chunk.topic,
            chunk.partition, place, self._now_ns, now_ms, self._offset_ns, start,
        )  # fmt: skip
        counters.consumed_bytes[tier] += taker.size
        counters.taken_in[tier] += taker.recipients
        counters.unknown_keys += taker.unknown_keys
        return at

    def _take_one(self, chunk: Chunk, ledger: Ledger, now_ms: int, at: int) -> None:
        arrival = self._arrival(chunk, ledger, now_ms, at)
        decoded = decode_many([arrival.value])
        self._counters.unknown_keys += decoded.unknown_keys
        self._record(decoded.sends[0], arrival)

    def _arrival(self, chunk: Chunk, ledger: Ledger, now_ms: int, at: int) -> Arrival:
        value, offset = chunk.values[at], chunk.offsets[at]
        self._counters.consumed_bytes[self.tier] += len(value) if value else 0
        origin = Origin(chunk.topic, chunk.partition, offset)
        # Timestamps are the producer's: one in the future must not make the send younger than it can be.
        stamp = min(chunk.timestamps_ms[at], now_ms)
        return Arrival(ledger, offset, origin, stamp, chunk.keys[at], value, chunk.headers[at])

    def _end_killer(self, arrival: Arrival) -> None:
        """Workers have died of it, whatever it is: nobody looks at it again."""
        logger.error("a record killed its worker three times", origin=arrival.origin)
        self._record(
            Reject("crashed_worker", "a worker died of it three times, the last time it had no other"), arrival
        )

    # --- one record

    def _record(self, send: Send | Reject, arrival: Arrival) -> None:
        if arrival.headers:
            try:
                arrival = moved(arrival, send)
            except Reject as reject:
                send = reject
        if isinstance(send, Reject):
            self._counters.taken_in[self.tier] += 1
            self._undeliverable(None, arrival, send)
            return
        arrival = resumed(arrival, send)
        if arrival.still is not None and not arrival.still:  # killed between its last receipt and its completion
            self._counters.already_done[self.tier] += 1
            self._recorder.complete(arrival.ledger, array("q", [arrival.offset]))
            return
        self._counters.taken_in[self.tier] += arrival.count(send)
        self._admit(send, arrival)

    def _admit(self, send: Send, arrival: Arrival) -> None:
        try:
            channel, account = address(send, self._channels)
            tenant = send.tenant or account
            key = self._seen.key_of(tenant, channel.name, send.id)
            move = arrival.move_key(key)
            if move is not None and not self._goes_on(arrival, key, move):
                self._moved_on(send, arrival)
                return
            begun = self._attempts.of(arrival.place)  # whoever may have been reached is not turned away now
            if not begun and self._dispatcher.is_cancelled(send.campaign, tenant, arrival.first_seen_ms):
                self._cancelled(send, arrival, Facts(self.tier, channel.name, account, tenant, send.campaign), key)
                return
            raw = bytes(send.content)
            content = self._opens.content_by_raw(channel.name, raw)
            prepared = prepare(send, channel, self._templates) if content is None else content.prepared
        except Reject as reject:
            self._undeliverable(send, arrival, reject)
            return
        if isinstance(prepared, Hold):
            until = self._clock.now_ns() + HOLD_NS
            self._held.hold(prepared.content, Held(send, arrival, account, tenant, until))
            return
        # Only a move of the whole send says by its hop that a record of fewer hops has nothing left to do.
        whole = arrival.still is None
        first = self._seen.claim(key, arrival.origin, arrival.hop if whole else 0)
        if first is not None and move is not None and (whole or first != arrival.origin):
            self._seen.free(move, arrival.place)
        if first == arrival.origin and whole:
            self._moved_on(send, arrival)
            return
        if first is not None and first != arrival.origin and not begun:  # it was the first when it began
            facts = Facts(self.tier, channel.name, account, tenant, send.campaign)
            self._end_whole(facts, send, arrival, Outcome.DUPLICATE, "first seen at {}:{}:{}".format(*first))
            return
        if not begun and self._past_allowance(send, arrival, tenant):
            self._demote(send, arrival, channel, tenant)
            return
        if not begun and self._refused(send, arrival, channel, tenant):
            self._seen.free(key, arrival.origin)
            self._undeliverable(send, arrival, Reject("overloaded", channel.name))
            return
        if content is None:
            content = self._opens.content(channel.name, raw, prepared)
        flow = self._opens.flow(self.tier, channel.name, account, channel.accounts[account], tenant, send.campaign)
        self._schedule(send, arrival, channel, flow, content, key, move)

    def _goes_on(self, arrival: Arrival, key: bytes, move: bytes) -> bool:
        """Of the records of one move the first, unless it was a replay that has reached nobody."""
        place, hop, by_us = arrival.place, arrival.hop, arrival.reason != REPLAY
        if by_us and not self._seen.claim_move(arrival.hop_key(key), place, hop, True):
            return False
        return self._seen.claim_move(move, place, hop, by_us)

    def _schedule(
        self, send: Send, arrival: Arrival, channel: Channel, flow: Flow, content: Content, key: bytes,
        move: bytes | None,
    ) -> None:  # fmt: skip
        assert arrival.value is not None  # noqa: S101 - for the type checker
        when = times(send, arrival.first_seen_ms, self.policy)
        still = arrival.still
        admitted = admit(send, channel.driver, content.prepared, still)
        offset_ns, count = self._offset_ns, arrival.count(send)
        opened = OpenSend(  # by position: by name costs half as much again
            send.id,
            arrival.origin,
            flow,
            content,
            arrival.ledger,
            arrival.offset,
            key,
            count,
            count,
            arrival.first_seen_ms,
            self._now_ns,
            when.due * NS_PER_MS + offset_ns,
            when.deadline * NS_PER_MS + offset_ns,
            self.policy.linger,
            bytes(wire.meta_msgpack(send.meta)),
            arrival.key,
            arrival.value,
            arrival.headers,
            admitted.data,
            still is not None,
            move,
            arrival.declined,
        )
        handle = self._opens.add(opened)
        self._taker.learn(arrival.value, flow)
        if self._attempts.of(arrival.place):
            admitted = self._take_up(handle, opened, admitted, arrival.place)
        if admitted.ids:
            not_before_ms = max(when.not_before, arrival.until_ms)
            not_before_ns = not_before_ms * NS_PER_MS + offset_ns if not_before_ms else 0
            wait = self._wait(flow, arrival, not_before_ns, len(admitted.ids))
            if wait is None:
                self._columns.add(handle, opened, arrival.attempts, not_before_ns, admitted.positions, admitted.ids)
            else:
                self._later.move(handle, opened, admitted.positions, arrival.attempts, wait)
        if admitted.duplicates:
            self._dispatcher.end_some(handle, opened, Outcome.DUPLICATE, "twice in one `to`", admitted.duplicates)
        for reason, (detail, positions) in admitted.refusals().items():
            self._recorder.dead(opened, reason, detail, 0, positions)
            self._dispatcher.end_some(handle, opened, Outcome.DEAD, reason, positions)

    def _take_up(self, handle: int, send: OpenSend, admitted: Admitted, place: Origin) -> Admitted:
        """See to those who were in a call when a worker died, on a channel that forbids repeats; the others."""
        known = self._attempts.take(place, admitted.positions, send.content.prepared.key)
        channel, recovered = send.flow.channel, self._counters.recovered
        ids = dict(zip(admitted.positions, admitted.ids, strict=True))
        for begun, rows in known.again.items():
            apart = self._attempts.queue_rows(begun, handle, rows)
            self._columns.add(handle, send, 0, 0, [*rows], [ids[position] for position in rows], apart)
            recovered[channel, "again"] += len(rows)
        for (outcome, code, reason), positions in known.ended.items():
            if outcome is Outcome.DEAD:
                self._recorder.dead(send, code or reason, reason, 1, positions)
            self._dispatcher.end_some(handle, send, outcome, reason, positions, code)
            recovered[channel, "unknown" if outcome is Outcome.UNKNOWN else "told"] += len(positions)
        others = known.others
        if others and self._dispatcher.is_cancelled(send.flow.campaign, send.flow.tenant, send.first_seen_ms):
            self._dispatcher.end_some(handle, send, Outcome.CANCELLED, "", others)
            others = []
        return msgspec.structs.replace(admitted, ids=[ids[position] for position in others], positions=others)

    def _wait(self, flow: Flow, arrival: Arrival, not_before_ns: int, count: int) -> Wait | None:
        """Where they wait: None, in memory."""
        reason = arrival.reason if arrival.until_ms else NOT_BEFORE
        wait = self._later.wait(flow.channel, not_before_ns - self._now_ns, reason)
        if wait is None and arrival.attempts and arrival.reason not in PAID:
            return self._later.retry_wait(flow, arrival.hop, 0, count)
        return wait

    # --- what does not come in as what it is

    def _cancelled(self, send: Send, arrival: Arrival, facts: Facts, key: bytes) -> None:
        whole = arrival.still is None
        first = self._seen.claim(key, arrival.origin, arrival.hop if whole else 0)
        if whole and first == arrival.origin:
            self._moved_on(send, arrival)
            return
        if whole and first is None:
            self._seen.free(key, arrival.origin)
        self._end_whole(facts, send, arrival, Outcome.CANCELLED, "")

    def _past_allowance(self, send: Send, arrival: Arrival, tenant: str) -> bool:
        if self.tier is not Tier.SYSTEM or arrival.hop:
            return False
        return not self._gates.within_allowance(tenant, arrival.count(send), self._now_ns)

    def _demote(self, send: Send, arrival: Arrival, channel: Channel, tenant: str) -> None:
        """To the topic of `template`, whose intake takes it in as any record there: so its memory, times, sums and
        whoever serves it are that tier's, however much of it there is."""
        origin, attempts, first_seen_ms = arrival.origin, arrival.attempts, arrival.first_seen_ms
        told = wire.History(origin, arrival.hop + 1, first_seen_ms, attempts, arrival.places, "allowance", tenant)
        topic, headers = self._gates.template_topic, wire.headers_of(told)
        self._recorder.move(topic, arrival.key, arrival.value, arrival.headers, headers)
        self._recorder.complete(arrival.ledger, array("q", [arrival.offset]))
        self._counters.taken_in[self.tier] -= arrival.count(send)
        self._gates.demote(channel.name, tenant, arrival.count(send), self._now_ns)

    def _refused(self, send: Send, arrival: Arrival, channel: Channel, tenant: str) -> bool:
        if self.tier is Tier.SYSTEM or arrival.hop or channel.name not in self._gates.by_channel:
            return False
        due_ns = times(send, arrival.first_seen_ms, self.policy).due * NS_PER_MS + self._offset_ns
        level = level_of(self.tier, tenant, send.campaign)
        return self._gates.refuses(channel.name, level, arrival.count(send), due_ns - self._now_ns)

    # --- what ends here

    def _undeliverable(self, send: Send | None, arrival: Arrival, reject: Reject) -> None:
        self._counters.invalid[self.tier, reject.reason] += 1
        facts = arrival.origin, arrival.hop, arrival.attempts, arrival.first_seen_ms, arrival.places, arrival.declined
        dead = wire.dead_headers(reject.reason, reject.detail, *facts)
        self._recorder.dead_record(arrival.key, arrival.value, arrival.headers, dead)
        flow = Facts(self.tier, *((send.channel, send.account, send.tenant, send.campaign) if send else NOT_KNOWN))
        self._end_whole(flow, send, arrival, Outcome.DEAD, reject.reason)

    def _end_whole(self, facts: Facts, send: Send | None, arrival: Arrival, outcome: Outcome, reason: str) -> None:
        """A record that never entered the core."""
        if send is None:
            count, entry = 1, wire.ReceiptSend(None, arrival.origin, None, 0, 0)
        else:
            to = None if arrival.places is None else names(send, arrival.places)
            meta = wire.meta_msgpack(send.meta)
            count, entry = arrival.count(send), wire.ReceiptSend(send.id, arrival.origin, to, arrival.attempts, 0, meta)
        self._recorder.receipt(facts, outcome, "", reason, "", "", wire.receipt_parts([entry]))
        age_ns = (self._clock.wall_ms() - arrival.first_seen_ms) * NS_PER_MS
        channel = facts.channel if facts.channel and facts.channel in self._channels else "_none"
        self._counters.end_to_end[self.tier, channel].observe(age_ns, count)
        self._counters.end(self.tier, channel, outcome, count)
        self._recorder.complete(arrival.ledger, array("q", [arrival.offset]))

    def _moved_on(self, send: Send, arrival: Arrival) -> None:
        """Another record of the same move has come before (a letter was replayed twice): that one tells its end."""
        self._counters.taken_in[self.tier] -= arrival.count(send)
        self._counters.replayed_twice[self.tier] += 1
        self._recorder.complete(arrival.ledger, array("q", [arrival.offset]))

    # --- what waits for its content

    def registered(self, name: str) -> None:
        """The content ``name`` is there (anew): what waits for it goes on."""
        self._now_ns, self._offset_ns = self._clock.now_ns(), self._clock.offset_ns()
        for held in self._held.registered(name):
            self._admit(held.send, held.arrival)
        self._dispatcher.push(self._columns)

    def end_cancelled(self) -> int:
        """A cancel command has come: end what it covers of what waits; how many recipients."""
        ended = 0
        for send, arrival, account, tenant, _ in self._held.cancelled(self._is_cancelled):
            facts = Facts(self.tier, send.channel, account, tenant, send.campaign)
            self._end_whole(facts, send, arrival, Outcome.CANCELLED, "")
            ended += arrival.count(send)
        return ended + (self.due.release() if self.due is not None else 0)

    def _is_cancelled(self, held: Held) -> bool:
        return self._dispatcher.is_cancelled(held.send.campaign, held.tenant, held.arrival.first_seen_ms)

    def _expire_held(self) -> None:
        for name, held in self._held.expired(self._clock.now_ns()):
            self._undeliverable(held.send, held.arrival, Reject("content_unknown", name))
