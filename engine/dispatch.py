"""Stages schedule, batch and deliver, seen from outside the core (shell): pops batches, makes the calls, settles them.

In: columns of sends from intake. Out: calls to platforms; endings to the recorder; retries back into the core.
Invariant: a popped recipient is, until its call is settled, in ``counters.in_flight``; after that it has ended or is
in the core again.
Never: waits for anything but its turn between a pop and its calls; a pop takes the connection slots the calls need.
"""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby

import msgspec
import structlog

from engine import wire
from engine.admit import Channel
from engine.attempts import Attempts
from engine.begun import Noted
from engine.cancelled import Cancelled, Standing
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.config import ChannelConfig
from engine.counters import Counters
from engine.deliver import TOO_LATE, Deliverer
from engine.drivers import Action, Call, CallResult, Verdict
from engine.fence import Fence
from engine.frequency import Frequencies, Held, rows_by_wait
from engine.gates import Gates
from engine.later import Later
from engine.limits import Limits
from engine.open_sends import Flow, OpenSend, OpenSends, recipients
from engine.put_off import PutOff
from engine.record import Recorder, receipt_head
from engine.send import Origin, Outcome, Tier
from engine.settle import Again, Ending, settle
from engine.state.flight import Flight
from engine.state.seen import Seen
from engine.told import KEEPS_ID, Told
from engine.turns import Turns
from ext.columns import Batch, Columns, batches_of
from ext.receipts import tell
from ext.schedule import ACCOUNT, CANCELLED, NEVER, WHOLE_TIER, Core

logger = structlog.get_logger("surgetank.dispatch")
DEAD = Outcome.DEAD  # Python 3.11 takes a microsecond to find an enum's member
POP_BUDGET = 256  # steps of the core a pop, about 10 us; urgent work never waits behind more
REAP_BUDGET = 4096
FEW = 8  # recipients: to settle them is no piece of work that waits for its turn
UNANSWERED = "cancelled after a call without an answer"
SHUT_NS = 50 * NS_PER_MS  # between two looks at a fence that is shut
NOT_MADE = CallResult(Verdict(Action.RETRY, "fence", "not ours any more"), left=False)

# What a call counts as in dispatch_attempts_total.
RESULTS = {
    Action.ACCEPTED: "ok",
    Action.RETRY: "transient",
    Action.REFRESH: "transient",
    Action.PARK: "throttled",
    Action.FAILED: "permanent",
    Action.DEAD: "permanent",
    Action.UNKNOWN: "timeout",
}


class Dispatcher:
    """One per process; everything in it runs on the event loop's thread."""

    def __init__(
        self,
        core: Core,
        opens: OpenSends,
        channels: Mapping[str, Channel],
        configs: Mapping[str, ChannelConfig],
        deliverers: Mapping[str, Deliverer],
        recorder: Recorder,
        seen: Seen,
        limits: Limits,
        frequencies: Frequencies,
        gates: Gates,
        fence: Fence,
        flight: Flight,
        attempts: Attempts,
        later: Later,
        turns: Turns,
        counters: Counters,
        clock: Clock,
    ) -> None:
        self.core = core
        self.opens = opens
        self.channels = channels
        self.recorder = recorder
        self.counters = counters
        self._configs = configs
        self._deliverers = deliverers
        self._seen = seen
        self._limits = limits
        self._frequencies = frequencies
        self._gates = gates
        self._fence = fence
        self._flight = flight
        self._attempts = attempts
        self._turns = turns
        self._put_off = PutOff(self, later, seen)
        self.clock = clock
        self.cancelled = Cancelled()
        self._calls: dict[int, asyncio.Task[None]] = {}  # by number
        self._made_calls = 0
        self._pumping = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0  # when it fires
        self._loop = asyncio.get_running_loop()
        # Done only by a defect: what was popped and not settled stays uncommitted, and a restart does it again.
        self.failure: asyncio.Future[None] = self._loop.create_future()

    # --- in

    def push(self, columns: Columns, urgent: bool = False) -> None:
        """Hand sends to the core; ``urgent``: what may go leaves now, not at the loop's next turn."""
        columns.push(self.core, self.clock.now_ns())
        if urgent:
            self._pump()
        else:
            self.wake()

    def wake(self) -> None:
        """Something may go: look soon. Cheap to call often."""
        if not self._pumping and not self._stopped:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def cancel(self, campaign: str, command: Standing) -> int:
        """End what is queued of a campaign, and from now on what the command covers; how many ended."""
        self.cancelled.add(campaign, command, self.clock.wall_ms())
        tenant = command.tenant
        pairs = {(flow.tenant_handle, flow.campaign_handle) for flow in self.opens.of_campaign(campaign, tenant)}
        ended = sum(self.core.cancel(*pair) for pair in pairs)
        self.wake()
        return ended

    def drop(self, tier: Tier) -> None:
        """Give back what is queued of a tier, whose partitions go to others; ``_reap`` does it, in portions."""
        for flow in self.opens.of_tier(tier):
            self.core.cancel(flow.tenant_handle, flow.campaign_handle, tier)
        self.wake()

    def is_cancelled(self, campaign: str | None, tenant: str, first_seen_ms: int) -> bool:
        """True for a send that a cancel command covers."""
        if campaign is None or campaign not in self.cancelled:
            return False
        return self.cancelled.covers(campaign, tenant, first_seen_ms, self.clock.wall_ms())

    async def stop(self, deadline_s: float) -> int:
        """Pop no more; wait for calls under way, then cut them off. Returns how many were cut off."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._turns.finish()  # what is popped is under way
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=deadline_s)
        cut = list(self._calls.values())
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        return len(cut)

    # --- the pump

    def _pump(self) -> None:
        """One turn; runs as a callback of the loop, so a defect in it must be carried to ``failure``."""
        self._pumping = False
        if self._stopped or self.failure.done():
            return
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001  the shell's outer edge: serve says it, drains and ends
            self.failure.set_exception(error)

    def _turn(self) -> None:
        now = self.clock.now_ns()
        more = False
        if not self.recorder.full():
            for tier in self._fence.shut():
                self.core.block(WHOLE_TIER, tier, now + SHUT_NS)
            popped = self.core.pop_batches(now, POP_BUDGET)
            for batch in batches_of(popped, self.opens, now):
                self._start(batch)
            self._limits.look()
            more = popped.more
        certain = self._fence.certain()  # else what has expired may be another worker's, and delivered
        if certain:
            more |= self._reap(now)
            more |= self._put_off.held(now)
        if more:
            self.wake()
        else:
            self._sleep(now, certain)

    def _sleep(self, now: int, certain: bool) -> None:
        due = self.core.next_due(now)
        if not certain and not now < due < now + SHUT_NS:  # what has ended is due now, and waits
            due = now + SHUT_NS
        if self.recorder.full():
            due = now + 100 * NS_PER_MS
        if self._timer is not None:
            if now < self._timer_ns <= due:  # it fires no later: too early costs a look, another timer as much
                return
            self._timer.cancel()
            self._timer = None
        if due != NEVER:
            self._timer_ns = due
            self._timer = self._loop.call_later(max(due - now, 0) / NS_PER_S, self._fired)

    def _fired(self) -> None:
        self._timer = None  # a loop may fire it a little early: then it is to be set again
        self.wake()

    def _start(self, batch: Batch) -> None:
        popped, stale = len(batch), batch.stale()
        if stale:
            self._give_back(batch, stale)
        noted = self._attempts.queued(batch)
        held = self._frequencies.hold(batch, again=noted is not None)
        if held.waits:
            self._wait(batch, held.waits)
        tier, count = batch.flow.tier, len(batch)
        if not count:
            self._release(batch.flow, self.clock.now_ns(), popped, 0, 0)
            self.wake()
            return
        self.counters.in_flight[tier] += count
        self._flight.begin(tier, count)
        self._made_calls = number = self._made_calls + 1
        # A window that opens lets many calls go at once; what is urgent must not wait until all have begun.
        self._turns.add(tier, partial(self._begin, number, batch, popped, held, noted))

    def _begin(self, number: int, batch: Batch, popped: int, held: Held, noted: Noted | None) -> None:
        self._calls[number] = self._loop.create_task(self._call(number, batch, popped, held, noted))

    def _release(self, flow: Flow, now: int, popped: int, left: int, late_ns: int) -> None:
        self.core.release(now, flow.account_handle, flow.tier, popped, left, late_ns, flow.tenant_handle)

    def _give_back(self, batch: Batch, rows: Sequence[int]) -> None:
        handles, sends, positions = batch.handles, batch.sends, batch.positions
        for row in rows:
            self._attempts.drop(handles[row], [positions[row]])
            self.leave(handles[row], sends[row], 1)
        batch.without(rows)

    def leave(self, handle: int, send: OpenSend, count: int) -> None:
        """So many of its recipients belong to another worker now, which reads them again."""
        self.counters.given_back[send.flow.tier] += count
        send.given_back = True
        send.left -= count
        if not send.left:
            self.opens.remove(handle)
            self._free_move(send)  # what it comes to is not known here

    def _wait(self, batch: Batch, waits: Mapping[int, int]) -> None:
        """These have had their messages: back into the core until then, or on the log; no attempt of theirs."""
        columns, handles, attempts, now = Columns(), batch.handles, batch.attempts, self.clock.now_ns()
        for until_ns, who in rows_by_wait(waits).items():
            for rows in _runs([*zip(handles, attempts, strict=True)], who):
                self._put_off.frequent(batch, rows, until_ns, columns, now)
        columns.push(self.core, now)
        batch.without([*waits])

    async def _call(self, number: int, batch: Batch, popped: int, held: Held, noted: Noted | None) -> None:
        """A call's task, in one coroutine: each costs every call. ``noted``: the earlier call that it makes again."""
        flow, count, left = batch.flow, len(batch), len(batch)
        channel, late_ns = flow.channel, int(self._configs[flow.channel].timeout)
        try:
            body = batch.content.prepared.body
            call = noted.call(body) if noted else Call(batch.name(), flow.account, body, batch.ids, batch.data)
            self.counters.calls_in_flight[channel] += 1
            try:
                if noted is None and channel in self._attempts.wanted:
                    noted = await self._attempts.begin(batch, call)
                ours = (noted is None and not self._fence.doubtful(flow.tier)) or await self._is_ours(batch)
                if not ours:
                    result = NOT_MADE
                elif noted is None:
                    result = await self._deliverers[channel].call(call, batch.deadline_ns())
                else:
                    before_ns = NEVER if noted.again else batch.deadline_ns()  # what may have left is asked for always
                    forbidden = self._attempts.forbids(noted)
                    result = forbidden or noted.own(await self._deliverers[channel].call(call, before_ns))
                if count > FEW:
                    await self._turns.mine(flow.tier)
                # The slot is freed and the call settled at once: a rest begins before another call does.
                self._frequencies.done(batch, held, result)
                left, late_ns = left if result.left else 0, 0 if result.answered else late_ns
            finally:  # one that was cut off may have left, and may arrive as late as one without an answer
                now = self.clock.now_ns()
                self._release(flow, now, popped, left, late_ns)
                self.counters.calls_in_flight[channel] -= 1
                self._gates.left[channel, flow.tier] += left
                self.counters.in_flight[flow.tier] -= count
            if result.whole is NOT_MADE.whole or result.whole is TOO_LATE.whole:
                self._put_back(batch, noted, result.whole.code)
            else:
                self._settle(batch, call, result, noted, now)
            self._flight.end(flow.tier, count)  # one that was cut off stays in flight: it may be made again
            self.wake()
        except Exception as error:  # noqa: BLE001  serve says it, as of the pump
            if not self.failure.done():
                self.failure.set_exception(error)
        finally:
            self._calls.pop(number)

    async def _is_ours(self, batch: Batch) -> bool:
        """Wait until the group has said so; False: some of it is not (any more)."""
        while self._fence.doubtful(batch.tier) and not batch.stale():  # noqa: ASYNC110 - the commit does not know us
            await asyncio.sleep(SHUT_NS / NS_PER_S)
        return not batch.stale()

    def _put_back(self, batch: Batch, noted: Noted | None, reason: str) -> None:
        """A call that was not made; whoever's deadline has passed ends in the core."""
        if noted is not None and not noted.again:
            self._attempts.end(noted.begun, (), noted.rows, "")
        self._give_back(batch, batch.stale())
        if len(batch):
            columns, now = Columns(), self.clock.now_ns()
            again = Again(now, False, reason, range(len(batch)))
            self._again(batch, again, columns, now, self._attempts.queued(batch))
            columns.push(self.core, now)

    # --- settlement

    def _settle(self, batch: Batch, call: Call, result: CallResult, noted: Noted | None, now: int) -> None:
        name, counters = batch.flow.channel, self.counters
        counters.call_took(batch.flow.tier, name, now - batch.popped_ns)
        counters.attempts[name, RESULTS[result.whole.action]] += 1
        attempts, repeats, unsure = batch.attempts, self.channels[name].repeats, False
        if noted is not None:
            repeats = self._attempts.repeatable(noted.begun, batch.content.prepared.key)
            unsure = noted.unsure(result)
            attempts = [max(attempts)] * len(batch) if noted.again else attempts  # one call: all give up together
        retry = self._configs[name].retry
        settlement = settle(result, attempts, retry, repeats, now, random.random(), unsure=unsure)
        if settlement.rest_until_ns is not None:
            counters.throttled[name] += 1
            self.core.block(ACCOUNT, batch.flow.account_handle, settlement.rest_until_ns)
            logger.warning(
                "the platform wants a rest",
                channel=name,
                account=batch.flow.account,
                code=result.whole.code,
                reason=result.whole.reason,
                seconds=(settlement.rest_until_ns - now) // NS_PER_S,
            )
        self._put_off.earn(batch, settlement.endings)
        if noted is not None and not self._attempts.settled(batch, noted, settlement, result):
            noted = None
        for ending in settlement.endings:
            self._end(batch, ending, call.batch, wire.tellable(result.platform_id))
        if settlement.again:
            columns = Columns()
            for again in settlement.again:
                self._again(batch, again, columns, now, noted)
            columns.push(self.core, now)

    def _end(self, batch: Batch, ending: Ending, name: str, platform_id: str) -> None:
        flow, outcome, counters = batch.flow, ending.outcome, self.counters
        if outcome is DEAD:
            self._bury(batch, ending)
        told = tell(
            batch,
            ending.who,
            outcome in KEEPS_ID,
            receipt_head(flow, outcome, ending.code, ending.reason),
            name,
            platform_id,
            self.clock.wall_ms(),
            counters.end_to_end[flow.tier, flow.channel],
            wire.MAX_PART_BYTES,
        )
        self.recorder.told(told)
        for send in told.unclaimed:
            self._free(send)
        counters.end(flow.tier, flow.channel, outcome, told.count)

    def _bury(self, batch: Batch, ending: Ending) -> None:
        handles, positions = batch.handles, batch.positions
        for rows in _runs(handles, ending.who):
            send, attempts = self.opens[handles[rows[0]]], batch.attempts[rows[0]] + 1
            who = [positions[row] for row in rows]
            some, declined = None if send.whole(len(who)) else who, send.most_declined(who) + ending.declined
            self.recorder.dead(send, ending.code or ending.reason, ending.reason, attempts, some, declined)

    def _again(self, batch: Batch, again: Again, columns: Columns, now: int, noted: Noted | None) -> None:
        """To wait, in the core or on the log; ``noted``: in the core, for exactly this call only."""
        self.counters.retried(batch.flow.channel, again.reason, len(again.who))
        handles, positions = batch.handles, batch.positions
        for rows in _runs(handles, again.who):
            handle, who = handles[rows[0]], [positions[row] for row in rows]
            send = self.opens[handle]
            if send.ledger.leaving:
                self._attempts.drop(handle, who)
                self.leave(handle, send, len(rows))
            elif self.is_cancelled(send.flow.campaign, send.flow.tenant, send.first_seen_ms):
                self._attempts.drop(handle, who)
                outcome, reason = (Outcome.CANCELLED, "") if noted is None else (Outcome.UNKNOWN, UNANSWERED)
                self._end(batch, Ending(outcome, "", reason, rows), "", "")
            elif noted is not None:
                apart = self._attempts.queue(noted, handle, rows, who)
                columns.add_rows(batch, rows, batch.attempts[rows[0]] + again.counts, again.at_ns, apart)
            else:
                if again.declined:
                    send.decline(who)
                self._put_off.again(batch, rows, again, columns, now)

    def _reap(self, now: int) -> bool:
        """Tell of what ended inside the core; True when there is more to tell."""
        reaped = self.core.reap(now, REAP_BUDGET)
        if not reaped.items:
            return False
        handles: list[int] = reaped.send.tolist()
        causes: list[int] = reaped.cause.tolist()
        positions: list[int] = reaped.position.tolist()
        attempts: list[int] = reaped.attempt.tolist()
        groups: dict[tuple[Flow, Outcome], tuple[Told, list[wire.ReceiptSend]]] = {}
        for rows in _runs(self._attempts.told_apart(handles, positions), range(reaped.items)):
            first, handle = rows[0], handles[rows[0]]
            send = self.opens[handle]
            who = [positions[row] for row in rows]
            unsure = self._attempts.drop(handle, who)
            if send.ledger.leaving:
                self.leave(handle, send, len(rows))
                continue
            cancelled = self.is_cancelled(send.flow.campaign, send.flow.tenant, send.first_seen_ms)
            if causes[first] == CANCELLED and not (unsure or cancelled):  # others of its tier were given back
                for alike in _runs(attempts, rows):
                    self._put_off.back(handle, send, [positions[row] for row in alike], attempts[alike[0]])
                continue
            outcome = Outcome.CANCELLED if causes[first] == CANCELLED else Outcome.EXPIRED
            outcome = Outcome.UNKNOWN if unsure else outcome
            group = groups.get((send.flow, outcome))
            if group is None:
                group = groups[send.flow, outcome] = (Told(self, send.flow, outcome), [])
            to = None if send.whole(len(who)) else recipients(send, who)
            queued_ms = (now - send.pushed_ns) // NS_PER_MS
            meta = msgspec.Raw(send.meta)
            group[1].append(wire.ReceiptSend(send.id, send.origin, to, attempts[first], queued_ms, meta))
            group[0].send(handle, send, who)
        for (flow, outcome), (told, entries) in groups.items():
            reason = UNANSWERED if outcome is Outcome.UNKNOWN else ""
            self.recorder.receipt(flow, outcome, "", reason, "", "", wire.receipt_parts(entries))
            told.done()
        return reaped.more

    def end_some(
        self, handle: int, send: OpenSend, outcome: Outcome, reason: str, positions: Sequence[int], code: str = ""
    ) -> None:
        """The recipients at these places of the send have ended without a call; the last ones complete its record."""
        to = None if send.whole(len(positions)) else recipients(send, positions)
        entry = wire.ReceiptSend(send.id, send.origin, to, 0, 0, msgspec.Raw(send.meta))
        self.recorder.receipt(send.flow, outcome, code, reason, "", "", wire.receipt_parts([entry]))
        told = Told(self, send.flow, outcome)
        told.send(handle, send, positions)
        told.done()

    # --- what has ended

    def less(self, handle: int, send: OpenSend, positions: Sequence[int]) -> bool:
        """These recipients of the send have ended and are told of, or moved; True when its record is complete."""
        send.left -= len(positions)
        if (send.left or send.given_back) and not send.ledger.stale:
            self.recorder.settle(send.ledger, send.offset, array("H", positions))
        if send.left:
            return False
        self.opens.remove(handle)
        if send.ledger.stale or send.given_back:
            self._free_move(send)
            return False
        if not send.taken:
            self._free(send)
        return True

    def _free(self, send: OpenSend) -> None:
        """It ended with nobody accepted: its id is free, unless others of its `to` may have been, before it moved."""
        if not send.partial:
            self._seen.free(send.key, send.origin)
        self._free_move(send)

    def _free_move(self, send: OpenSend) -> None:
        if send.move_key is not None:
            self._seen.free(send.move_key, Origin(*send.ledger.partition, send.offset))


def _runs(values: Sequence[object], who: Iterable[int]) -> Iterator[list[int]]:
    """``who`` cut where the value changes."""
    return (list(rows) for _, rows in groupby(who, values.__getitem__))
