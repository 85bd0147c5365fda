"""What the crash benchmark feeds, for as long as it runs: sends of 1 to 10,000 recipients, of one and many tenants and
campaigns, in three tiers, some of which may not leave yet, and some whose id has come before.

Every recipient's id is its own, so that ledgers can be joined on it, also where a send's is not; how it begins says why
its send's id comes again (``KINDS``). The same seed gives the same sends.
"""

from __future__ import annotations

import random
import time
from typing import Any

import msgpack

from engine.logs import Record

LARGE, LARGE_EVERY_S = 10_000, 30.0
LATER_S = 20  # how long a send may have to wait
SIZES = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 5, 20, 100)
REFUSED = "invalid-"  # so the simulator's refused recipients begin
# Ids that come again: right behind their first send; after one that reached nobody, unless it is open yet; after any.
TWICE, FREED, LATE = KINDS = ("twice-", "freed-", "late-")
SHARES = (0.04, 0.15, 0.03)  # of the sends, by kind
AGAIN_BURSTS = (40, 80)  # after so many they come again
WAIT_MS = (2_000, 5_000)  # so long wait most sends whose id comes again when they have reached nobody, then and before


class Feed:
    """``burst`` makes the next records. ``deadlines``: recipients that may expire; ``once``: whose channel forbids
    repeats."""

    def __init__(self, prefix: str, seed: int) -> None:
        self.deadlines: set[str] = set()
        self.once: set[str] = set()
        self._prefix = prefix
        self._chance = random.Random(seed)
        self._number = self._bursts = 0
        self._large_at = 0.0
        self._again: dict[int, list[tuple[str, str, dict[str, Any]]]] = {}  # burst -> kind, tier, send

    def burst(self, elapsed_s: float) -> list[Record]:
        """A few sends; now and then a large one; and what comes again now."""
        self._bursts += 1
        records = [self._later(*again) for again in self._again.pop(self._bursts, ())]
        for _ in range(self._chance.randint(1, 4)):
            records += self._new(self._chance.choice(SIZES))
        if elapsed_s >= self._large_at:
            self._large_at = elapsed_s + LARGE_EVERY_S
            records.append(self._timed(*self._send(LARGE)))
        return records

    def _new(self, size: int) -> list[Record]:
        tier, send = self._send(size)
        (kind,) = self._chance.choices((*KINDS, ""), (*SHARES, 1 - sum(SHARES)))
        if kind == TWICE:  # without deadline: the first could end by it, and free the id
            return [self._waiting(tier, send), self._record(tier, _named(send, TWICE))]
        if kind:
            at = self._bursts + self._chance.randint(*AGAIN_BURSTS)
            self._again.setdefault(at, []).append((kind, tier, send))
        return [self._waiting(tier, _named(send, REFUSED)) if kind == FREED else self._timed(tier, send)]

    def _later(self, kind: str, tier: str, send: dict[str, Any]) -> Record:
        again = _named(send, kind)
        return self._waiting(tier, again) if kind == FREED else self._record(tier, again)

    def _send(self, size: int) -> tuple[str, dict[str, Any]]:
        chance, number = self._chance, self._number
        self._number += 1
        tier = "basic" if size > 20 else chance.choice(("system", "template", "basic", "basic"))
        tenant = "alone" if chance.random() < 0.3 else f"tenant-{chance.randrange(20)}"
        to = [f"c{number}-{place}" for place in range(size)]
        send: dict[str, Any] = {"id": f"c{number}", "to": to, "tenant": tenant, "campaign": f"k{chance.randrange(5)}"}
        draw = chance.random()
        if draw < 0.5:
            send |= {"channel": "partner", "content": {"text": f"hello {chance.randrange(3)}"}}
        elif draw < 0.85:
            send |= {"channel": "notice", "content": {"type": "text", "text": f"hello {chance.randrange(3)}"}}
        else:
            send |= {"channel": "once", "content": {"text": "only once"}}
        return tier, send

    # --- when it may leave

    def _timed(self, tier: str, send: dict[str, Any]) -> Record:
        """Now and then not yet, and now and then not for ever."""
        chance, now_ms, times = self._chance, _now_ms(), dict[str, int]()
        if chance.random() < 0.1:
            times["not_before"] = now_ms + chance.randrange(LATER_S * 1000)
        if chance.random() < 0.02:
            times["deadline"] = times.get("not_before", now_ms) + 1 + chance.randrange(60_000)
            self.deadlines.update(send["to"])
        return self._record(tier, send | times)

    def _waiting(self, tier: str, send: dict[str, Any]) -> Record:
        """Mostly not yet: what waits on the log must not be taken for what waited there under the same id."""
        if self._chance.random() < 0.8:
            send["not_before"] = _now_ms() + self._chance.randint(*WAIT_MS)
        return self._record(tier, send)

    def _record(self, tier: str, send: dict[str, Any]) -> Record:
        if send["channel"] == "once":
            self.once.update(send["to"])
        return Record(f"{self._prefix}.{tier}", msgpack.packb(send), key=send["tenant"].encode())


def _named(send: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same to others."""
    return send | {"to": [f"{kind}{who}" for who in send["to"]]}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
