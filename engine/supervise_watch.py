"""All workers seen as one (shell): asks them, answers for them at ``http.metrics``, and ends one that hangs.

A scrape waits for no worker longer than a second. One that does not answer then is missing from the gauges
(``surgetank_worker_up`` 0); what it had counted stays in the sums.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.merge_metrics import merge, metrics
from engine.probes import answering, exposed, listen
from engine.supervise_child import Child

logger = structlog.get_logger("surgetank.supervise")
WATCH_S = 5.0  # what a worker counted in less than this before its death is lost
HANGS_S = 60.0  # without a word that all is well; Kafka has given its partitions away after 30


class Watch:
    """The workers' common face. A prometheus_client collector."""

    def __init__(self, children: Sequence[Child]) -> None:
        self.draining = False
        self._children = children
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT; an empty address is off. Raises ConfigError."""
        if address:
            paths = {"/metrics": self._metrics, "/startupz": self._startupz, "/readyz": self._readyz}
            self._runner = await listen(address, {**paths, "/livez": answering(lambda: "")})

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def run(self) -> None:
        """Ask them every WATCH_S, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            await self.ask()
            for child in self._children:
                if child.silent_s > HANGS_S and not self.draining:
                    logger.error("a worker hangs; it is killed", worker=child.worker.name, silent_s=child.silent_s)
                    child.signal(signal.SIGKILL)

    async def ask(self) -> None:
        """All of them at once."""
        await asyncio.gather(*(child.ask() for child in self._children))

    def collect(self) -> Iterator[Metric]:
        """As they last were."""
        now, before = [], []
        for child in self._children:
            lives, ended = child.metrics()
            now += lives
            before += ended
        yield from metrics(merge(now, before))
        up = GaugeMetricFamily("surgetank_worker_up", "Whether the worker answers", labels=["worker"])
        restarts = CounterMetricFamily("surgetank_worker_restarts", "Lives after the first", labels=["worker"])
        missed = CounterMetricFamily("surgetank_worker_missed_scrapes", "Questions not answered", labels=["worker"])
        for child in self._children:
            up.add_metric([child.worker.name], child.state is not None)
            restarts.add_metric([child.worker.name], child.restarts)
            missed.add_metric([child.worker.name], child.missed)
        yield from (up, restarts, missed)

    async def _metrics(self, request: web.Request) -> web.Response:
        await self.ask()
        return await exposed(self._registry, request)

    async def _startupz(self, request: web.Request) -> web.Response:
        await self.ask()
        waiting = [child.worker.name for child in self._children if not child.started]
        return await answering(lambda: f"starting: {', '.join(waiting)}" if waiting else "")(request)

    async def _readyz(self, request: web.Request) -> web.Response:
        await self.ask()
        return await answering(self._unready)(request)

    def _unready(self) -> str:
        if self.draining:
            return "draining"
        whys = [(child.worker.name, child.state.ready if child.state else "no answer") for child in self._children]
        return "; ".join(f"{name}: {why}" for name, why in whys if why)
