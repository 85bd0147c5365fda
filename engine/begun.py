"""Calls that were begun on channels that forbid repeats, and what is known of their ends (pure); ``engine.attempts``
writes and reads them.

A call's *rows* are its recipients, in order, by number; they may be of several records, and of several workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from engine.drivers import Action, Call, CallResult
from engine.wire_attempt import Attempt, End, Ended, Member
from ext.columns import Batch

FINAL = frozenset({Action.ACCEPTED, Action.FAILED, Action.DEAD})


class Begun:
    """A call that was begun, and what is known of its end, by row."""

    __slots__ = ("attempt", "content", "ended", "free", "platform_id", "queued")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.ended: dict[int, Ended] = {}
        self.free: set[int] = set()  # surely not delivered
        self.platform_id = ""
        self.content: int | None = None  # a handle in the core, its own, while rows of it are there
        self.queued = 0  # so many

    def learn(self, end: End) -> None:
        """What an End says, besides what is known."""
        every = range(len(self.attempt.ids))
        self.platform_id = end.platform_id
        for ended, rows in end.ended:
            self.ended.update(dict.fromkeys(every if rows is None else rows, ended))
        self.free.update(every if end.free is None else end.free)

    def end(self) -> End:
        """All that is known."""
        rows_of: dict[Ended, list[int]] = {}
        for row, ended in self.ended.items():
            rows_of.setdefault(ended, []).append(row)
        count = len(self.attempt.ids)
        told = [(ended, None if len(rows) == count else rows) for ended, rows in rows_of.items()]
        free = None if len(self.free) == count else sorted(self.free)
        return End(batch=self.attempt.batch, platform_id=self.platform_id, ended=told, free=free)


class Noted(NamedTuple):
    """A batch whose call is written down. ``again``: it was made before, with others perhaps, and is made again."""

    begun: Begun
    rows: Sequence[int]  # of the call, one for each of the batch
    again: bool
    refused: bool = False  # by the log: it must not be made

    def call(self, body: Any) -> Call:
        """The same call; ``body``: of the content."""
        attempt = self.begun.attempt
        return Call(attempt.batch, attempt.account, body, attempt.ids, attempt.data or ())

    def own(self, result: CallResult) -> CallResult:
        """What the call's answer says of the batch."""
        told = {at: result.exceptions[row] for at, row in enumerate(self.rows) if row in result.exceptions}
        return replace(result, exceptions=told)

    def unsure(self, result: CallResult) -> bool:
        """Whether it may have had an effect that nobody has told us of."""
        whole = result.whole.action
        return whole is Action.UNKNOWN or (self.again and whole not in FINAL)


class Known(NamedTuple):
    """What became of a record's recipients that were in calls: positions, and rows of calls to be made again."""

    again: dict[Begun, dict[int, int]]
    ended: dict[Ended, list[int]]
    others: list[int]


def members(batch: Batch) -> list[Member]:
    """Whose recipients a batch has, in its order."""
    found: list[Member] = []
    last = None
    for handle, position, send in zip(batch.handles, batch.positions, batch.sends, strict=True):
        if handle != last:
            found.append(Member(*send.ledger.partition, send.offset, []))
            last = handle
        found[-1].positions.append(position)  # type: ignore[attr-defined]  # made as a list above
    return found
