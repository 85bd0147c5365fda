"""The command as a process of its own: an engine that serves, commands beside it, a gateway over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

WITHIN_S = 30.0
SOON_S = 0.02


class Gateway:
    """A webhook's other end; keeps who got what."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.headers: list[str] = []
        self.news = asyncio.Event()
        self.refuses: set[str] = set()  # calls that name one of them

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuses & {recipient["id"] for recipient in body["to"]}:
            return web.Response(status=401, text="who are you?")
        self.got += [recipient["id"] for recipient in body["to"]]
        self.headers.append(request.headers["Authorization"])
        self.news.set()
        return web.json_response({"results": []})

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.got) < count:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[Gateway, str]]:
    one = Gateway()
    app = web.Application()
    app.router.add_post("/send", one.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield one, f"http://127.0.0.1:{port}/send"
    await runner.cleanup()


@pytest.fixture
def config(tmp_path: Path, gateway: tuple[Gateway, str]) -> Path:
    (tmp_path / "token").write_text("Bearer geheim-value\n")
    path = tmp_path / "surgetank.toml"
    path.write_text(
        '[http]\nmetrics = ""\nadmin = "127.0.0.1:1"\n[log]\npartitions = 2\n'
        '[tiers.basic]\npacing = "asap"\nlinger = "20ms"\n'
        f'[channels.partner]\ndriver = "webhook"\nbase_url = "{gateway[1]}"\nrepeats = "never"\n'
        '[channels.partner.accounts.a]\nauthorization_file = "token"\n'
        '[tenants.t]\nlimits = [{ recipients = 100, per = "1h" }]\n'
    )
    return path


class Engine:
    """``surgetank serve`` in a process; its log is on standard error."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    async def said(self, event: str) -> dict[str, Any]:
        """The first line of that event. Fails when the process ends, or says nothing in time, before."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = [line for line in self.lines() if line["event"] == event]
                if found:
                    return found[0]
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(SOON_S)

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), WITHIN_S)


@pytest.fixture
async def engine(config: Path) -> AsyncIterator[Engine]:
    log = config.parent / "engine.log"
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.cli", "serve", "-c", str(config), stderr=stream, stdout=stream
        )
    one = Engine(process, log)
    await one.said("serving")
    yield one
    if process.returncode is None:
        process.kill()
        await process.wait()


async def run(*arguments: str | Path, input: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and error of ``surgetank ARGUMENTS``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "engine.cli", *map(str, arguments), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(input.encode()), WITHIN_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def line(id: str, to: list[str], **more: Any) -> str:
    return json.dumps({"id": id, "channel": "partner", "to": to, "content": {"text": "hi"}, **more}) + "\n"


async def test_what_is_sent_is_delivered_and_a_repeat_is_not(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    text = line("1", ["u1", "u2"]) + line("2", ["u3"])
    code, out, _ = await run("send", "-c", config, "system", "--json", input=text)
    assert (code, json.loads(out)["recipients"]) == (0, 3)
    await gateway[0].until(3)
    assert (await run("send", "-c", config, "system", input=text + line("3", ["u4"])))[0] == 0
    await gateway[0].until(4)
    assert await engine.stop() == 0
    assert sorted(gateway[0].got) == ["u1", "u2", "u3", "u4"]
    assert set(gateway[0].headers) == {"Bearer geheim-value"}


async def test_what_the_engine_says_is_json_with_no_secret_and_names_its_warnings(engine: Engine) -> None:
    assert await engine.stop() == 0
    text = engine.log.read_text()
    assert "geheim-value" not in text
    warning = next(one for one in engine.lines() if one["event"] == "configuration")
    assert (warning["level"], warning["key"], warning["line"]) == ("warning", "http.admin", 3)
    assert {"ts", "level", "event", "logger"} <= set(warning)


async def test_pause_holds_what_comes_and_resume_lets_it_go(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    code, out, err = await run("pause", "campaign", "c", "-c", config, "--for", "1h")
    assert (code, out, err) == (0, "paused campaign c for 1h: 0 recipients wait under it (1 worker answered)\n", "")
    assert (await run("send", "-c", config, "basic", input=line("1", ["u1", "u2"], campaign="c")))[0] == 0
    assert (await run("send", "-c", config, "basic", input=line("2", ["u9"])))[0] == 0
    await gateway[0].until(1)
    assert gateway[0].got == ["u9"]
    async with asyncio.timeout(WITHIN_S):
        while True:
            code, out, _ = await run("why", "c", "-c", config, "--json")
            assert code == 0
            holds = [hold for holds in json.loads(out)["workers"].values() for hold in holds]
            if holds and holds[0]["ready"] == 2:
                break
    assert [(hold["held"], hold["on"]) for hold in holds] == [("pause", {"campaign": "c"})]
    assert abs(holds[0]["until"] - 1000 * time.time() - 3_600_000) < 1000 * 2 * WITHIN_S
    code, out, err = await run("resume", "campaign", "c", "-c", config)
    assert (code, err) == (0, "")
    assert out == "resumed campaign c: 2 recipients may leave again (1 worker answered)\n"
    await gateway[0].until(3)
    assert sorted(gateway[0].got) == ["u1", "u2", "u9"]


async def test_limits_are_shown_with_what_is_used(gateway: tuple[Gateway, str], config: Path, engine: Engine) -> None:
    sent = line("1", ["u1", "u2"], tenant="t")
    assert (await run("send", "-c", config, "basic", input=sent))[0] == 0
    await gateway[0].until(2)
    async with asyncio.timeout(WITHIN_S):
        while True:
            code, out, err = await run("limits", "-c", config)
            assert (code, err) == (0, "")
            if out.endswith(": tenant t: 100 recipients per 1h: 2 used, 0 in flight, of 100\n"):
                break


async def test_a_limit_is_set_for_a_time_and_reset_and_a_tenant_weighed(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    per_hour = ("tenant", "t", "--per", "60m", "-c", config)
    code, out, err = await run("limits", "set", *per_hour, "--recipients", "1", "--for", "2h")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"\S+: tenant t: 1 recipients per 1h: 0 used, 0 in flight, of 1; by command until \S+Z, then 100\n", out
    )
    sent = line("1", ["u1"], tenant="t") + line("2", ["u2"], tenant="t")
    assert (await run("send", "-c", config, "basic", input=sent))[0] == 0
    await gateway[0].until(1)
    async with asyncio.timeout(WITHIN_S):
        while True:
            code, out, err = await run("limits", "-c", config, "--json")
            (use,) = [
                use for uses in json.loads(out)["workers"].values() for use in uses if use["on"] == {"tenant": "t"}
            ]
            if use["used"]:
                break
    assert (use["number"], use["full"], use["configured"]) == (1, True, 100)
    assert abs(use["until"] - 1000 * time.time() - 3_600_000) < 1000 * 4 * WITHIN_S
    assert (await run("limits", "reset", *per_hour, "--recipients"))[0] == 0
    await gateway[0].until(2)
    code, out, err = await run("limits", "reset", "tenant", "t", "--per", "2s", "--calls", "-c", config)
    assert (code, "it has: recipients per 1h" in err) == (1, True)
    code, out, err = await run("reweight", "tenant", "t", "3", "-c", config, "--for", "1h")
    assert (code, out, err) == (0, "tenant t has the weight 3 for 1h (1 worker answered)\n", "")


async def test_cancel_ends_what_waits_and_says_how_much(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    later = 4_000_000_000_000
    waiting = line("1", ["u1", "u2", "u3"], campaign="c", not_before=later)
    assert (await run("send", "-c", config, "basic", input=waiting + line("2", ["u9"])))[0] == 0
    await gateway[0].until(1)  # of one partition or another; the waiting send is in when a cancel counts it
    ended = 0
    async with asyncio.timeout(WITHIN_S):
        while not ended:
            code, out, err = await run("cancel", "c", "-c", config, "--json")
            assert (code, err) == (0, "")
            ended = json.loads(out)["recipients"]
    assert ended == 3
    assert gateway[0].got == ["u9"]


async def test_a_trickle_is_sent_while_standard_input_stays_open(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "engine.cli", "send", "-c", str(config), "system", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    try:
        process.stdin.write(line("1", ["u1"]).encode())
        await process.stdin.drain()
        await gateway[0].until(1)
        assert process.returncode is None
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), WITHIN_S) == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_second_engine_on_one_embedded_log_says_why_it_cannot(config: Path, engine: Engine) -> None:
    code, out, err = await run("serve", "-c", config, "--log-format", "json")
    assert (code, out) == (1, "")
    last = json.loads(err.splitlines()[-1])
    assert (last["level"], last["event"]) == ("critical", "cannot go on")
    assert engine.process.returncode is None


async def test_no_such_file_is_2_and_one_line(tmp_path: Path) -> None:
    code, out, err = await run("serve", "-c", tmp_path / "none.toml")
    assert (code, out, err) == (2, "", f"{tmp_path}/none.toml:1: cannot be read: No such file or directory\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
async def test_send_shows_progress_on_a_terminal(config: Path, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("".join(line(str(n), ["u"]) for n in range(3)))
    terminal, other = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "engine.cli", "send", "-c", str(config), "basic", str(tmp_path / "s.jsonl"),
        stderr=other, stdout=asyncio.subprocess.PIPE, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(other)
    out, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert out == b"sent 3 sends to 3 recipients on surgetank.basic\n"
    assert "3 sent, 0 refused" in shown


@pytest.mark.kafka
async def test_topics_send_and_cancel_on_a_real_kafka(kafka_bootstrap: str, config: Path) -> None:
    kafka(config, kafka_bootstrap)
    code, _, err = await run("send", "-c", config, "basic", input=line("1", ["u1"]))
    assert code == 1
    assert "no such topic: " in err
    assert ".basic (`surgetank topics create` makes it)" in err
    assert (await run("topics", "check", "-c", config))[0] == 1
    code, out, err = await run("topics", "create", "-c", config, "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["created"]) == 21
    assert (await run("topics", "check", "-c", config, "--json"))[:2] == (
        0, '{"ok":true,"created":[],"differences":[]}\n',
    )  # fmt: skip
    code, out, err = await run("send", "-c", config, "basic", "--json", input=line("1", ["u" * 128] * 9_999))
    assert (code, err) == (0, "")
    assert json.loads(out)["bytes"] > 1 << 20, "more than Kafka takes unless a topic says so"
    assert (await run("cancel", "c", "-c", config, "--timeout", "300ms"))[0] == 1


def kafka(config: Path, bootstrap: str) -> None:
    text = config.read_text().replace(
        "[log]\n", f'[log]\nkind = "kafka"\nbootstrap = "{bootstrap}"\nprefix = "{uuid4().hex}"\n'
    )
    config.write_text(text)


async def test_a_kafka_that_is_not_there_is_said(config: Path) -> None:
    kafka(config, "127.0.0.1:1")
    code, out, err = await run("topics", "check", "-c", config)
    assert (code, out) == (1, "")
    assert "127.0.0.1:1" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("told", ["", "hello\n"])
async def test_nobody_but_the_supervisor_starts_a_worker(told: str) -> None:
    code, out, err = await run("serve", "-c", "none.toml", "--worker", "all-1", input=told)
    assert (code, out) == (2, "")
    assert err == "--worker is for the supervisor to give; start `surgetank serve` without it\n"
