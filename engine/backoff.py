"""Waiting longer after each failure, for shells that try again for ever."""

from __future__ import annotations

import asyncio


class Backoff:
    """From ``first_s`` on, doubled each time up to ``most_s``. ``next_s``: the coming wait, for the log line."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self.next_s = first_s
        self._first_s = first_s
        self._most_s = most_s

    async def wait(self) -> None:
        """It failed: wait before the next try."""
        wait, self.next_s = self.next_s, min(self.next_s * 2, self._most_s)
        await asyncio.sleep(wait)

    def reset(self) -> None:
        """It worked."""
        self.next_s = self._first_s
