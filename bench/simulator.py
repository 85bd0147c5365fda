"""The platforms, simulated: a real HTTP server with their endpoints, errors, quotas and outages, and a judge's ledger.

In: HTTP requests to /wecom, /wechat, /webhook/NAME and /sim (``bench.simulator_control``). Out: the platforms' answers.
Invariant: what happened to a recipient is decided and in the ledger before the answer begins; latency only delays the
answer. It never uses the engine's code: it is the independent check of the drivers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from bench import simulator_control
from bench.simulator_file import LedgerFile
from bench.simulator_ledger import Ledger
from bench.simulator_limits import sample
from bench.simulator_options import ENDPOINTS, Options, Outage, merge, parse, published
from bench.simulator_outage import GARBAGE, Outages, Trouble, drip, hang, reset
from bench.simulator_platforms import Answer, Ask, Platform, query_of
from bench.simulator_webhook import Webhook
from bench.simulator_wechat import WeChat
from bench.simulator_wecom import WeCom

MOST_BODY = 64 << 20
JSON = {"Content-Type": "application/json; charset=UTF-8"}
NOT_SENDS = ("/cgi-bin/gettoken", "/cgi-bin/token", "/cgi-bin/stable_token")


class Simulator:
    """``async with Simulator(options) as sim:`` serves on ``sim.url`` until the block ends.

    ``clock`` is monotonic, in nanoseconds: with one of its own a test stands exactly on a window's border.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        port: int = 0,
        ledger: str | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``ledger``: the SQLite file. Raises ValueError or sqlite3.DatabaseError: it is something else."""
        self.options = options or Options()
        self._port = port
        self._clock = clock
        self._epoch_ns = time.time_ns() - clock()  # one wall clock for the run: it never steps
        self._file = LedgerFile(ledger) if ledger is not None else None
        self.ledger = Ledger(self._file.first if self._file is not None else 1)
        self.platforms: dict[str, Platform] = {
            kind.name: kind(self.options, self.ledger) for kind in (WeCom, WeChat, Webhook)
        }
        self.outages = Outages()
        self._chance = random.Random(self.options.seed)
        self._open = dict.fromkeys(ENDPOINTS, 0)
        self.url = ""

    async def __aenter__(self) -> Simulator:
        self._closing = asyncio.Event()
        server = web.Server(
            self._serve, request_factory=_request, handler_cancellation=True, access_log=None, keepalive_timeout=300
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.disturb(self.options.outages)
        self._follower = asyncio.create_task(self._file.follow(lambda: self.ledger)) if self._file is not None else None
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._closing.set()
        await self._runner.cleanup()
        if self._file is not None and self._follower is not None:
            self._follower.cancel()
            with suppress(asyncio.CancelledError):
                await self._follower
            self._file.close(self.ledger)

    def change(self, patch: Any) -> None:
        """Merge ``patch`` into the options, at once. Raises msgspec.ValidationError: nothing is changed.

        Outages in it count from now, in place of all there were."""
        self.options = merge(self.options, patch)
        for platform in self.platforms.values():
            platform.set(self.options)
        if isinstance(patch, dict) and "outages" in patch:
            self.outages.clear()
            self.disturb(self.options.outages)

    def disturb(self, outages: Iterable[Outage]) -> None:
        """Start ``outages``: their times count from now."""
        self.outages.add(outages, self._clock())

    def reset(self) -> None:
        """Ledger, file, windows and outages as new; options and tokens stay. Calls are numbered from 1."""
        self.ledger = Ledger()
        for platform in self.platforms.values():
            platform.ledger = self.ledger
            platform.forget()
        self.outages.clear()
        if self._file is not None:
            self._file.clear()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        _, endpoint, rest = (path + "/").split("/", 2)
        rest = "/" + rest[:-1]
        body = await request.read()
        if endpoint == "sim":
            return await simulator_control.serve(self, request, rest, query, body)
        platform = self.platforms.get(endpoint)
        if platform is None:
            return web.Response(status=404, body=b"only /wecom, /wechat, /webhook/NAME and /sim\n")
        if rest in NOT_SENDS:
            return await self._call(platform, request, rest, query, body)
        self._open[endpoint] += 1
        most = self.ledger.most_open
        most[endpoint] = max(most.get(endpoint, 0), self._open[endpoint])
        try:
            return await self._call(platform, request, rest, query, body)
        finally:
            self._open[endpoint] -= 1

    async def _call(
        self, platform: Platform, request: web.BaseRequest, path: str, query: str, body: bytes
    ) -> web.StreamResponse:
        now = self._clock()
        ask = Ask(request.method, path, query_of(query), request.headers, body, now, self._epoch_ns + now)
        trouble = self.outages.at(platform.name, now)
        if trouble is not None and trouble.kind not in ("reset_after", "slow"):
            return await self._without_effect(platform, request, ask, trouble)
        answer = platform.serve(ask)
        try:
            latency = sample(platform.options.latency, self._chance)
            if latency > 0:
                await asyncio.sleep(latency)
            if trouble is not None:
                return await self._with_effect(request, answer, trouble)
            return _response(answer)
        finally:
            if answer.held is not None:
                platform.done(answer.held)

    async def _without_effect(
        self, platform: Platform, request: web.BaseRequest, ask: Ask, trouble: Trouble
    ) -> web.StreamResponse:
        answer = self._trouble_answer(platform, trouble)
        status, code = (answer.status, -1) if answer is not None else (0, -1)
        self.ledger.add_call((platform.name, f"outage {trouble.kind}", ""), ask.arrived_ns, status, code, 0)
        if answer is not None:
            return _response(answer)
        if trouble.kind == "hang":
            await hang(self._closing, trouble.end_ns - self._clock())
        reset(request)
        return web.Response()

    def _trouble_answer(self, platform: Platform, trouble: Trouble) -> Answer | None:
        if trouble.kind == "refuse":
            after = trouble.retry_after_s
            return Answer(503, b"", None if after is None else {"Retry-After": str(after)})
        if trouble.kind == "error":
            return platform.busy()
        return Answer(200, GARBAGE) if trouble.kind == "garbage" else None

    async def _with_effect(self, request: web.BaseRequest, answer: Answer, trouble: Trouble) -> web.StreamResponse:
        if trouble.kind == "reset_after":
            reset(request)
            return web.Response()
        response = web.StreamResponse(status=answer.status, headers=JSON)
        response.content_length = len(answer.body)
        await response.prepare(request)
        await drip(response, answer.body, self._closing, trouble.end_ns - self._clock())
        await response.write_eof()
        return response


def _request(*arguments: Any) -> web.BaseRequest:
    message, payload, protocol, writer, task = arguments
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MOST_BODY)


def _response(answer: Answer) -> web.Response:
    headers = JSON if answer.headers is None else {**JSON, **answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


async def run(options: Options, port: int, ledger: str | None) -> None:
    """Serve until SIGTERM or SIGINT. One line on stdout says where, once it does."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Simulator(options, port=port, ledger=ledger) as sim:
        bases = {name: f"{sim.url}/{name}" for name in (*ENDPOINTS, "sim")}
        print(msgspec.json.encode({"url": sim.url, **bases, "pid": os.getpid()}).decode(), flush=True)
        await stop.wait()


def main(argv: list[str]) -> int:
    """The process. Exit codes: 0 ended by a signal, 2 a wrong argument or option."""
    parser = argparse.ArgumentParser("python -m bench simulator", description="The platforms, simulated on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--ledger", metavar="FILE.db", help="also write the ledger to this SQLite file")
    parser.add_argument("--config", metavar="JSON", help="options: a JSON object, or the name of a file with one")
    parser.add_argument("--published", action="store_true", help="without --config: the platforms' published quotas")
    arguments = parser.parse_args(argv)
    try:
        options = _options(arguments.config, arguments.published)
        uvloop.run(run(options, arguments.port, arguments.ledger))
    except (OSError, ValueError, msgspec.DecodeError, sqlite3.DatabaseError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    return 0


def _options(config: str | None, quotas: bool) -> Options:
    if config is None:
        return published() if quotas else Options()
    return parse(config if config.lstrip().startswith("{") else Path(config).read_bytes())
