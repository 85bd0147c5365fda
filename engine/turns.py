"""Spreads what is begun in the loop's callbacks over its turns (shell).

In: what to begin. Out: the same, in order, a few between two turns: what is urgent waits for no more than those.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVarTuple

Arguments = TypeVarTuple("Arguments")


class Turns(Generic[*Arguments]):
    """At most ``most`` calls of ``begin`` a turn."""

    def __init__(self, most: int, begin: Callable[[*Arguments], None]) -> None:
        self._most = most
        self._begin = begin
        self._loop = asyncio.get_running_loop()
        self._waiting = deque[tuple[*Arguments]]()

    def add(self, *arguments: *Arguments) -> None:
        """Begin it when its turn comes."""
        self._waiting.append(arguments)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._some)

    def finish(self) -> None:
        """Begin what still waits."""
        while self._waiting:
            self._begin(*self._waiting.popleft())

    def _some(self) -> None:
        for _ in range(min(self._most, len(self._waiting))):
            self._begin(*self._waiting.popleft())
        if self._waiting:
            self._loop.call_soon(self._some)
