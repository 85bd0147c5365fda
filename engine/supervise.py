"""Several worker processes under one parent (shell): starts them, keeps them alive, ends them together.

Each worker is this same command once more with ``--worker NAME``, told by a line on its standard input what to be
(engine.worker); that pipe stays open for as long as the supervisor lives, and a worker whose pipe has ended drains.
Invariant: a worker that died is started again, whatever it died of, until the supervisor is asked to end.
Never: delivers anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import msgspec
import structlog

from engine.backoff import Backoff
from engine.clock import NS_PER_S, Clock
from engine.config import Config
from engine.deal import deal_if_due, shared_by_workers
from engine.shares import worker_state, workers
from engine.state.in_hand import read_book, take_left, write_book
from engine.state.lock import lock
from engine.supervise_child import Child
from engine.supervise_watch import Watch
from engine.suspects import after
from engine.worker import Order

logger = structlog.get_logger("surgetank.supervise")
FIRST_S, MOST_S = 0.5, 15.0  # between two lives; less than Kafka keeps a member's partitions for it (30 s)
LIVED_S = 60.0  # after such a life the next wait is the first one again
KILL_AFTER_S = 30.0  # a drain takes 20 s, and a log that does not answer a little more
DRAINED = (0, -signal.SIGTERM)  # SIGTERM ends only a process that has not begun, with nothing to drain


class Supervisor:
    """Of one configuration's workers. ``command``: what this process was started as; ``text``: the configuration."""

    def __init__(self, config: Config, text: str, command: Sequence[str], clock: Clock) -> None:
        self._config = config
        self._text = text
        self._command = command
        self._clock = clock
        self._member = uuid4().hex  # of this run: no member of another one can be meant
        self._book = read_book(Path(config.state))  # of all workers: a partition may have moved between two crashes
        self._children = [Child(worker, clock) for worker in workers(config)]
        self._watch = Watch(self._children)
        self._stop = asyncio.Event()
        self._forced = False

    async def run(self) -> int:
        """Until SIGTERM or SIGINT, then drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked)
        await self._watch.start(self._config.http.metrics)
        with tempfile.TemporaryDirectory(prefix="surgetank-") as folder:
            watching = loop.create_task(self._watch.run())
            keeping = [loop.create_task(self._keep(child, Path(folder))) for child in self._children]
            try:
                logger.info("supervising", workers=[child.worker.name for child in self._children])
                stopped = loop.create_task(self._stop.wait())
                await asyncio.wait({stopped, watching, *keeping}, return_when=asyncio.FIRST_COMPLETED)
                return await self._drain(keeping)
            finally:
                self._kill()
                watching.cancel()
                await asyncio.gather(*keeping)
                await self._watch.close()
                await _cancelled(watching)

    def _asked(self) -> None:
        if self._stop.is_set():
            logger.warning("asked again to end: workers are killed")
            self._kill()
        self._stop.set()

    def _kill(self) -> None:
        self._stop.set()
        self._forced = True
        for child in self._children:
            child.signal(signal.SIGKILL)

    async def _drain(self, keeping: Sequence[asyncio.Task[None]]) -> int:
        self._stop.set()
        self._watch.draining = True
        for child in self._children:
            child.signal(signal.SIGTERM)
        _, late = await asyncio.wait(keeping, timeout=KILL_AFTER_S)
        if late:
            logger.error("workers did not drain in time: killed", seconds=KILL_AFTER_S)
            self._kill()
            await asyncio.wait(keeping)
        undrained = [child.worker.name for child in self._children if child.ended not in DRAINED]
        logger.info("all workers have ended", undrained=undrained)
        return 1 if undrained else 0

    async def _keep(self, child: Child, folder: Path) -> None:
        """Its lives, one after the other."""
        backoff = Backoff(FIRST_S, MOST_S)
        while not self._stop.is_set():
            began_ns = self._clock.now_ns()
            await self._live(child, folder / f"{child.worker.name}.{child.restarts}")
            lived_s = (self._clock.now_ns() - began_ns) / NS_PER_S
            if self._stop.is_set():
                return
            child.restarts += 1
            if lived_s > LIVED_S:
                backoff.reset()
            logger.error(
                "a worker has ended", worker=child.worker.name, how=_how(child.ended), lived_s=round(lived_s, 1),
                again_in_s=backoff.next_s,
            )  # fmt: skip
            await self._unless_stopped(backoff)

    async def _live(self, child: Child, socket: Path) -> None:
        """One life."""
        name = child.worker.name
        try:
            write_book(worker_state(self._config, name), self._book)
            process = await asyncio.create_subprocess_exec(
                *self._command, "--worker", name, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )  # a session of its own: Ctrl-C in a terminal is the supervisor's to hear
        except OSError as error:
            logger.error("a worker cannot be started", worker=name, error=str(error))
            await child.end(1)
            return
        child.begin(process, str(socket))
        if self._forced:
            child.signal(signal.SIGKILL)
        elif self._stop.is_set():
            child.signal(signal.SIGTERM)
        order = Order(name, str(socket), f"{self._member}-{name}", self._text)
        assert process.stdin is not None  # noqa: S101 - for the type checker
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        code = await process.wait()
        self._learn(name, code)
        await child.end(code)

    def _learn(self, name: str, code: int) -> None:
        """Of what it may have died."""
        try:
            left = take_left(worker_state(self._config, name))
            found = after(self._book, code, left)
            if found == self._book:
                return
            self._book = found
            write_book(Path(self._config.state), found)
        except OSError as error:
            logger.error("what a worker had in hand cannot be kept", worker=name, error=str(error))
            return
        logger.warning(
            "a worker crashed with records in hand", worker=name,
            records=sum(len(slice_.places) for slice_ in left), suspects=len(found.suspects),
        )  # fmt: skip

    async def _unless_stopped(self, backoff: Backoff) -> None:
        waits = {asyncio.create_task(backoff.wait()), asyncio.create_task(self._stop.wait())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Raises what it failed with."""
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return names.get(-code, f"signal {-code}")


async def supervise(config: Config, text: str, command: Sequence[str]) -> int:
    """Serve with the processes of [[workers]]; the exit code. Raises ConfigError, LogUnusable."""
    lock(Path(config.state))
    await deal_if_due(Path(config.state), shared_by_workers(config))
    return await Supervisor(config, text, command, Clock()).run()
