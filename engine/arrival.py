"""A record as intake meets it: what it holds, where it stands, and, if it was moved, where it comes from (pure).

Out: an Arrival, or Reject("header_invalid").
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from engine.admit import LATEST_MS
from engine.commit import Ledger
from engine.errors import Reject
from engine.logs import Headers
from engine.send import Origin, Send
from engine.wire import OPEN, bitset, history

MOST_ATTEMPTS = 255  # the core counts no further


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One record and where it stands."""

    ledger: Ledger
    offset: int
    origin: Origin
    first_seen_ms: int
    key: bytes | None  # the record's own
    value: bytes | None  # None: a tombstone, which decodes to no send
    headers: Headers
    hop: int = 0  # times it was moved
    attempts: int = 0  # calls made for it before that
    still: frozenset[int] | None = None  # the places of its `to` that are open; None: all
    sent: frozenset[int] | None = None  # those that were when it was moved
    until_ms: int = 0  # not to be sent before, whatever it says itself
    declined: int = 0  # times, before: see OpenSend.decline
    reason: str = ""  # why it was moved

    @property
    def place(self) -> Origin:
        """Where it stands itself."""
        return Origin(*self.ledger.partition, self.offset)

    def move_key(self, key: bytes) -> bytes | None:
        """What a second record of the same move (a letter replayed twice, one moved again after a crash) has in common
        with it, and no other send of its id, for the table of ids seen; ``key``: its send's. None: it was not moved."""
        return self._key_of(key, b"") if self.hop else None

    def hop_key(self, key: bytes) -> bytes:
        """The same, for a table entry that outlives its end: a letter may be replayed when its last replay has reached
        nobody, but what the engine moved twice goes on once."""
        return self._key_of(key, b"hop")

    def _key_of(self, key: bytes, use: bytes) -> bytes:
        open_ = b"" if self.sent is None else bitset(sorted(self.sent))
        origin = "{}:{}:{}\0".format(*self.origin).encode()
        return blake2b(key + origin + open_, digest_size=16, person=use).digest()

    @property
    def places(self) -> list[int] | None:
        """``still``, in order."""
        return None if self.still is None else sorted(self.still)

    def count(self, send: Send) -> int:
        """Recipients it comes for."""
        return len(send.to) if self.still is None else len(self.still)

    @property
    def size(self) -> int:
        """Bytes of the record's value."""
        return len(self.value) if self.value else 0


def moved(arrival: Arrival, send: Send | Reject) -> Arrival:
    """With what its headers say of its way here, if it was moved. Raises Reject("header_invalid")."""
    told = history(arrival.headers)
    if told is None:
        return arrival
    still = None if told.positions is None else frozenset(told.positions)
    if still is not None and isinstance(send, Send) and not (still and max(still) < len(send.to)):
        raise Reject("header_invalid", f"{OPEN}: names nobody, or places that `to` does not have")
    return msgspec.structs.replace(
        arrival,
        origin=told.origin,
        hop=told.hop,
        first_seen_ms=min(told.first_seen_ms, arrival.first_seen_ms),
        attempts=min(told.attempts, MOST_ATTEMPTS),
        still=still,
        sent=still,
        until_ms=min(told.until_ms, LATEST_MS),
        declined=told.declined & 255,
        reason=told.reason,
    )


def resumed(arrival: Arrival, send: Send) -> Arrival:
    """Without those of its recipients that ended before a restart; ``still`` is empty when that is all."""
    done = arrival.ledger.settled(arrival.offset)
    if not done:
        return arrival
    still = frozenset(range(len(send.to))) if arrival.still is None else arrival.still
    return msgspec.structs.replace(arrival, still=still - done)
