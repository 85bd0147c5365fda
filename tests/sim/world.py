"""A world in one thread: processes that share nothing but wires and disks, and a clock that only waiting moves.

Each process has an event loop of its own, the ordinary one of asyncio, that never blocks: the world runs one turn of
one loop at a time, which one by chance, and when nobody has anything to do the clock jumps to what comes next. So a
process is killed, or stops for a while, between any two of its turns, as a real one is. What happens depends on the
seed alone.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar, TypeVarTuple, Unpack

from engine.clock import NS_PER_MS, NS_PER_S, Clock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
EPOCH_NS = 1_790_000_000 * NS_PER_S  # of the wall clock, when the world's is 0
BEGIN_NS = 1_000 * NS_PER_S
TURN_NS = 10_000  # what a turn takes
DISK_NS = 2 * NS_PER_MS
LAST_TURNS = 1_000  # what a killed process's tasks may take to notice


class World:
    """Time, chance, and the processes."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_ns = BEGIN_NS
        self.turns = 0
        self.disk_fails = 0.0  # how often a write to a state file does
        self.processes: list[Process] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._number = count()

    def after(self, delay_ns: float, act: Callable[[], None]) -> None:
        """Do it then. Not part of any process: nothing stops it."""
        heappush(self._events, (self.now_ns + int(delay_ns), next(self._number), act))

    def turn(self) -> None:
        """One turn of one process, or the clock moves on."""
        ready = [process for process in self.processes if process.ready()]
        if ready:
            self.turns += 1
            self.now_ns += TURN_NS
            self.chance.choice(ready).turn()
            return
        times = [process.next_ns for process in self.processes if process.next_ns is not None]
        if self._events:
            times.append(self._events[0][0])
        if not times:
            raise AssertionError("everybody waits for ever")
        self.now_ns = max(self.now_ns, min(times))
        while self._events and self._events[0][0] <= self.now_ns:
            heappop(self._events)[2]()

    @property
    def wall_ms(self) -> int:
        """ms since the epoch."""
        return (EPOCH_NS + self.now_ns) // NS_PER_MS


class Process:
    """A loop, and what runs in it."""

    def __init__(self, world: World, main: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        self.world = world
        self.alive = True
        self.frozen = False
        self.frozen_ns = 0  # in all
        self.loop = _Loop(self)
        world.processes.append(self)
        self.main = self.loop.create_task(main(self))

    def ready(self) -> bool:
        """Whether it has something to do now."""
        if self.frozen:
            return False
        due = self.loop.next_ns
        return self.loop.awake or (due is not None and due <= self.world.now_ns)

    @property
    def next_ns(self) -> int | None:
        """When it next has something to do if nothing happens before."""
        return None if self.frozen else self.loop.next_ns

    def turn(self) -> None:
        """Run what is ready, once."""
        self.loop.turn()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.frozen = True
        self.frozen_ns += int(seconds * NS_PER_S)
        self.world.after(seconds * NS_PER_S, self._thaw)

    def _thaw(self) -> None:
        self.frozen = False

    def kill(self) -> None:
        """SIGKILL. What it has put on the wire arrives; nothing it does from now on is seen by anybody: wires are dead,
        and its files belong to a copy that the next one does not use. (Its tasks end, so that nothing is left over.)"""
        self.alive = False
        if self in self.world.processes:
            self.world.processes.remove(self)
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        for _ in range(LAST_TURNS):
            if not asyncio.all_tasks(self.loop):
                break
            self.loop.turn()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # nobody asks a dead process
        self.loop.close()


class _Loop(asyncio.SelectorEventLoop):
    """Time is the world's; threads are none."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._number = count()
        self.awake = False
        super().__init__()

    def time(self) -> float:
        return self._process.world.now_ns / NS_PER_S

    def turn(self) -> None:
        """Run what is ready, timers that are due included."""
        self.awake = False
        while self._timers and self._timers[0][0] <= self._process.world.now_ns:
            heappop(self._timers)
        self.stop()  # after one turn
        self.run_forever()

    @property
    def next_ns(self) -> int | None:
        """When the next timer is due."""
        while self._timers and self._timers[0][2].cancelled():
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.awake = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        heappush(self._timers, (int(when * NS_PER_S) + 1, next(self._number), handle))
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """After the time a disk takes, on this thread."""
        future: asyncio.Future[T] = self.create_future()
        world = self._process.world

        def act() -> None:
            if future.cancelled():
                return
            try:
                if world.chance.random() < world.disk_fails:
                    raise sqlite3.OperationalError("disk I/O error")
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - as a thread's
                future.set_exception(error)

        self.call_later(world.chance.random() * DISK_NS / NS_PER_S, act)
        return future


class WorldClock(Clock):
    """The world's clocks."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now_ns(self) -> int:
        return self._world.now_ns

    def wall_ms(self) -> int:
        return self._world.wall_ms

    def offset_ns(self) -> int:
        return -EPOCH_NS
