"""What is not urgent takes turns: a little of it between two turns of the loop, so that what is urgent, which takes
several to go through the process, waits for no more than that at each (shell).

In: calls to begin, and coroutines with a piece of work of about ``piece_ns``. Out: the same, in the order they came, as
many a turn as it has time for; what is of `system` at once.

Where something of `system` has come lately, pieces are smaller, no turn follows another with any, and none is done
while the loop has other work, which may be the fetch, the answer or the writing that the next urgent send waits for (it
needs some fifteen turns) - for so many turns at most, so that whatever that work is, the others go on too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.send import Tier

PIECE_NS, SMALL_NS = NS_PER_MS, 3 * NS_PER_MS // 10  # of the loop's time; a turn's pieces take once to twice as much
LATELY_NS = NS_PER_S
BUSY_NS = NS_PER_MS // 10  # a turn that took longer had work
PATIENCE = 8  # turns
MOST = 16  # pieces a turn


class Turns:
    """One for all of a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting = deque[Callable[[], object]]()
        self._taken = False  # this turn, by a piece
        self._had = True  # the last turn, pieces
        self._waited = 0  # turns, for others
        self._most = 1  # pieces of the next turn
        self._began_ns = 0  # the last one
        self._urgent_ns = clock.now_ns() - LATELY_NS

    @property
    def piece_ns(self) -> int:
        """How long a piece of work should take now."""
        return SMALL_NS if self._clock.now_ns() - self._urgent_ns < LATELY_NS else PIECE_NS

    def add(self, tier: Tier, begin: Callable[[], object]) -> None:
        """Begin a call when its turn comes."""
        if self._may(tier):
            begin()
        else:
            self._waiting.append(begin)

    async def mine(self, tier: Tier) -> None:
        """Wait for the turn of the piece of work that follows; let others have theirs."""
        if self._may(tier):
            await asyncio.sleep(0)
            return
        came: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(partial(_come, came))
        await came

    def finish(self) -> None:
        """Nothing waits any longer."""
        while self._waiting:
            self._waiting.popleft()()

    def _may(self, tier: Tier) -> bool:
        """At once: it is urgent, or nothing waits, nor has gone in this turn."""
        if tier is Tier.SYSTEM:
            self._urgent_ns = self._clock.now_ns()
            return True
        if self._taken:
            return False
        self._taken = self._had = True
        self._began_ns = self._clock.now_ns()
        self._loop.call_soon(self._some)
        return True

    def _some(self) -> None:
        now, piece_ns = self._clock.now_ns(), self.piece_ns
        took_ns, self._began_ns = now - self._began_ns, now
        if self._had:
            if took_ns > 2 * piece_ns:
                self._most = max(self._most // 2, 1)
            elif took_ns < piece_ns:
                self._most = min(self._most + 1, MOST)
        if self._waiting and piece_ns < PIECE_NS and self._others(took_ns):
            self._loop.call_soon(self._some)
            return
        self._had = self._taken = bool(self._waiting)
        self._waited = 0
        for _ in range(min(self._most, len(self._waiting))):
            self._waiting.popleft()()
        if self._taken:
            self._loop.call_soon(self._some)

    def _others(self, took_ns: int) -> bool:
        """Whether the next turn is left to others. What a turn with pieces took says nothing about them."""
        waits = self._had or (took_ns > BUSY_NS and self._waited < PATIENCE)
        self._waited = 0 if self._had else self._waited + 1
        self._had = False
        return waits


def _come(came: asyncio.Future[None]) -> None:
    if not came.done():  # else who waited was cut off
        came.set_result(None)
