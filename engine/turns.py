"""What is not urgent takes turns: a little of it between two turns of the loop, so that what is urgent, which takes
several to go through the process, waits for no more than that at each (shell).

In: calls to begin, and coroutines with a piece of work of about ``piece_ns``. Out: the same, in the order they came, as
many a turn as it has time for; what is of `system` at once.

Where something of `system` has come lately, slices of intake are smaller, and nothing is done while the loop has other
work, which may be the fetch, the answer or the writing that the next urgent send waits for (it needs some fifteen
turns) - for so long at most, so that whatever that work is, the others go on too.
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
PATIENCE_NS = 3 * NS_PER_MS
MOST = 16  # pieces a turn


class Turns:
    """One for all of a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting = deque[Callable[[], object]]()
        self._taken = False  # this turn, by a piece or by others
        self._gone_ns = 0  # the last pieces
        self._most = 1  # pieces of the next turn
        self._began_ns = 0  # the last one
        self._urgent_ns = clock.now_ns() - LATELY_NS

    def piece_ns(self, tier: Tier) -> int:
        """How long a piece of its work should take now."""
        return SMALL_NS if tier is not Tier.SYSTEM and self._is_urgent(self._clock.now_ns()) else PIECE_NS

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
        """At once: it is urgent, or nobody has this turn."""
        if tier is Tier.SYSTEM:
            self._urgent_ns = self._clock.now_ns()
            return True
        if self._taken:
            return False
        self._taken = True
        self._began_ns = self._gone_ns = self._clock.now_ns()
        self._loop.call_soon(self._some)
        return True

    def _is_urgent(self, now: int) -> bool:
        return now - self._urgent_ns < LATELY_NS

    def _some(self) -> None:
        now, began_ns = self._clock.now_ns(), self._began_ns
        took_ns, self._began_ns = now - began_ns, now
        urgent = self._is_urgent(now)
        if began_ns == self._gone_ns:  # the turn that has ended had pieces
            piece_ns = SMALL_NS if urgent else PIECE_NS
            if took_ns > 2 * piece_ns:
                self._most = max(self._most // 2, 1)
            elif took_ns < piece_ns:
                self._most = min(self._most + 1, MOST)
        if urgent and took_ns > BUSY_NS and now - self._gone_ns < PATIENCE_NS:
            self._loop.call_soon(self._some)
            return
        self._taken = bool(self._waiting)
        for _ in range(min(self._most, len(self._waiting))):
            self._waiting.popleft()()
        if self._taken:
            self._gone_ns = now
            self._loop.call_soon(self._some)


def _come(came: asyncio.Future[None]) -> None:
    if not came.done():  # else who waited was cut off
        came.set_result(None)
