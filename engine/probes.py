"""The worker's HTTP listener: /metrics and the three probes (shell).

/startupz: the config is valid and what must be open is open. /livez: the event loop answers and the log is still
being polled; never lag, broker or platform, for a restart mends none of these. /readyz: every tier has had its first
assignment and the worker is not draining.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.metrics import Snapshot
    from engine.pipeline import Pipeline

POLL_AGE_S = 60.0  # a poll takes well under a second; a rebalance may hold one for several


class Probes:
    """Listens from before the log is reached until after it is drained."""

    def __init__(self) -> None:
        self.draining = False
        self.address = ""
        self._pipeline: Pipeline | None = None
        self._registry = CollectorRegistry()
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT (port 0: any free one); an empty address is off. Raises ConfigError."""
        if not address:
            return
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/startupz", self._startupz),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        host, _, port = address.rpartition(":")
        site = web.TCPSite(self._runner, host.strip("[]"), int(port))
        try:
            await site.start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # < 0: no such name
            raise ConfigError(f"cannot listen on {address}: {why}", ("http", "metrics")) from error
        bound = self._runner.addresses[0]
        self.address = f"http://{bound[0]}:{bound[1]}"

    def serve(self, snapshot: Snapshot, pipeline: Pipeline) -> None:
        """The pipeline has started."""
        self._registry.register(snapshot)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._pipeline = pipeline

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encoder(self._registry), headers={"Content-Type": content_type})

    async def _livez(self, _: web.Request) -> web.Response:
        polls = [intake.last_poll_ms for intake in self._pipeline.intakes] if self._pipeline else []
        age_s = time.time() - min(polls) / 1000 if polls and all(polls) else 0.0
        return _answer(age_s < POLL_AGE_S, f"the log was last polled {age_s:.0f} s ago")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self.draining:
            return _answer(False, "draining")
        return _answer(self._pipeline is not None and self._pipeline.ready, "waiting for the log")

    async def _startupz(self, _: web.Request) -> web.Response:
        return _answer(self._pipeline is not None, "starting")


def _answer(good: bool, why: str) -> web.Response:
    return web.Response(text="ok\n" if good else f"{why}\n", status=200 if good else 503)
