"""What processes are connected by: to the broker, and to the platforms. In order, slow, and cut at times.

The platforms are the simulator's own (``bench.simulator_platforms``): what they answer, count and remember is decided
where the request arrives. Only the HTTP between ``engine.deliver`` and them is replaced.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from unittest.mock import patch
from urllib.parse import urlsplit

from bench.simulator_ledger import DELIVERED, DROPPED, DUPLICATE, INVALID, VERDICTS, Ledger
from bench.simulator_limits import ns
from bench.simulator_options import Options, Outage
from bench.simulator_outage import GARBAGE, Outages
from bench.simulator_platforms import Answer, Ask, Platform, query_of
from bench.simulator_webhook import Webhook
from bench.simulator_wecom import WeCom
from engine.clock import NS_PER_MS, NS_PER_S
from engine.deliver import CONNECT, RESET, TIMEOUT, Deliverer
from engine.drivers import CallResult, Reply, Request
from engine.errors import EngineError, LogUnavailable
from tests.sim.world import EPOCH_NS, Process, World

T = TypeVar("T")
REACHED = {VERDICTS[verdict] for verdict in (DELIVERED, DROPPED, INVALID, DUPLICATE)}
FAST_NS, SLOW_NS = 3 * NS_PER_MS, 300 * NS_PER_MS
NO_ANSWER_S = (0.01, 1.0, 3.0)


@dataclass
class Weather:
    """What is wrong with the network and the broker at present."""

    broker_down: bool = False
    cut: float = 0.0  # how often a question to the broker, or its answer, is lost
    slow: float = 0.0  # how often something takes long


class Wire:
    """One connection of a process to the broker. What is sent first arrives first."""

    def __init__(self, process: Process, weather: Weather) -> None:
        self._process = process
        self._weather = weather
        self._last_ns = 0

    async def call(self, act: Callable[[], T]) -> T:
        """See ``tests.sim.log.Link``."""
        process, world = self._process, self._process.world
        if not process.alive:
            raise asyncio.CancelledError
        future: asyncio.Future[T] = process.loop.create_future()

        def arrived() -> None:
            if self._weather.broker_down or world.chance.random() < self._weather.cut:
                lost(False)
                return
            try:
                result = act()
            except (EngineError, ValueError) as error:
                failure = error
                world.after(delay_ns(world, self._weather), lambda: self._answer(future, failure))
                return
            if world.chance.random() < self._weather.cut:
                lost(True)
            else:
                world.after(delay_ns(world, self._weather), lambda: self._answer(future, None, result))

        def lost(done: bool) -> None:
            error = LogUnavailable(f"no answer ({'done' if done else 'not done'})")
            world.after(world.chance.choice(NO_ANSWER_S) * NS_PER_S, lambda: self._answer(future, error))

        self._last_ns = max(self._last_ns, world.now_ns + delay_ns(world, self._weather))
        world.after(self._last_ns - world.now_ns, arrived)
        return await future

    def _answer(self, future: asyncio.Future[T], error: Exception | None, *result: T) -> None:
        if not self._process.alive or future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(*result)


def delay_ns(world: World, weather: Weather) -> int:
    """How long something is under way."""
    longest = SLOW_NS if world.chance.random() < weather.slow else FAST_NS
    return world.chance.randrange(longest)


@dataclass
class Made:
    """One call of a process. ``reached``: whom it had an effect on; ``answered_ns``: when the process learned of it."""

    process: Process
    ids: list[str]
    begun_ns: int
    reached: frozenset[str] = frozenset()
    answered_ns: int | None = None


@dataclass
class Platforms:
    """All platforms, their ledger, and every call as it was begun."""

    world: World
    options: Options
    weather: Weather
    ledger: Ledger = field(default_factory=Ledger)
    outages: Outages = field(default_factory=Outages)
    calls: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds: tuple[type[Platform], ...] = (WeCom, Webhook)
        self.platforms = {kind.name: kind(self.options, self.ledger) for kind in kinds}

    def disturb(self, outage: Outage) -> None:
        """From now on."""
        self.outages.add([outage], self.world.now_ns)

    async def exchange(self, process: Process, request: Request, timeout_s: float) -> Reply | CallResult:
        """What ``engine.deliver`` does over HTTP."""
        if not process.alive:
            raise asyncio.CancelledError
        world = self.world
        made = Made(process, _ids(request), world.now_ns)
        self.calls.append(made)
        future: asyncio.Future[Reply | CallResult] = process.loop.create_future()

        def answer(after_ns: float, result: Reply | CallResult) -> None:
            def deliver() -> None:
                if process.alive and not future.done():
                    made.answered_ns = world.now_ns if isinstance(result, Reply) else None
                    future.set_result(result)

            world.after(after_ns, deliver)

        world.after(delay_ns(world, self.weather), lambda: self._arrived(request, made, answer))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            made.answered_ns = None
            return TIMEOUT

    def _arrived(self, request: Request, made: Made, answer: Callable[[float, Reply | CallResult], None]) -> None:
        world = self.world
        url = urlsplit(request.url)
        _, name, path = url.path.split("/", 2)
        platform, back_ns = self.platforms[name], delay_ns(world, self.weather)
        trouble = self.outages.at(name, world.now_ns)
        kind = trouble.kind if trouble is not None else ""
        left_ns = trouble.end_ns - world.now_ns if trouble is not None else 0
        if kind in ("refuse", "error", "garbage"):
            told = {"refuse": Answer(503, b""), "error": platform.busy(), "garbage": Answer(200, GARBAGE)}[kind]
            answer(back_ns, Reply(told.status, told.headers or {}, told.body))
        elif kind == "hang":
            answer(left_ns, RESET)
        elif kind == "reset":
            answer(back_ns, world.chance.choice((RESET, CONNECT)))
        else:
            now = world.now_ns
            ask = Ask(
                request.method, f"/{path}", query_of(url.query), request.headers, request.body, now, EPOCH_NS + now
            )
            before = self.ledger.rows
            told = platform.serve(ask)
            rows = self.ledger.entries(before, self.ledger.rows)
            made.reached = frozenset(row.recipient for row in rows if row.verdict in REACHED)
            took_ns = left_ns if kind == "slow" else back_ns
            if told.held is not None:
                held = told.held
                world.after(took_ns, lambda: platform.done(held))
            answer(took_ns, RESET if kind == "reset_after" else Reply(told.status, told.headers or {}, told.body))

    @contextmanager
    def reached(self, process_of: Callable[[asyncio.AbstractEventLoop], Process]) -> Iterator[None]:
        """Meanwhile the engine's calls go here."""

        async def http(deliverer: Deliverer, request: Request) -> Reply | CallResult:
            timeout_s = deliverer._config.timeout / NS_PER_S
            return await self.exchange(process_of(asyncio.get_running_loop()), request, timeout_s)

        async def start(_: Deliverer) -> None:
            """No connections are needed."""

        with patch.object(Deliverer, "_http", http), patch.object(Deliverer, "start", start):
            yield


def _ids(request: Request) -> list[str]:
    """Whom a call is for; nobody: it asks for a token."""
    if not request.body:
        return []
    body = json.loads(request.body)
    return [to["id"] for to in body["to"]] if "to" in body else body["touser"].split("|")


def outage(kind: str, endpoint: str, seconds: float) -> Outage:
    """One of the simulator's."""
    return Outage(endpoint=endpoint, kind=kind, duration_s=seconds)  # type: ignore[arg-type]


__all__ = ["Made", "Platforms", "Weather", "Wire", "ns", "outage"]
