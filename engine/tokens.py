"""Access tokens, one for each account: asked for once however many calls wait, renewed before they end.

In: how to ask for a token, and a clock. Out: a token that should be valid now. Invariant: at most one request for an
account at a time, and none while the last one's failure is fresh. Never: asks for a token nobody wants (no timers), nor
shows one to a log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.clock import NS_PER_S, Clock
from engine.drivers import Token
from engine.errors import EngineError, PlatformRefused, PlatformUnavailable

EARLY_NS = 300 * NS_PER_S  # WeChat hands out the next token 5 minutes before the end, both valid
LIFE_PERCENT = 90  # of a short life; the later of the two
UNAVAILABLE_NS = NS_PER_S  # no new request for this long after one that failed
REFUSED_NS = 60 * NS_PER_S  # after refused credentials: only an operator can change that


class _Entry:
    __slots__ = ("again_ns", "end_ns", "error", "renew_ns", "task", "value")

    def __init__(self) -> None:
        self.value = ""
        self.renew_ns = 0
        self.end_ns = 0
        self.again_ns = 0
        self.error: EngineError | None = None
        self.task: asyncio.Task[None] | None = None


class Tokens:
    """``fetch`` asks the platform; it raises PlatformUnavailable or PlatformRefused."""

    def __init__(self, fetch: Callable[[str], Awaitable[Token]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def current(self, account: str) -> str:
        """The token at hand, empty when there is none that is valid. Renews one that ends soon meanwhile. ~0.5 us."""
        entry = self._entries.get(account)
        if entry is None:
            return ""
        now = self._clock.now_ns()
        if now >= entry.end_ns:
            return ""
        if now >= entry.renew_ns and now >= entry.again_ns:
            self._ask(account, entry)
        return entry.value

    async def get(self, account: str) -> str:
        """The token at hand, or the next one. Raises PlatformUnavailable or PlatformRefused."""
        value = self.current(account)
        if value:
            return value
        entry = self._entries.setdefault(account, _Entry())
        if entry.task is None and entry.error is not None and self._clock.now_ns() < entry.again_ns:
            raise type(entry.error)(*entry.error.args)
        # Shielded: who waits may be cancelled, the others still want it.
        await asyncio.shield(self._ask(account, entry))
        if entry.error is not None:
            raise type(entry.error)(*entry.error.args)
        if not entry.value:  # refused by the platform before we came to read it
            raise PlatformUnavailable("the new access token is no longer valid")
        return entry.value

    def invalidate(self, account: str, value: str) -> None:
        """The platform no longer takes ``value``. Nothing happens when another is already at hand: of many calls
        refused with the same token only the first asks for a new one."""
        entry = self._entries.get(account)
        if entry is not None and entry.value == value:
            entry.value = ""
            entry.end_ns = 0

    async def close(self) -> None:
        """Stop asking."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ask(self, account: str, entry: _Entry) -> asyncio.Task[None]:
        if entry.task is None:
            entry.task = asyncio.get_running_loop().create_task(self._renew(account, entry))
        return entry.task

    async def _renew(self, account: str, entry: _Entry) -> None:
        asked_ns = self._clock.now_ns()  # its life began no earlier
        try:
            token = await self._fetch(account)
        except (PlatformUnavailable, PlatformRefused) as error:
            wait_ns = REFUSED_NS if isinstance(error, PlatformRefused) else UNAVAILABLE_NS
            entry.error = error
            entry.again_ns = self._clock.now_ns() + wait_ns
        else:
            life_ns = int(token.expires_s * NS_PER_S)
            entry.value = token.value
            entry.renew_ns = asked_ns + max(life_ns * LIFE_PERCENT // 100, life_ns - EARLY_NS)
            entry.end_ns = asked_ns + life_ns
            entry.error = None
        finally:
            entry.task = None
