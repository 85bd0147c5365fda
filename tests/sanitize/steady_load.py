"""The core under a load of all kinds, on a virtual clock: more than it can send first, to warm up, and then a steady
one; with allocations.c preloaded, which tells what that allocates."""

from __future__ import annotations

import ctypes
import random
from array import array
from pathlib import Path

import ext.queues
import ext.schedule
from ext.schedule import (
    ACCOUNT,
    ASAP,
    CALLS,
    CHANNEL,
    EACH_TENANT,
    GLOBAL,
    OF_TENANT,
    PACED,
    RECIPIENTS,
    Core,
)

S = 10**9
STEP_NS = S // 100
WARM_UP, SETTLE, MEASURED = 500, 4000, 1000  # steps: of a load ten times as high, until what came then has left, and
FLYING = 20  # calls


class Load:
    """A core, and what happens to it in a hundredth of a second."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.now = self.sends = 0
        self.flying: list[tuple[int, int, int, int]] = []
        self.core = core = Core(pacing=(ASAP, ASAP, PACED))
        for channel, cap in enumerate((10, 100)):
            core.add_channel(50, 5, cap)
            core.add_account(channel)
            core.add_account(channel)
        core.add_limit(GLOBAL, 0, CALLS, 100_000, 60 * S)
        core.add_limit(CHANNEL, 0, CALLS, 1000, S)
        core.add_limit(ACCOUNT, 1, RECIPIENTS, 1000, S)
        core.add_limit(OF_TENANT, 3, CALLS, 40, S)
        core.add_limit(EACH_TENANT, 1, CALLS, 40, S)

    def step(self, number: int, sends: int) -> None:
        """Push, pop, answer, reap; at times a cancel, a pause and a resume."""
        self.now += STEP_NS
        self.push(sends)
        while (popped := self.core.pop_batches(self.now, 256)).count:
            for b in range(popped.count):
                n = popped.start[b + 1] - popped.start[b]
                self.flying.append((popped.account[b], popped.tier[b], n, popped.tenant[b]))
        self.random.shuffle(self.flying)
        while len(self.flying) > FLYING:
            account, tier, n, tenant = self.flying.pop()
            self.core.release(self.now, account, tier, n, n if self.random.random() < 0.9 else 0, 0, tenant)
        while self.core.reap(self.now, 4096).more:
            pass
        if number % 20 == 0:
            self.core.cancel(self.random.randrange(10), self.random.randrange(3))
            self.core.pause(OF_TENANT, 7)
        if number % 20 == 10:
            self.core.resume(OF_TENANT, 7)
        self.core.next_due(self.now)

    def push(self, sends: int) -> None:
        """To 10 tenants with 3 campaigns of 5 contents each; a fifth is due soon, waits, or ends before it leaves."""
        draw, now = self.random, self.now

        def some(code: str, *of: int) -> array[int]:
            return array(code, [draw.choice(of) for _ in range(sends)])

        soon = draw.randrange(1, 2 * S)
        counts = some("I", 1, 1, 1, 5)
        n = sum(counts)
        self.core.push_many(
            now, array("I", range(self.sends, self.sends + sends)), some("B", 0, 1, 1, 2, 2, 2),
            some("I", *range(4)), some("I", *range(10)), some("I", *range(3)), some("I", *range(5)),
            some("B", 0, 0, 0, 1), some("q", now, now, now, now, now + soon),
            some("q", now + 5 * S, now + 10 * S, now + soon), some("q", *[now + 3600 * S] * 4, now + soon),
            some("q", 0, STEP_NS * 5), some("q", now), counts, array("H", bytes(2 * n)), b"\x08" * n,
            draw.randbytes(8 * n),
        )  # fmt: skip
        self.sends += sends


def watched() -> ctypes.CDLL:
    """What was preloaded, told where the core's modules stand."""
    library = ctypes.CDLL(None)
    names = {str(Path(str(module.__file__)).resolve()) for module in (ext.queues, ext.schedule)}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, may, *_, name = line.split()
        if name in names and "x" in may:
            start, end = (int(each, 16) for each in addresses.split("-"))
            library.watch_module(ctypes.c_size_t(start), ctypes.c_size_t(end))
    return library


def main() -> None:
    """Print how many recipients left while allocations were told."""
    library, load = watched(), Load()
    for number in range(WARM_UP + SETTLE):
        load.step(number, 80 if number < WARM_UP else 8)
    before = load.core.stats()["popped"]
    library.count_allocations(1)
    for number in range(MEASURED):
        load.step(number, 8)
    library.count_allocations(0)
    print(*(after - n for after, n in zip(load.core.stats()["popped"], before, strict=True)))


if __name__ == "__main__":
    main()
