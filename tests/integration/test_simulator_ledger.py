"""The simulator's outages, options, ledger and process, over real HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from bench.simulator_file import LedgerFile
from tests.integration.simulator_client import DEADLINE_S, Client, simulated, until

ROOT = Path(__file__).parents[2]
ENDPOINTS = ("wecom", "wechat", "webhook")
BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


async def send(client: Client, endpoint: str) -> tuple[int, Any]:
    """One message to "ann": status and answer, whatever it is."""
    if endpoint == "webhook":
        return await client.webhook("b1", "ann")
    path = "/cgi-bin/message/send" if endpoint == "wecom" else "/cgi-bin/message/template/send"
    token = client.corp if endpoint == "wecom" else client.app
    body = {"touser": "ann", "msgtype": "text", "agentid": 7, "text": {"content": "x"}}
    if endpoint == "wechat":
        body = {"touser": "ann", "template_id": "t", "data": {}}
    return await client.ask("POST", f"/{endpoint}{path}?access_token={token}", body)


async def disturb(client: Client, endpoint: str, kind: str, duration_s: float = 100, **more: Any) -> None:
    """Start an outage."""
    outage = {"endpoint": endpoint, "kind": kind, "duration_s": duration_s, **more}
    await client.answer("POST", "/sim/outage", outage)


# --- outages


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_refuse_is_503_without_effect_until_it_ends(endpoint: str) -> None:
    async with simulated() as client:
        await disturb(client, endpoint, "refuse", start_s=1, duration_s=5, retry_after_s=3)
        assert (await send(client, endpoint))[0] == 200
        client.clock.to(1)
        async with client.session.post(f"{client.sim.url}/{endpoint}/x") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "3")
        client.clock.to(6)
        assert (await send(client, endpoint))[0] == 200
        assert "refused" not in await client.verdicts("ann")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_error_is_the_platforms_own(endpoint: str) -> None:
    async with simulated() as client:
        await disturb(client, endpoint, "error")
        status, reply = await send(client, endpoint)
        assert (status, reply.get("errcode")) == ((500, None) if endpoint == "webhook" else (200, -1))
        assert await client.verdicts("ann") == []


@pytest.mark.parametrize(("kind", "verdicts"), [("reset", []), ("reset_after", ["delivered"])])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_reset_breaks_the_connection_before_or_after_the_effect(
    endpoint: str, kind: str, verdicts: list[str]
) -> None:
    async with simulated() as client:
        await disturb(client, endpoint, kind)
        with pytest.raises(BROKEN):
            await send(client, endpoint)
        assert await client.verdicts("ann") == verdicts
        async with client.session.delete(client.sim.url + "/sim/outage") as response:
            assert response.status == 200
        assert (await send(client, endpoint))[0] == 200


async def test_reset_after_and_the_same_key_again_is_one_delivery() -> None:
    async with simulated() as client:
        await disturb(client, "webhook", "reset_after", duration_s=1)
        with pytest.raises(BROKEN):
            await client.webhook("b1", "ann", "invalid-b")
        client.clock.to(1)
        status, reply = await client.webhook("b1", "ann", "invalid-b")
        assert (status, [result["id"] for result in reply["results"]]) == (200, ["invalid-b"])
        assert await client.verdicts("ann") == ["delivered", "duplicate"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_hang_answers_nothing_and_has_no_effect(endpoint: str) -> None:
    async with simulated() as client:
        before = client.sim.ledger.calls
        await disturb(client, endpoint, "hang")
        hung = asyncio.create_task(send(client, endpoint))
        await until(lambda: client.sim.ledger.calls == before + 1)
        # Others are served meanwhile: the answer is not merely late.
        other = "wechat" if endpoint == "wecom" else "wecom"
        assert (await send(client, other))[0] == 200
        assert not hung.done()
        hung.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hung
        assert len(await client.verdicts("ann")) == 1


async def test_hang_ends_in_a_reset() -> None:
    async with simulated() as client:
        await disturb(client, "webhook", "hang", duration_s=0.05)
        with pytest.raises(BROKEN):
            await client.webhook("b1", "ann")


async def test_slow_drips_a_whole_answer_with_its_effect() -> None:
    async with simulated() as client:
        await disturb(client, "webhook", "slow", duration_s=0.3)
        body = b'{"v":1,"batch":"b1","channel":"c","account":"a","content":{},"to":[{"id":"invalid-x"}]}'
        async with client.session.post(
            client.sim.url + "/webhook/gate", data=body, headers={"Idempotency-Key": "b1"}
        ) as response:
            pieces = [piece async for piece in response.content.iter_any()]
        assert len(pieces) > 2
        assert msgspec.json.decode(b"".join(pieces))["results"][0]["id"] == "invalid-x"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_garbage_is_a_200_nobody_can_read(endpoint: str) -> None:
    async with simulated() as client:
        await disturb(client, endpoint, "garbage")
        with pytest.raises(msgspec.DecodeError):
            await send(client, endpoint)
        assert await client.verdicts("ann") == []


async def test_outages_of_the_options_count_from_the_start_and_hit_tokens_too() -> None:
    options = '{"outages": [{"endpoint": "wecom", "kind": "error", "start_s": 5, "duration_s": 5}]}'
    async with simulated(options) as client:
        client.clock.to(5)
        reply = await client.answer("GET", "/wecom/cgi-bin/gettoken?corpid=corp&corpsecret=s")
        assert reply["errcode"] == -1
        client.clock.to(10)
        assert (await client.wecom("ann"))["errcode"] == 0


# --- options


async def test_options_merge_and_a_wrong_one_changes_nothing() -> None:
    async with simulated('{"wechat": {"concurrency": 4}}') as client:
        options = await client.answer("POST", "/sim/options", {"wechat": {"templates": ["t9"]}})
        assert (options["wechat"]["templates"], options["wechat"]["concurrency"]) == (["t9"], 4)
        wrong: list[dict[str, Any]] = [
            {"wechat": {"latncy": {}}},
            {"wechat": {"latency": {"min_s": 2, "max_s": 1}}},
            {"wecom": {"quotas": [{"per_s": 1}]}},
            {"outages": [{"endpoint": "mars", "kind": "hang", "duration_s": 1}]},
        ]
        for patch in wrong:
            status, reply = await client.ask("POST", "/sim/options", patch)
            assert (status, "$." in reply["error"]) == (400, True)
        assert await client.answer("GET", "/sim/options") == options


async def test_latency_only_delays_the_answer() -> None:
    async with simulated() as client:
        latency = {"kind": "lognormal", "median_s": 600, "sigma": 0.1, "max_s": 900}
        await client.answer("POST", "/sim/options", {"wecom": {"latency": latency}})
        late = asyncio.create_task(client.wecom("ann"))
        await until(lambda: len(client.sim.ledger.of("ann")) == 1)
        assert not late.done()
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        await client.answer("POST", "/sim/options", {"wecom": {"latency": {"max_s": 0.001}}})
        assert (await client.wecom("bob"))["errcode"] == 0


async def test_unknown_paths_say_what_there_is() -> None:
    async with simulated() as client:
        for path in ("/", "/wecom", "/wecom/cgi-bin/message/sent", "/webhook", "/webhook/a/b", "/sim", "/sim/ledgers"):
            async with client.session.get(client.sim.url + path) as response:
                assert response.status == 404, path
        assert (await client.ask("GET", "/sim/ledger"))[0] == 400
        assert (await client.ask("POST", "/sim/expire?endpoint=mars"))[0] == 400
        assert (await client.ask("POST", "/sim/outage", {"endpoint": "wecom", "kind": "nap"}))[0] == 400


# --- ledger


async def test_ledger_of_unknown_recipient_is_empty_and_ids_are_unquoted() -> None:
    async with simulated() as client:
        await client.webhook("b1", "a b&c/é")
        assert await client.verdicts("nobody") == []
        assert await client.verdicts("a%20b%26c%2F%C3%A9") == ["delivered"]


async def test_export_and_calls_hold_every_row_and_agree_with_the_counts() -> None:
    async with simulated() as client:
        ids = [f"r{n}" for n in range(3000)]  # more than one step of the export
        await client.webhook("b1", *ids)
        await client.wecom("r1|invalid-x")
        rows = await client.lines("/sim/ledger/export")
        calls = {call["call"]: call for call in await client.lines("/sim/calls")}
        assert [row["recipient"] for row in rows] == [*ids, "r1", "invalid-x"]
        assert all(row["arrived_ns"] == calls[row["call"]]["arrived_ns"] for row in rows)
        assert [row["recipient"] for row in await client.lines("/sim/ledger/export?endpoint=wecom")] == [
            "r1",
            "invalid-x",
        ]
        assert [call["recipients"] for call in await client.lines("/sim/calls?account=gate/a")] == [3000]
        counts = await client.counts()
        assert counts["rows"] == len(rows)
        assert counts["verdicts"] == {"webhook": {"delivered": 3000}, "wecom": {"delivered": 1, "invalid": 1}}
        assert (counts["recipients"], counts["delivered_recipients"], counts["repeated_recipients"]) == (3001, 3000, 1)
        assert counts["calls"] == {
            "wecom": {"gettoken 200": 1, "message/send 200": 1},
            "wechat": {"token 200": 1},
            "webhook": {"send 200": 1},
        }


async def test_equal_content_has_an_equal_digest() -> None:
    async with simulated() as client:
        for content in ("one", "two", "one"):
            await client.wecom("ann", text={"content": content})
        contents = [call["content"] for call in await client.lines("/sim/calls?api=message/send")]
        assert (contents[0] == contents[2], contents[0] == contents[1]) == (True, False)


async def test_reset_forgets_everything_but_options_and_tokens(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    async with simulated('{"wecom": {"quotas": [{"calls": 1, "per_s": 60}]}}', ledger=file) as client:
        await client.wecom("ann")
        await client.webhook("b1", "ann")
        await disturb(client, "wecom", "refuse")
        await client.answer("POST", "/sim/reset")
        assert await client.verdicts("ann") == []
        assert (await client.wecom("bob"))["errcode"] == 0
        assert await client.webhook("b1", "ann", "cat") == (200, {"results": []})
        exported = await client.lines("/sim/ledger/export")
    assert rows(file) == [tuple(row.values()) for row in exported]
    assert [row["recipient"] for row in exported] == ["bob", "ann", "cat"]


def rows(file: str) -> list[tuple[Any, ...]]:
    """The file's ledger."""
    with closing(sqlite3.connect(file)) as db:
        query = "SELECT recipient, endpoint, verdict, arrived_ns, call FROM deliveries JOIN calls USING (call)"
        return db.execute(f"{query} ORDER BY deliveries.rowid").fetchall()


def calls(file: str) -> list[tuple[Any, ...]]:
    """The file's calls."""
    with closing(sqlite3.connect(file)) as db:
        return db.execute("SELECT * FROM calls ORDER BY call").fetchall()


async def test_file_follows_while_serving_agrees_with_the_ledger_and_goes_on_later(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    async with simulated(ledger=file) as client:
        await client.webhook("b1", *(f"r{n}" for n in range(9000)))  # more than the follower takes at once
        await until(lambda: len(rows(file)) == 9000)
        await client.wecom("r1|invalid-x")
        exported = await client.lines("/sim/ledger/export")
        called = await client.lines("/sim/calls")
    assert rows(file) == [tuple(row.values()) for row in exported]
    assert calls(file) == [tuple(call.values()) for call in called]
    async with simulated(ledger=file) as client:
        assert [call["call"] for call in await client.lines("/sim/calls")] == [5, 6]  # the tokens
        await client.webhook("b2", "late")
    assert [row[0] for row in rows(file)[-2:]] == ["invalid-x", "late"]
    assert [call[0] for call in calls(file)] == list(range(1, 8))


def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "other.db")
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ValueError, match=r"other\.db: not a simulator's ledger"):
        LedgerFile(file)


# --- the process


async def bench(*arguments: str) -> asyncio.subprocess.Process:
    """``python -m bench simulator``."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "bench", "simulator", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_process_says_where_it_is_and_ends_cleanly_in_the_middle_of_a_hang(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger.db")
    process = await bench("--ledger", file, "--config", '{"webhook": {"refused": {"no-": "never"}}}')
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
        ready = msgspec.json.decode(await process.stdout.readline())
        assert ready["pid"] == process.pid
        body = b'{"v":1,"batch":"b1","channel":"c","account":"a","content":{},"to":[{"id":"no-x"},{"id":"y"}]}'
        async with session.post(ready["webhook"] + "/g", data=body, headers={"Idempotency-Key": "b1"}) as response:
            assert (await response.json(content_type=None))["results"][0]["reason"] == "never"
        outage = b'{"endpoint": "webhook", "kind": "hang", "duration_s": 600}'
        async with session.post(ready["sim"] + "/outage", data=outage) as response:
            assert response.status == 200
        hung = asyncio.create_task(session.post(ready["webhook"] + "/g", data=body))
        while True:
            async with session.get(ready["sim"] + "/ledger/counts") as response:
                if "outage hang 0" in (await response.json())["calls"]["webhook"]:
                    break
        os.kill(process.pid, signal.SIGTERM)
        with pytest.raises(BROKEN):
            await hung
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert [(row[0], row[2]) for row in rows(file)] == [("y", "delivered"), ("no-x", "invalid")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", '{"wecom": {"speed": 1}}'), b"speed"),
        (("--config", "no-such-file.json"), b"no-such-file.json"),
        (("--config", "{"), b"truncated"),
    ],
)
async def test_process_refuses_wrong_options(arguments: tuple[str, ...], message: bytes) -> None:
    process = await bench(*arguments)
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert message in errors
    assert b"Traceback" not in errors
