"""What the crash benchmark feeds, for as long as it runs: sends of 1 to 10,000 recipients, of one and many tenants and
campaigns, in three tiers, some of which may not leave yet.

Every recipient's id is its own, so that ledgers can be joined on it. The same seed gives the same sends.
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


class Feed:
    """``burst`` makes the next records. ``deadlines``: recipients that may expire; ``once``: whose channel forbids
    repeats."""

    def __init__(self, prefix: str, seed: int) -> None:
        self.deadlines: set[str] = set()
        self.once: set[str] = set()
        self._prefix = prefix
        self._chance = random.Random(seed)
        self._number = 0
        self._large_at = 0.0

    def burst(self, elapsed_s: float) -> list[Record]:
        """A few sends; now and then a large one."""
        records = [self._record(self._chance.choice(SIZES)) for _ in range(self._chance.randint(1, 4))]
        if elapsed_s >= self._large_at:
            self._large_at = elapsed_s + LARGE_EVERY_S
            records.append(self._record(LARGE))
        return records

    def _record(self, size: int) -> Record:
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
            self.once.update(to)
        now_ms = time.time_ns() // 1_000_000
        if chance.random() < 0.1:
            send["not_before"] = now_ms + chance.randrange(LATER_S * 1000)
        if chance.random() < 0.02:
            send["deadline"] = send.get("not_before", now_ms) + 1 + chance.randrange(60_000)
            self.deadlines.update(to)
        return Record(f"{self._prefix}.{tier}", msgpack.packb(send), key=tenant.encode())
