"""A time limit for calls that may all take equally long (shell), for less than the loop's own timers cost a call.

In: blocks of tasks as they are entered and left. Out: TimeoutError in a block that takes too long.
Invariant: as ``asyncio.timeout``: a block is cancelled at its time, never before; who else cancels it is not mistaken.
Never: sets a timer for each. Those that began first end first, so one timer, for the oldest, watches all.
"""

from __future__ import annotations

import asyncio
from itertools import takewhile
from types import TracebackType
from typing import Self


class TimeLimit:
    """``with limit.block():`` around what a task awaits. Cost: about 1 us a block."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.running: dict[_Block, None] = {}  # oldest first
        self._watched = False

    def block(self) -> _Block:
        """Raises TimeoutError out of the block when it takes longer."""
        return _Block(self)

    def watch(self) -> None:
        """See to it that the oldest is looked at when its time is over."""
        if not self._watched and self.running:
            self._watched = True
            asyncio.get_running_loop().call_at(next(iter(self.running)).until, self._look)

    def _look(self) -> None:
        self._watched = False
        now = asyncio.get_running_loop().time()
        for block in [*takewhile(lambda block: block.until <= now, self.running)]:
            del self.running[block]
            block.expire()
        self.watch()


class _Block:
    __slots__ = ("_cancelling", "_expired", "_limit", "_task", "until")

    def __init__(self, limit: TimeLimit) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a time limit is for what runs in a task")
        self._limit = limit
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        self.until = loop.time() + limit.seconds

    def expire(self) -> None:
        """Its time is over."""
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        running = self._limit.running
        running[self] = None
        if len(running) == 1:  # else the oldest is watched
            self._limit.watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._expired:
            del self._limit.running[self]
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
