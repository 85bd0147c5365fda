"""What is not urgent takes turns: a little of it between two turns of the loop, so that what is urgent, which takes
several to go through the process, waits for no more than that at each (shell).

In: calls to begin, and coroutines with a piece of work of up to a millisecond. Out: the same, in the order they came,
as many a turn as it has time for; what is of `system` at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from engine.clock import NS_PER_MS, Clock
from engine.send import Tier

TURN_NS, LONG_NS = NS_PER_MS, 2 * NS_PER_MS  # that a turn takes, about: between the two
MOST = 16  # pieces a turn


class Turns:
    """One for all of a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting = deque[Callable[[], object]]()
        self._taken = False  # this turn, by a piece
        self._most = 1  # pieces of the next turn
        self._began_ns = 0  # the last one

    def add(self, tier: Tier, begin: Callable[[], object]) -> None:
        """Begin a call when its turn comes."""
        if tier is Tier.SYSTEM or self._is_first():
            begin()
        else:
            self._waiting.append(begin)

    async def mine(self, tier: Tier) -> None:
        """Wait for the turn of the piece of work that follows; let others have theirs."""
        if tier is Tier.SYSTEM or self._is_first():
            await asyncio.sleep(0)
            return
        came: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(partial(_come, came))
        await came

    def finish(self) -> None:
        """Nothing waits any longer."""
        while self._waiting:
            self._waiting.popleft()()

    def _is_first(self) -> bool:
        """Whether nothing waits, nor has gone in this turn."""
        if self._taken:
            return False
        self._taken, self._began_ns = True, self._clock.now_ns()
        self._loop.call_soon(self._some)
        return True

    def _some(self) -> None:
        now = self._clock.now_ns()
        took_ns, self._began_ns = now - self._began_ns, now
        if took_ns > LONG_NS:
            self._most = max(self._most // 2, 1)
        elif took_ns < TURN_NS:
            self._most = min(self._most + 1, MOST)
        self._taken = bool(self._waiting)
        for _ in range(min(self._most, len(self._waiting))):
            self._waiting.popleft()()
        if self._taken:
            self._loop.call_soon(self._some)


def _come(came: asyncio.Future[None]) -> None:
    if not came.done():  # else who waited was cut off
        came.set_result(None)
