"""What really arrived: the judge of every promise about delivery.

In: a call with the verdict on each of its recipients. Out: counts, what one recipient got, every row.
Invariant: a call and its rows are added together, without a wait between, and never changed later. Kept as columns of
numbers: 21 bytes a row, about 150 a call and 170 a recipient.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

DELIVERED, DROPPED, INVALID, REFUSED, DUPLICATE, RETRY = range(6)
VERDICTS = (
    "delivered",
    "dropped",  # said to be sent, and was not
    "invalid",  # the platform does not take this recipient
    "refused",  # the whole call was
    "duplicate",  # recognised as sent before: not delivered again
    "retry",  # told to come again
)


class Entry(NamedTuple):
    """One recipient of one call."""

    recipient: str
    endpoint: str
    verdict: str
    arrived_ns: int  # wall clock
    call: int


class CallEntry(NamedTuple):
    """One call. ``status`` is HTTP's, 0: the connection was never answered; ``code`` the platform's own."""

    call: int
    endpoint: str
    api: str
    account: str
    recipients: int
    arrived_ns: int
    status: int
    code: int
    reference: str  # the platform's message id, or the batch's
    content: str  # digest: equal for equal content


class Ledger:
    """In memory. ``first`` is the number of the first call (an earlier run's file goes on)."""

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self._names: list[str] = []
        self._index: dict[str, int] = {}
        self._delivered = array("I")  # by recipient: times delivered
        self._last = array("q")  # by recipient: its newest row, -1 none
        self._recipient = array("I")  # by row
        self._call = array("I")
        self._verdict = array("B")
        self._previous = array("q")  # by row: the recipient's row before
        self._arrived = array("q")  # by call
        self._kind = array("H")
        self._size = array("I")
        self._status = array("h")
        self._code = array("i")
        self._labels: list[tuple[str, str]] = []
        self._kinds: list[tuple[str, str, str]] = []
        self._kind_index: dict[tuple[str, str, str], int] = {}
        self._answers: Counter[tuple[tuple[str, str, str], int]] = Counter()
        self.verdicts: Counter[tuple[str, int]] = Counter()
        self.violations: Counter[tuple[str, str]] = Counter()
        self.most_open: dict[str, int] = {}
        self.truncated = 0
        self.delivered_recipients = 0
        self.repeated_recipients = 0

    @property
    def calls(self) -> int:
        """How many there are."""
        return len(self._arrived)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._recipient)

    def add_call(
        self,
        kind: tuple[str, str, str],  # endpoint, API, account
        arrived_ns: int,
        status: int,
        code: int,
        recipients: int,
        reference: str = "",
        content: str = "",
    ) -> int:
        """Add a call that was just decided, and get its number."""
        number = self._kind_index.get(kind)
        if number is None:
            number = self._kind_index[kind] = len(self._kinds)
            self._kinds.append(kind)
        self._kind.append(number)
        self._arrived.append(arrived_ns)
        self._status.append(status)
        self._code.append(code)
        self._size.append(recipients)
        self._labels.append((reference, content))
        self._answers[kind, status] += 1
        return self.first + len(self._arrived) - 1

    def recode(self, call: int, code: int) -> None:
        """The newest call turned out to have failed: only then is its code known."""
        self._code[call - self.first] = code

    def add_rows(self, call: int, ids: Sequence[str], verdict: int) -> None:
        """Add the same ``verdict`` on each of ``ids``. About 0.3 us a recipient."""
        recipients, last, previous = self._numbers(ids), self._last, []
        for row, recipient in enumerate(recipients, len(self._recipient)):
            previous.append(last[recipient])
            last[recipient] = row
        self._recipient.extend(recipients)
        self._previous.extend(previous)
        if verdict == DELIVERED:
            self._count_deliveries(recipients)
        count = len(ids)
        self._call.extend([call - self.first] * count)
        self._verdict.extend([verdict] * count)
        self.verdicts[self._kinds[self._kind[call - self.first]][0], verdict] += count

    def _numbers(self, ids: Sequence[str]) -> list[int]:
        index, names, numbers = self._index, self._names, []
        before = size = len(names)
        for id in ids:
            number = index.setdefault(id, size)
            if number == size:
                names.append(id)
                size += 1
            numbers.append(number)
        self._delivered.extend([0] * (size - before))
        self._last.extend([-1] * (size - before))
        return numbers

    def _count_deliveries(self, recipients: Sequence[int]) -> None:
        delivered = self._delivered
        for recipient in recipients:
            times = delivered[recipient] = delivered[recipient] + 1
            if times == 1:
                self.delivered_recipients += 1
            elif times == 2:
                self.repeated_recipients += 1

    def of(self, id: str) -> list[Entry]:
        """What ``id`` was sent, oldest first."""
        row = self._last[self._index[id]] if id in self._index else -1
        found = []
        while row >= 0:
            found.append(self._entry(row))
            row = self._previous[row]
        return found[::-1]

    def entries(self, start: int, stop: int) -> Iterator[Entry]:
        """Rows ``start`` to ``stop``, oldest first."""
        return map(self._entry, range(start, min(stop, self.rows)))

    def call_entries(self, start: int, stop: int) -> Iterator[CallEntry]:
        """Calls ``start`` to ``stop`` by position, oldest first."""
        return map(self._call_entry, range(start, min(stop, self.calls)))

    def _entry(self, row: int) -> Entry:
        call = self._call[row]
        return Entry(
            self._names[self._recipient[row]],
            self._kinds[self._kind[call]][0],
            VERDICTS[self._verdict[row]],
            self._arrived[call],
            self.first + call,
        )

    def _call_entry(self, position: int) -> CallEntry:
        return CallEntry(
            self.first + position,
            *self._kinds[self._kind[position]],
            self._size[position],
            self._arrived[position],
            self._status[position],
            self._code[position],
            *self._labels[position],
        )

    def counts(self) -> dict[str, Any]:
        """Totals. ``repeated_recipients`` were delivered more than one message, of whatever content."""
        return {
            "rows": self.rows,
            "calls": _nested((kind[0], f"{kind[1]} {status}", n) for (kind, status), n in self._answers.items()),
            "verdicts": _nested((endpoint, VERDICTS[verdict], n) for (endpoint, verdict), n in self.verdicts.items()),
            "recipients": len(self._names),
            "delivered_recipients": self.delivered_recipients,
            "repeated_recipients": self.repeated_recipients,
            "max_concurrency": dict(self.most_open),
            "violations": _nested((endpoint, what, n) for (endpoint, what), n in self.violations.items()),
            "truncated": self.truncated,
        }


def _nested(items: Iterable[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for outer, inner, n in items:
        totals = nested.setdefault(outer, {})
        totals[inner] = totals.get(inner, 0) + n
    return nested
