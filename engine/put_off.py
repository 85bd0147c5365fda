"""What of the core's must wait: there, or on the log (part of the dispatcher's shell).

In: rows of batches, and what the core holds for longer than the horizon. Out: rows back into the core, or moves.
Invariant: what is taken out of the core is in it again, or the mover's, before anything else happens.
Never: takes more out of the core than the log keeps up with.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from engine import wire
from engine.admit import LATEST_MS
from engine.clock import NS_PER_MS
from engine.decode import decode
from engine.later import FREQUENCY, REST, Later, Move, Wait
from engine.open_sends import OpenSend, recipients
from engine.send import TIERS, Outcome, Tier
from engine.settle import Again, Ending
from engine.state.seen import Seen
from ext.columns import Batch, Columns
from ext.schedule import Ended

if TYPE_CHECKING:
    from engine.dispatch import Dispatcher

PUT_OFF_BUDGET = 512  # steps of the core a turn and tier, some ms
SAME = itemgetter(0, 1, 2, 3)  # of one send, on one way


class PutOff:
    """The dispatcher's; owns what it has moved."""

    def __init__(self, dispatcher: Dispatcher, later: Later, seen: Seen) -> None:
        self._dispatcher = dispatcher
        self._later = later
        self._seen = seen
        later.owned_by(self)

    # --- rows of a batch, each time of one send and as many attempts

    def again(self, batch: Batch, rows: Sequence[int], again: Again, columns: Columns, now: int) -> None:
        """These are to be called again."""
        flow, handle, wait_ns = batch.flow, batch.handle_of(rows[0]), again.at_ns - now
        if again.counts:
            hop = wire.hop_of(self._dispatcher.opens[handle].headers)
            wait = self._later.retry_wait(flow, hop, wait_ns, len(rows))
        else:
            wait = self._later.wait(flow.channel, wait_ns, REST)
        self._rows(batch, rows, batch.attempts[rows[0]] + again.counts, again.at_ns, wait, again.reason, columns)

    def frequent(self, batch: Batch, rows: Sequence[int], until_ns: int, columns: Columns, now: int) -> None:
        """These have had their messages."""
        wait = self._later.wait(batch.flow.channel, until_ns - now, FREQUENCY)
        self._rows(batch, rows, batch.attempts[rows[0]], until_ns, wait, "", columns)

    def earn(self, batch: Batch, endings: Iterable[Ending]) -> None:
        """Retries that a call has earned its channel."""
        attempts = batch.attempts
        first, again = attempts.count(0), 0
        if first < len(attempts):
            answered = (ending.who for ending in endings if ending.outcome in (Outcome.ACCEPTED, Outcome.FAILED))
            again = sum(attempts[row] > 0 for who in answered for row in who)
        self._later.budget(batch.flow.channel, batch.tier).earn(first, again)

    def _rows(
        self,
        batch: Batch,
        rows: Sequence[int],
        attempts: int,
        at_ns: int,
        wait: Wait | None,
        why: str,
        columns: Columns,
    ) -> None:
        if wait is None:
            columns.add_rows(batch, rows, attempts, at_ns)
            return
        handle, who = batch.handle_of(rows[0]), [*map(batch.position_of, rows)]
        self._later.move(handle, self._dispatcher.opens[handle], who, attempts, wait, why)

    # --- what is held for longer than the horizon

    def held(self, now: int) -> bool:
        """It goes to the log, in portions; True: there is more, and the log keeps up."""
        more = False
        for tier in map(TIERS.__getitem__, self._dispatcher.core.puts_off(now)):
            taken = self._dispatcher.core.put_off(now, tier, PUT_OFF_BUDGET) if self._later.has_room(tier) else None
            if taken is not None:
                self._held(tier, taken)
                more |= taken.more
        return more

    def _held(self, tier: Tier, taken: Ended) -> None:
        opens, columns = self._dispatcher.opens, (taken.send, taken.attempt, taken.cause, taken.until, taken.position)
        for (handle, attempts, cause, until_ns), rows in groupby(zip(*columns, strict=True), SAME):
            send, positions = opens[handle], [row[4] for row in rows]
            if send.ledger.leaving:
                self._dispatcher.leave(handle, send, len(positions))
            else:
                self._later.move(handle, send, positions, attempts, self._later.put_off(tier, cause, until_ns))

    # --- what was moved, or comes back into the core

    def moved(self, move: Move) -> None:
        """See engine.mover.Owner: its recipients stand on a later topic, and are not ours to care for here."""
        send, dispatcher = move.send, self._dispatcher
        send.taken = True  # the id stays: they may yet be accepted
        if send.whole(len(move.positions)):  # read again, this record has nothing left to do
            self._seen.claim(send.key, send.origin, wire.hop_of(send.headers) + 1)
        if dispatcher.less(move.handle, send, move.positions):
            dispatcher.recorder.complete(send.ledger, array("q", [send.offset]))
        dispatcher.wake()  # there is room for more

    def not_moved(self, move: Move) -> None:
        """See engine.mover.Owner."""
        if move.send.ledger.leaving:
            self._dispatcher.leave(move.handle, move.send, len(move.positions))
            self._dispatcher.wake()  # there is room for more
        else:
            self._push(move.handle, move.send, move.positions, move.attempts, move.wait.until_ms)

    def back(self, handle: int, send: OpenSend, positions: Sequence[int], attempts: int) -> None:
        """These were taken out of the core for others' sake: they wait there as before, as far as their record knows
        until when."""
        until_ms = max(decode(send.value).not_before or 0, wire.until_ms(send.headers))
        self._push(handle, send, positions, attempts, until_ms)

    def _push(self, handle: int, send: OpenSend, positions: Sequence[int], attempts: int, until_ms: int) -> None:
        columns, ids = Columns(), [id.encode() for id in recipients(send, positions)]
        until_ns = min(until_ms, LATEST_MS) * NS_PER_MS + self._dispatcher.clock.offset_ns() if until_ms else 0
        columns.add(handle, send, attempts, until_ns, [*positions], ids)
        self._dispatcher.push(columns)
