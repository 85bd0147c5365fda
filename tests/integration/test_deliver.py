"""The deliver shell over real sockets: whatever the other side does becomes the right verdict."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from engine.clock import Clock
from engine.config import ChannelConfig, Duration
from engine.deliver import MAX_BODY_BYTES, Deliverer
from engine.drivers import Action, Call, CallResult, Reply, Verdict, load
from engine.drivers.webhook import Driver as Webhook
from ext.schedule import NEVER

Wire = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"results":[]}'
SECRET = "s3cret-value"
GENEROUS_S = 20.0


def config(driver: str, url: str, timeout_s: float = GENEROUS_S, **keys: Any) -> ChannelConfig:
    account = {} if driver == "webhook" else {"corpid": "ww0", "corpsecret": SECRET, "agentid": 1}
    accounts = {"a": account}
    return ChannelConfig(driver, url, timeout=Duration(int(timeout_s * 1e9)), accounts=accounts, **keys)


@asynccontextmanager
async def delivering(driver: str, url: str, timeout_s: float = GENEROUS_S, **keys: Any) -> AsyncIterator[Deliverer]:
    settings = config(driver, url, timeout_s, **keys)
    deliverer = Deliverer("c", settings, load(driver)("c", settings), clock=Clock())
    await deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.close()


@asynccontextmanager
async def raw(wire: Wire) -> AsyncIterator[str]:
    """A server that does with each connection what ``wire`` says; its address."""
    open_: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_.add(task)
        try:
            await wire(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            open_.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in [*open_]:
            task.cancel()
        await server.wait_closed()


@asynccontextmanager
async def platform(*routes: web.RouteDef) -> AsyncIterator[str]:
    """A real HTTP server with these routes; its address."""
    app = web.Application(client_max_size=1 << 26)
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


def named(url: str) -> str:
    """By name: for a bare address no client keeps cookies anyway."""
    return url.replace("127.0.0.1", "localhost")


def answering(data: bytes, then_close: bool = True) -> Wire:
    async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(data)
        await writer.drain()
        if not then_close:
            await asyncio.Event().wait()

    return wire


def call(ids: list[str] | None = None, body: bytes = b'{"x":1}') -> Call:
    return Call("b1", "a", body, ["u1", "u2"] if ids is None else ids, ())


def wecom_call() -> Call:
    return Call("b1", "a", b'"msgtype":"text","text":{"content":"x"}}', ["u1", "u2"], ())


def said(result: CallResult) -> tuple[Action, str]:
    return result.whole.action, result.whole.code


# --- what goes out


async def test_a_call_and_its_answer() -> None:
    seen: list[tuple[dict[str, str], Any, Any]] = []

    async def send(request: web.Request) -> web.Response:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        seen.append((dict(request.headers), await request.json(), peer))
        response = web.json_response({"results": [{"id": "u2", "code": "failed", "reason": "gone"}]})
        response.set_cookie("session", "x")
        return response

    async with platform(web.post("/send", send)) as url, delivering("webhook", f"{named(url)}/send?x=1") as deliverer:
        for _ in range(2):
            result = await deliverer.call(call(), NEVER)
            assert said(result) == (Action.ACCEPTED, "")
            assert result.exceptions == {1: Verdict(Action.FAILED, "failed", "gone")}
    first, second = seen
    assert first[0]["Idempotency-Key"] == "b1"
    told = {name: first[0][name] for name in ("User-Agent", "Accept", "Accept-Encoding")}
    assert told == {"User-Agent": "surgetank", "Accept": "application/json", "Accept-Encoding": "identity"}
    assert first[1]["to"] == [{"id": "u1"}, {"id": "u2"}]
    assert "Cookie" not in second[0]
    assert first[2] == second[2], "the connection is kept"


async def test_bodies_of_all_sizes_arrive_whole() -> None:
    """In one piece or in several."""
    sizes = [1, 100_000, 3_000_000, 2]
    arrived = []

    async def send(request: web.Request) -> web.Response:
        assert request.content_length == len(await request.read())
        assert request.headers["Content-Type"] == "application/json"
        arrived.append(len((await request.json())["content"]["x"]))
        return web.json_response({"results": []})

    async with platform(web.post("/", send)) as url, delivering("webhook", url) as deliverer:
        for size in sizes:
            body = json.dumps({"x": "x" * size}).encode()
            assert said(await deliverer.call(call(body=body), NEVER)) == (Action.ACCEPTED, "")
    assert arrived == sizes


async def test_as_many_at_once_as_in_flight_says() -> None:
    arrived = 0
    all_there = asyncio.Event()

    async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await request_of(reader)
        arrived += 1
        if arrived == 20:
            all_there.set()
        await all_there.wait()
        writer.write(OK)
        await writer.drain()

    async with raw(wire) as url, delivering("webhook", url, in_flight=20) as deliverer:
        results = await asyncio.gather(*(deliverer.call(call(), NEVER) for _ in range(20)))
    assert {said(result) for result in results} == {(Action.ACCEPTED, "")}


async def test_redirects_are_not_followed() -> None:
    hits = []

    async def send(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with platform(web.post("/{path:.*}", send)) as url, delivering("webhook", url) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.RETRY, "http_307")
    assert hits == ["/"]


# --- what comes back, or does not


async def test_nobody_listens() -> None:
    with socket.socket() as bound:  # bound but not listening: refused for certain
        bound.bind(("127.0.0.1", 0))
        async with delivering("webhook", f"http://127.0.0.1:{bound.getsockname()[1]}") as deliverer:
            assert said(await deliverer.call(call(), NEVER)) == (Action.RETRY, "connect")


async def test_an_outage_costs_no_attempts_but_rests_the_account() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        async with delivering("webhook", f"http://127.0.0.1:{port}") as deliverer:
            outage = [(await deliverer.call(call(), NEVER)).whole for _ in range(12)]
            bound.listen()  # the platform is back
            loop = asyncio.get_running_loop()
            bound.setblocking(False)
            answered = asyncio.create_task(deliverer.call(call(), NEVER))
            connection, _ = await loop.sock_accept(bound)
            await loop.sock_recv(connection, 4096)
            await loop.sock_sendall(connection, OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            assert said(await answered) == (Action.ACCEPTED, "")
            bound.close()
            connection.close()
            again = await deliverer.call(call(), NEVER)
    assert [verdict.action for verdict in outage] == [Action.RETRY] * 3 + [Action.PARK] * 9
    assert {verdict.code for verdict in outage} == {"connect"}
    assert [verdict.after_s for verdict in outage[3:]] == [1.0] * 9
    assert said(again) == (Action.RETRY, "connect"), "an answer ends the row"


async def test_out_of_service_rests_as_long_as_the_platform_wishes() -> None:
    answers = iter([(503, 9), (503, 9), (503, 9), (503, 9), (503, 0), (200, 0), (503, 9), (500, 9), (500, 9), (500, 9)])

    async def send(request: web.Request) -> web.Response:
        status, after_s = next(answers)
        return web.json_response({"results": []}, status=status, headers={"Retry-After": str(after_s)})

    async with platform(web.post("/", send)) as url, delivering("webhook", url) as deliverer:
        got = [(await deliverer.call(call(), NEVER)).whole for _ in range(10)]
    retry, park = (Action.RETRY, 9.0), Action.PARK
    assert [(v.action, v.after_s) for v in got[:5]] == [retry, retry, retry, (park, 9.0), (park, 1.0)]
    assert [v.action for v in got[5:]] == [Action.ACCEPTED] + [Action.RETRY] * 4


async def test_tls_to_who_does_not_speak_it() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(OK)
        await writer.drain()

    async with raw(plain) as url, delivering("webhook", url.replace("http:", "https:")) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.RETRY, "connect")


async def test_a_handshake_that_hangs_is_not_a_call_that_hangs() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with raw(mute) as url, delivering("webhook", url.replace("http:", "https:"), 0.3) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.RETRY, "connect")


async def test_a_search_for_the_address_that_hangs_is_not_a_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mute(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", mute)
    async with delivering("webhook", "http://platform.invalid", 0.3) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.RETRY, "connect")


@pytest.mark.parametrize(
    ("part", "hangs_after"),
    [
        (b"", "nothing"),
        (b"HTTP/1.1 200 OK\r\n", "the first line"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"resu', "half of the body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}   \r\n", "a chunk"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "an interim answer"),
    ],
)
async def test_a_call_that_hangs(part: bytes, hangs_after: str) -> None:
    async with raw(answering(part, then_close=False)) as url, delivering("webhook", url, 0.3) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.UNKNOWN, "timeout"), hangs_after


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"resu',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}   \r\n",
    ],
)
async def test_a_connection_closed_before_the_answers_end(part: bytes) -> None:
    async with raw(answering(part)) as url, delivering("webhook", url) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.UNKNOWN, "reset")


async def test_a_connection_reset() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with raw(reset) as url, delivering("webhook", url) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.UNKNOWN, "reset")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_leaves_the_effect_open(data: bytes) -> None:
    async with raw(answering(data)) as url, delivering("webhook", url) as deliverer:
        result = await deliverer.call(call(), NEVER)
        assert result.whole.action is Action.UNKNOWN
        assert result.whole.code in ("garbage", "reset")
        assert deliverer.faults == 0


@pytest.mark.parametrize("seed", range(20))
async def test_any_bytes_become_a_verdict(seed: int) -> None:
    dice = random.Random(seed)
    data = b"HTTP/1.1 %d X\r\n%b" % (dice.choice([200, 500, 204, 404]), dice.randbytes(dice.randrange(80)))
    if dice.random() < 0.5:
        where = dice.randrange(len(OK))
        data = OK[:where] + dice.randbytes(1) + OK[where + 1 :]
    async with raw(answering(data)) as url, delivering("webhook", url) as deliverer:
        result = await deliverer.call(call(), NEVER)
        assert result.whole.action in (Action.UNKNOWN, Action.RETRY, Action.ACCEPTED, Action.DEAD)
        assert deliverer.faults == 0


def _oversize(kind: str) -> bytes:
    body = b'{"results":[]}' + b" " * MAX_BODY_BYTES
    if kind == "gzip":
        packed = gzip.compress(body * 20)
        return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    if kind == "chunked":
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("kind", ["plain", "chunked", "gzip"])
async def test_an_answer_too_large(kind: str) -> None:
    async with raw(answering(_oversize(kind))) as url, delivering("webhook", url) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.UNKNOWN, "oversize")


@pytest.mark.parametrize("spaces", [0, MAX_BODY_BYTES - 14])
async def test_an_answer_in_many_pieces(spaces: int) -> None:
    body = b'{"results":[]}' + b" " * spaces

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        step = 1 if spaces == 0 else 100_000
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)

    async with raw(slow) as url, delivering("webhook", url) as deliverer:
        assert said(await deliverer.call(call(), NEVER)) == (Action.ACCEPTED, "")


async def test_a_kept_connection_closed_meanwhile_is_replaced() -> None:
    connections = 0
    closed = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await request_of(reader)
        writer.write(OK)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with raw(once) as url, delivering("webhook", url) as deliverer:
        for _ in range(3):
            closed.clear()
            assert said(await deliverer.call(call(), NEVER)) == (Action.ACCEPTED, "")
            async with asyncio.timeout(5):
                await closed.wait()
            for _ in range(3):
                await asyncio.sleep(0)  # let our side see the end
    assert connections == 3


async def test_only_cancelling_raises() -> None:
    there = asyncio.Event()

    async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        if there.is_set():
            writer.write(OK)
            await writer.drain()
            return
        there.set()
        await asyncio.Event().wait()

    async with raw(wire) as url, delivering("webhook", url, in_flight=1) as deliverer:
        task = asyncio.create_task(deliverer.call(call(), NEVER))
        await there.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert said(await deliverer.call(call(), NEVER)) == (Action.ACCEPTED, ""), "its connection is free again"


class Broken(Webhook):
    def result(self, call: Call, reply: Reply) -> CallResult:
        raise ZeroDivisionError


async def test_a_defect_is_counted_and_logged() -> None:
    async with raw(answering(OK)) as url:
        settings = config("webhook", url)
        deliverer = Deliverer("c", settings, Broken("c", settings), clock=Clock())
        await deliverer.start()
        with capture_logs() as logs:
            assert said(await deliverer.call(call(), NEVER)) == (Action.UNKNOWN, "internal")
        await deliverer.close()
    assert deliverer.faults == 1
    assert [line["log_level"] for line in logs] == ["error"]


# --- tokens


class Wecom:
    """Token t1 first, then t2, ...; takes ``valid`` (None: whatever it gave last)."""

    def __init__(self) -> None:
        self.given = 0
        self.calls: list[str] = []
        self.valid: str | None = None
        self.token_answer: dict[str, Any] | None = None
        self.token_hang = False

    async def gettoken(self, request: web.Request) -> web.Response:
        self.given += 1
        if self.token_hang:
            await asyncio.Event().wait()
        answer = {"errcode": 0, "access_token": f"t{self.given}", "expires_in": 7200}
        return web.json_response(self.token_answer or answer)

    async def send(self, request: web.Request) -> web.Response:
        token = request.query["access_token"]
        self.calls.append(token)
        if token != (self.valid or f"t{self.given}"):
            return web.json_response({"errcode": 40014, "errmsg": "invalid access_token"})
        return web.json_response({"errcode": 0, "msgid": "m1"})

    def running(self) -> AbstractAsyncContextManager[str]:
        return platform(web.get("/cgi-bin/gettoken", self.gettoken), web.post("/cgi-bin/message/send", self.send))


async def test_one_token_for_all_calls() -> None:
    wecom = Wecom()
    async with wecom.running() as url, delivering("wecom.message", url, in_flight=10) as deliverer:
        results = await asyncio.gather(*(deliverer.call(wecom_call(), NEVER) for _ in range(10)))
    assert {said(result) for result in results} == {(Action.ACCEPTED, "0")}
    assert results[0].platform_id == "m1"
    assert wecom.given == 1


async def test_a_refused_token_is_replaced_once_and_every_call_is_made_again_by_whom_it_is_charged_to() -> None:
    wecom = Wecom()
    async with wecom.running() as url, delivering("wecom.message", url, in_flight=10) as deliverer:
        await deliverer.call(wecom_call(), NEVER)
        wecom.valid = "t2"
        refused = await asyncio.gather(*(deliverer.call(wecom_call(), NEVER) for _ in range(10)))
        results = await asyncio.gather(*(deliverer.call(wecom_call(), NEVER) for _ in range(10)))
    assert {said(result) for result in refused} == {(Action.REFRESH, "40014")}
    assert {said(result) for result in results} == {(Action.ACCEPTED, "0")}
    assert wecom.given == 2
    assert sorted(wecom.calls) == ["t1"] * 11 + ["t2"] * 10


async def test_a_new_token_refused_too_rests_the_account() -> None:
    wecom = Wecom()
    wecom.valid = "another"
    async with wecom.running() as url, delivering("wecom.message", url) as deliverer:
        first, result = await deliverer.call(wecom_call(), NEVER), await deliverer.call(wecom_call(), NEVER)
    assert said(first) == (Action.REFRESH, "40014")
    assert said(result) == (Action.PARK, "token")
    assert result.whole.after_s == 10
    assert wecom.calls == ["t1", "t2"]


async def test_refused_credentials_rest_the_account_and_are_said_once() -> None:
    wecom = Wecom()
    wecom.token_answer = {"errcode": 40001, "errmsg": f"invalid credential {SECRET}"}
    with capture_logs() as logs:
        async with wecom.running() as url, delivering("wecom.message", url) as deliverer:
            results = [await deliverer.call(wecom_call(), NEVER) for _ in range(5)]
    assert {said(result) for result in results} == {(Action.PARK, "credentials")}
    assert results[0].whole.after_s == 60
    assert wecom.given == 1
    assert not wecom.calls
    assert [(line["log_level"], line["account"]) for line in logs] == [("error", "a")]
    assert "40001" in logs[0]["answer"]
    assert SECRET not in repr(logs)


async def test_a_call_that_can_only_begin_too_late_is_not_made() -> None:
    wecom = Wecom()
    async with wecom.running() as url, delivering("wecom.message", url) as deliverer:
        result = await deliverer.call(wecom_call(), 0)
    assert said(result) == (Action.RETRY, "deadline")
    assert not result.left
    assert wecom.given == 1
    assert not wecom.calls


async def test_no_answer_from_the_token_endpoint() -> None:
    wecom = Wecom()
    wecom.token_hang = True
    with capture_logs() as logs:
        async with wecom.running() as url, delivering("wecom.message", url, 0.3) as deliverer:
            assert said(await deliverer.call(wecom_call(), NEVER)) == (Action.RETRY, "token")
    assert not wecom.calls
    assert SECRET not in repr(logs)


async def test_no_token_endpoint_at_all() -> None:
    with socket.socket() as bound, capture_logs() as logs:
        bound.bind(("127.0.0.1", 0))
        async with delivering("wecom.message", f"http://127.0.0.1:{bound.getsockname()[1]}") as deliverer:
            assert said(await deliverer.call(wecom_call(), NEVER)) == (Action.RETRY, "token")
    assert SECRET not in repr(logs)
