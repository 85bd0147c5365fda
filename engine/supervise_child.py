"""One worker as its supervisor knows it (shell): the process of its present life, and what all its lives have counted.

Invariant: what an answer counted is never forgotten; what a life counted after its last answer is lost with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

import aiohttp
import msgspec

from engine.clock import NS_PER_S, Clock
from engine.merge_metrics import Families, families, merge
from engine.probes import STATE, State
from engine.shares import Worker

ASK_S = 1.0  # a worker answers within milliseconds; one that does not is left out


class Child:
    """A worker. One life at a time: ``begin``, ``end``."""

    def __init__(self, worker: Worker, clock: Clock) -> None:
        self.worker = worker
        self.restarts = 0
        self.missed = 0  # questions not answered
        self.started = False  # in any life
        self.state: State | None = None  # None: it did not answer when it was last asked
        self.ended: int | None = None  # how its last life ended
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._life = 0
        self._good_ns = 0
        self._told: Families = {}  # of this life, as of its last answer
        self._before: Families = {}  # of the ended ones

    def begin(self, process: asyncio.subprocess.Process, socket: str) -> None:
        """It lives, and will answer there."""
        self._process = process
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=socket), timeout=aiohttp.ClientTimeout(total=ASK_S)
        )
        self._life += 1
        self._good_ns = self._clock.now_ns()

    async def end(self, code: int) -> None:
        """It has died."""
        session, self._session, self._process = self._session, None, None
        self.ended, self.state = code, None
        self._before, self._told = merge([], [self._before, self._told]), {}
        if session is not None:
            await session.close()

    @property
    def silent_s(self) -> float:
        """How long it has not said that it is well; 0 while it does not live."""
        return (self._clock.now_ns() - self._good_ns) / NS_PER_S if self._process is not None else 0.0

    def signal(self, number: signal.Signals) -> None:
        """Send it, if it lives."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ask(self) -> None:
        """Learn how it is; takes ASK_S at most."""
        life, session = self._life, self._session
        if session is None:
            return
        try:
            async with session.get(f"http://worker{STATE}") as response:
                state = msgspec.msgpack.decode(await response.read(), type=State)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError):
            state = None
        if life != self._life or self._process is None:
            return  # of a life that has ended meanwhile
        self.state = state
        if state is None:
            self.missed += 1
            return
        self._told = families(state.metrics) or self._told
        self.started = self.started or not state.startup
        if not state.live:
            self._good_ns = self._clock.now_ns()

    def metrics(self) -> tuple[list[Families], list[Families]]:
        """As it is, and as it was, for ``merge``."""
        if self.state is None:
            return [], [self._told, self._before]
        return [self._told], [self._before]
