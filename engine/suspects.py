"""Which records kill workers (pure): what is remembered from one crash to the next, and what a crash adds to it.

In: how a life ended, and the records it had in hand. Out: what the next life takes one at a time, and what it must not
touch. Invariant: a record is a killer only after it was in hand at three crashes, the last time alone.
Never: suspects for SIGKILL or SIGTERM. These come from outside; what a record allocates is bounded (engine.decode), so
it brings no out-of-memory killer about by itself.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

MOST = 5_000  # remembered of each kind; a slice is at most a thousand
NATIVE = frozenset(
    {
        signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS,
    }
)  # fmt: skip


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


class Killer(NamedTuple):
    """A record. Its timestamp tells it from one that stands there after the topic was made anew."""

    place: Place
    timestamp_ms: int


class InHand(NamedTuple):
    """Records of a partition that were being taken in, as one slice."""

    first: Place
    last: int
    timestamp_ms: int  # the first one's

    @property
    def places(self) -> list[Place]:
        """All that may stand there; MOST of a slice with such gaps."""
        return [self.first._replace(offset=offset) for offset in range(self.first.offset, self.last + 1)[:MOST]]


class Book(msgspec.Struct, frozen=True):
    """What is known of all lives. The latest of each kind, MOST of them."""

    once: tuple[Place, ...] = ()  # in hand at a crash
    suspects: tuple[Place, ...] = ()  # at two: to be taken one at a time
    killers: tuple[Killer, ...] = ()  # at a third one, alone


def is_crash(code: int) -> bool:
    """Whether an exit code says that the process did not want to end: a fatal signal, or an error of its own."""
    return code > 0 or -code in NATIVE


def after(book: Book, code: int, left: Sequence[InHand]) -> Book:
    """What is known after a life that ended with ``code`` and these records in hand."""
    if not is_crash(code):
        return book
    places = [place for slice_ in left for place in slice_.places]
    if len(places) == 1 and places[0] in book.suspects:
        rest = tuple(place for place in book.suspects if place != places[0])
        return Book(book.once, rest, (*book.killers, Killer(places[0], left[0].timestamp_ms))[-MOST:])
    known = {*book.suspects, *(killer.place for killer in book.killers)}
    once, fresh = set(book.once), [place for place in places if place not in known]
    suspects = (*book.suspects, *(place for place in fresh if place in once))
    told_once = (*(place for place in book.once if place not in fresh), *fresh)
    return Book(told_once[-MOST:], suspects[-MOST:], book.killers)
