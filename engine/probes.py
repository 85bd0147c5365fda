"""A process's HTTP listener: /metrics and the three probes; all of it as one answer to a supervisor (shell).

/startupz: the config is valid and what must be open is open. /livez: the event loop answers and the log is still
being polled; never lag, broker or platform, for a restart mends none of these. /readyz: every tier has had its first
assignment and the worker is not draining.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from engine.errors import ConfigError
from engine.merge_metrics import Plain, plain

if TYPE_CHECKING:
    from engine.metrics import Snapshot
    from engine.pipeline import Pipeline

Handler = Callable[[web.Request], Awaitable[web.Response]]
POLL_AGE_S = 60.0  # a poll takes well under a second; a rebalance may hold one for several
UNIX = "unix:"  # an address that is a socket's path: a worker's, for its supervisor alone
STATE = "/state"
PART = 100  # samples
EOF = b"# EOF\n"  # of OpenMetrics
HEADERS = re.compile(rb"^# .*\n", re.MULTILINE)


class State(msgspec.Struct):
    """What a worker tells its supervisor. The probes: why not, or nothing where all is well."""

    startup: str
    live: str
    ready: str
    metrics: Plain


class Probes:
    """Listens from before the log is reached until after it is drained."""

    def __init__(self) -> None:
        self.draining = False
        self.address = ""
        self._pipeline: Pipeline | None = None
        self._registry = CollectorRegistry()
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT (port 0: any free one) or unix:PATH; an empty address is off. Raises ConfigError."""
        if not address:
            return
        if address.startswith(UNIX):
            self._runner = await listen(address, {STATE: self._state})
            return
        probes = {"/startupz": self._startup, "/livez": self._live, "/readyz": self._ready}
        handlers = {path: answering(probe) for path, probe in probes.items()}
        self._runner = await listen(address, {"/metrics": self._metrics, **handlers})
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
        return await exposed(self._registry, request)

    async def _state(self, _: web.Request) -> web.Response:
        state = State(self._startup(), self._live(), self._ready(), plain(self._registry.collect()))
        return web.Response(body=msgspec.msgpack.encode(state))

    def _startup(self) -> str:
        return "" if self._pipeline is not None else "starting"

    def _live(self) -> str:
        polls = [intake.last_poll_ms for intake in self._pipeline.all_intakes] if self._pipeline else []
        age_s = time.time() - min(polls) / 1000 if polls and all(polls) else 0.0
        return "" if age_s < POLL_AGE_S else f"the log was last polled {age_s:.0f} s ago"

    def _ready(self) -> str:
        if self.draining:
            return "draining"
        return "" if self._pipeline is not None and self._pipeline.ready else "waiting for the log"


async def listen(address: str, handlers: Mapping[str, Handler]) -> web.AppRunner:
    """A server of these paths. Raises ConfigError."""
    app = web.Application()
    app.add_routes([web.get(path, handler) for path, handler in handlers.items()])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await _site(runner, address).start()
    except OSError as error:
        await runner.cleanup()
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # < 0: no such name
        raise ConfigError(f"cannot listen on {address}: {why}", ("http", "metrics")) from error
    return runner


def _site(runner: web.AppRunner, address: str) -> web.BaseSite:
    if address.startswith(UNIX):
        return web.UnixSite(runner, address.removeprefix(UNIX))
    host, _, port = address.rpartition(":")
    return web.TCPSite(runner, host.strip("[]"), int(port))


async def exposed(registry: CollectorRegistry, request: web.Request) -> web.Response:
    """The registry in the format that was asked for; with ``?name[]=``, these series. It is read at once and written a
    part at a time, between which the loop does other things: 100 series take it about a millisecond."""
    encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
    wanted = set(request.query.getall("name[]", ()))
    written = []
    for family in [*registry.collect()]:
        if wanted and wanted.isdisjoint({family.name, *(sample.name for sample in family.samples)}):
            continue
        for start in range(0, max(len(family.samples), 1), PART):
            text = encoder(_Part(family, start)).removesuffix(EOF)
            written.append(text if not start else HEADERS.sub(b"", text))
            await asyncio.sleep(0)
    written.append(EOF if "openmetrics" in content_type else b"")
    return web.Response(body=b"".join(written), headers={"Content-Type": content_type})


class _Part:
    """Some of a family's samples. A prometheus_client collector."""

    def __init__(self, family: Metric, start: int) -> None:
        self._part = copy(family)
        self._part.samples = family.samples[start : start + PART]

    def collect(self) -> Iterator[Metric]:
        yield self._part


def answering(probe: Callable[[], str]) -> Handler:
    """200 ``ok``, or 503 and why."""

    async def answer(_: web.Request) -> web.Response:
        why = probe()
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    return answer
