"""Starts what a scenario runs against: simulator, engine, and the log between them, as real processes on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bench.kafka import free_port as free_port
from engine.config import Config
from engine.logs import Log
from engine.logs.open import open_log
from engine.topics import topic_specs

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 40.0


class Child:
    """A process of ours. Its standard error goes to ``log``; it is ended with the scenario, whatever happened."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @classmethod
    async def start(cls, name: str, arguments: list[str], folder: Path) -> Child:
        """``python -m ARGUMENTS`` in this checkout."""
        log = folder / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=file, cwd=Path.cwd()
            )
        return cls(name, process, log)

    def check(self) -> None:
        """Raises RuntimeError with the end of its log when it has ended."""
        if self.process.returncode is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def stop(self) -> int:
        """SIGTERM, then SIGKILL when it takes too long. Returns the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_WITHIN_S)
            except TimeoutError:
                self.process.kill()
        return await self.process.wait()


class Simulator:
    """A running platform simulator."""

    def __init__(self, child: Child, url: str, session: aiohttp.ClientSession) -> None:
        self.child = child
        self.url = url
        self._session = session

    async def get(self, path: str) -> Any:
        """JSON of GET /sim/``path``."""
        async with self._session.get(f"{self.url}/sim/{path}") as answer:
            answer.raise_for_status()
            return await answer.json()

    async def post(self, path: str, body: Any) -> None:
        """POST /sim/``path``."""
        async with self._session.post(f"{self.url}/sim/{path}", json=body) as answer:
            answer.raise_for_status()

    async def delete(self, path: str) -> None:
        """DELETE /sim/``path``."""
        async with self._session.delete(f"{self.url}/sim/{path}") as answer:
            answer.raise_for_status()

    async def lines(self, path: str) -> AsyncIterator[Any]:
        """The lines of an NDJSON answer."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
        async with self._session.get(f"{self.url}/sim/{path}", timeout=timeout) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                yield json.loads(line)


class Engine:
    """A running ``surgetank serve``."""

    def __init__(self, child: Child, metrics: str, session: aiohttp.ClientSession) -> None:
        self.child = child
        self._metrics = metrics
        self._session = session

    async def ready(self) -> bool:
        """What /readyz says; False while nobody listens."""
        try:
            async with self._session.get(f"{self._metrics}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def samples(self, *series: str) -> Samples:
        """A scrape; of these series, without ``surgetank_``, or of all: which costs the engine ten times as much."""
        params = [("name[]", f"surgetank_{one}") for one in series]
        async with self._session.get(f"{self._metrics}/metrics", params=params) as answer:
            answer.raise_for_status()
            return Samples(await answer.text())


class Samples:
    """One scrape's samples."""

    def __init__(self, text: str) -> None:
        self._rows = [
            (sample.name.removeprefix("surgetank_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of that name with those labels."""
        return sum(
            value for n, have, value in self._rows if n == name and all(have.get(k) == v for k, v in labels.items())
        )

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums of a name, by one label."""
        sums: dict[str, float] = {}
        for n, have, value in self._rows:
            if n == name and all(have.get(k) == v for k, v in labels.items()):
                sums[have[label]] = sums.get(have[label], 0.0) + value
        return sums


@asynccontextmanager
async def simulator(
    folder: Path, options: Mapping[str, Any], session: aiohttp.ClientSession, ledger: bool = True
) -> AsyncIterator[Simulator]:
    """Started with ``options``; its ledger in memory and, if asked for, in ``folder``."""
    config = folder / "simulator.json"
    config.write_text(json.dumps(options))
    arguments = ["bench", "simulator", "--port", "0", "--config", str(config)]
    if ledger:
        arguments += ["--ledger", str(folder / "ledger.db")]
    child = await Child.start("simulator", arguments, folder)
    try:
        assert child.process.stdout is not None
        line = await asyncio.wait_for(child.process.stdout.readline(), READY_WITHIN_S)
        if not line:
            await child.process.wait()
            child.check()
        yield Simulator(child, json.loads(line)["url"], session)
    finally:
        await child.stop()


@asynccontextmanager
async def engine(folder: Path, config: Path, port: int, session: aiohttp.ClientSession) -> AsyncIterator[Engine]:
    """``surgetank serve`` on ``config``, ready to take sends; ``port`` is where the config has its metrics."""
    arguments = ["engine.cli", "serve", "-c", str(config), "--log-format", "json"]
    child = await Child.start("engine", arguments, folder)
    running = Engine(child, f"http://127.0.0.1:{port}", session)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not await running.ready():
            child.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the engine is not ready after {READY_WITHIN_S:.0f} s:\n{child.tail()}")
            await asyncio.sleep(0.05)
        yield running
    finally:
        await child.stop()


def log_keys(folder: Path, bootstrap: str | None) -> str:
    """The keys of [log]: the cluster at ``bootstrap``, or a file in ``folder``."""
    return f'kind = "kafka"\nbootstrap = "{bootstrap}"' if bootstrap else f'kind = "sqlite"\npath = "{folder}/log.db"'


@asynccontextmanager
async def opened(config: Config, engine: bool = True) -> AsyncIterator[Log]:
    """The log of the configuration, its topics there."""
    log = open_log(config.log, state=config.state, engine=engine)
    await log.start()
    try:
        await log.create_topics(topic_specs(config))
        yield log
    finally:
        await log.close()


def machine() -> str:
    """What the figures were measured on."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    version = sys.version.split()[0]
    return f"{model}, {os.cpu_count()} CPUs, {memory:.0f} GiB, Linux {os.uname().release}, Python {version}"
