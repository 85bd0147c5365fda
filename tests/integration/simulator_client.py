"""A client of the simulator for tests: real HTTP, and a clock that stands still unless it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from bench.simulator import Simulator
from bench.simulator_options import parse

DEADLINE_S = 60.0


class Clock:
    """Nanoseconds that go on when told."""

    def __init__(self) -> None:
        self.now = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def to(self, seconds: float) -> None:
        """Set to ``seconds`` after the start."""
        self.now = 1_000_000_000_000 + round(seconds * 1_000_000_000)


class Client:
    """What a test asks of a simulator."""

    def __init__(self, sim: Simulator, session: aiohttp.ClientSession, clock: Clock) -> None:
        self.sim, self.session, self.clock = sim, session, clock
        self.corp = self.app = ""

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """Status and decoded JSON."""
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.request(method, self.sim.url + path, data=data, **more) as response:
            return response.status, msgspec.json.decode(await response.read())

    async def answer(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a 200."""
        status, reply = await self.ask(method, path, body)
        assert status == 200, reply
        return reply

    async def lines(self, path: str) -> list[Any]:
        """NDJSON."""
        async with self.session.get(self.sim.url + path) as response:
            return [msgspec.json.decode(line) for line in (await response.read()).splitlines()]

    async def log_in(self) -> None:
        """Tokens of both platforms."""
        reply = await self.answer("GET", "/wecom/cgi-bin/gettoken?corpid=corp&corpsecret=s")
        self.corp = reply["access_token"]
        reply = await self.answer("GET", "/wechat/cgi-bin/token?grant_type=client_credential&appid=app&secret=s")
        self.app = reply["access_token"]

    async def wecom(self, touser: str, **more: Any) -> Any:
        """Send a text."""
        body = {"touser": touser, "msgtype": "text", "agentid": 7, "text": {"content": "hello"}, **more}
        return await self.answer("POST", f"/wecom/cgi-bin/message/send?access_token={self.corp}", body)

    async def wechat(self, touser: str, **more: Any) -> Any:
        """Send a template."""
        body = {"touser": touser, "template_id": "t1", "data": {"k": {"value": "v"}}, **more}
        return await self.answer("POST", f"/wechat/cgi-bin/message/template/send?access_token={self.app}", body)

    async def webhook(self, batch: str, *ids: str, key: str | None = None, **more: Any) -> tuple[int, Any]:
        """Send a batch."""
        to = [{"id": id, "data": None} for id in ids]
        body = {"v": 1, "batch": batch, "channel": "c", "account": "a", "content": {"text": "x"}, "to": to, **more}
        return await self.ask("POST", "/webhook/gate", body, headers={"Idempotency-Key": batch if key is None else key})

    async def verdicts(self, id: str) -> list[str]:
        """What the ledger says of one recipient."""
        entries = await self.answer("GET", f"/sim/ledger?recipient={id}")
        return [entry["verdict"] for entry in entries]

    async def counts(self) -> Any:
        """Totals."""
        return await self.answer("GET", "/sim/ledger/counts")


@asynccontextmanager
async def simulated(options: str = "{}", ledger: str | None = None) -> AsyncIterator[Client]:
    """A simulator and a client that has its tokens."""
    clock = Clock()
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with (
        Simulator(parse(options), ledger=ledger, clock=clock) as sim,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        client = Client(sim, session, clock)
        await client.log_in()
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait for ``condition``. Raises TimeoutError at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another component
            await asyncio.sleep(0.002)
