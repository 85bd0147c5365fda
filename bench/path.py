"""How many sends a second one worker takes from the log to the platform, beside a loop that only reads the log.

``sends``: one-recipient sends of 200-300 bytes, merged into batches of 1,000. ``batches``: sends of 1,000 recipients.
``calls``: one-recipient calls, beside a bare loop of the same HTTP client against the same simulator.
Everything is appended before the engine starts; the clock runs from its first poll to the last receipt counted.
Each figure is the median of the runs; engine and floor take turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import uvloop

from bench import stack
from engine.config import Config, load
from engine.logs import Log, Record

GIVE_UP_S = 180.0
SCRAPE_S = {"basic": 0.5, "template": 2.0}  # a scrape takes some 10 ms of the engine's own time; sends are over sooner
CONFIG = """
state = "{folder}/state"
[log]
{log}
prefix = "{prefix}"
[tiers.template]
pacing = "asap"
budget = {{ sends = 2_000_000, bytes = "4GiB" }}
[tiers.basic]
pacing = "asap"
budget = {{ sends = 2_000_000, bytes = "4GiB" }}
[channels.partner]
driver = "webhook"
base_url = "{url}/webhook/partner"
batch = 1000
in_flight = 8
[channels.wechat]
driver = "wechat.template"
base_url = "{url}/wechat"
in_flight = 32
[channels.wechat.accounts.shop]
appid = "wx-shop"
secret = "s"
[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
TEMPLATE = {"channel": "wechat", "content": {"template_id": "tpl"}, "fields": {"state": {"required": True}}}
STAGES = {
    "consume": ("aiokafka", "engine/logs", "engine/consume", "sqlite"),
    "decode": ("engine/decode", "engine/wire"),
    "admit": ("engine/admit", "engine/drivers", "engine/state"),
    "schedule": ("ext/",),
    "deliver": ("engine/deliver", "engine/tokens", "aiohttp", "yarl", "multidict"),
    "settle": ("engine/dispatch", "engine/settle", "engine/record", "engine/open_sends", "engine/counters"),
    "commit": ("engine/commit",),
}


def one_recipient(prefix: str, count: int) -> Iterable[Record]:
    """200-300 bytes each."""
    text = {"type": "text", "text": "Half price this week only, in every shop of the town and on the web."}
    for n in range(count):
        send = {
            "id": f"order-{n:012d}",
            "channel": "partner",
            "to": [f"user-{n:024d}"],
            "tenant": f"tenant-{n % 4}",
            "campaign": f"campaign-{n % 8}",
            "content": text,
        }
        yield Record(f"{prefix}.basic", msgpack.packb(send))


def thousands(prefix: str, count: int) -> Iterable[Record]:
    """1,000 recipients each."""
    for n in range(count // 1000):
        to = [f"user-{n:06d}-{r:06d}" for r in range(1000)]
        send = {"id": f"mass-{n}", "channel": "partner", "to": to, "campaign": f"c-{n % 8}", "content": {"n": 1}}
        yield Record(f"{prefix}.basic", msgpack.packb(send))


def templates(prefix: str, count: int) -> Iterable[Record]:
    """One-recipient calls."""
    for n in range(count):
        content = {"template": "tpl", "data": {"state": "shipped"}}
        send = {"id": f"t-{n}", "channel": "wechat", "to": [f"openid-{n:020d}"], "content": content}
        yield Record(f"{prefix}.template", msgpack.packb(send))


Make = Callable[[str, int], Iterable[Record]]


class Bench:
    """One log of one kind, one simulator."""

    def __init__(self, folder: Path, kind: str, bootstrap: str | None, session: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.kind = kind
        self.bootstrap = bootstrap
        self.session = session
        self.stages: Counter[str] = Counter()
        self._runs = 0

    async def run(self, make: Make, tier: str, count: int, profile: bool) -> tuple[float, float, float]:
        """Recipients a second through the engine, sends a second through a bare reader, CPU us a recipient."""
        self._runs += 1
        folder = self.folder / f"{self.kind}-{self._runs}"
        folder.mkdir()
        async with AsyncExitStack() as exits:
            simulator = await exits.enter_async_context(stack.simulator(folder, {}, self.session, ledger=False))
            config, port = self._config(folder, simulator.url)
            log = await exits.enter_async_context(stack.opened(config, engine=False))
            records = list(make(config.log.prefix, count))
            await log.append([Record(f"{config.log.prefix}.content", msgpack.packb(TEMPLATE), key=b"tpl")])
            for first in range(0, len(records), 2000):
                await log.append(records[first : first + 2000])
            engine = await exits.enter_async_context(stack.engine(folder, folder / "c.toml", port, self.session))
            rate, cpu = await self._measure(engine, count, folder, SCRAPE_S[tier], profile)
            await engine.child.stop()
            bare = await _bare(log, config, tier, len(records))
        return rate, bare, cpu

    async def _measure(
        self, engine: stack.Engine, count: int, folder: Path, scrape_s: float, profile: bool
    ) -> tuple[float, float]:
        pid = engine.child.process.pid
        spy = await _spy(pid, folder / "spy.txt") if profile else None
        points: list[tuple[float, float, float]] = []  # when, recipients ended, CPU seconds
        deadline = time.monotonic() + GIVE_UP_S
        while not points or points[-1][1] < count:
            engine.child.check()
            ended = (await engine.samples("recipients_total")).sum("recipients_total")
            points.append((time.monotonic(), ended, _cpu_s(pid)))
            if points[-1][0] > deadline:
                raise RuntimeError(f"{count - ended:.0f} of {count} not ended after {GIVE_UP_S:.0f} s")
            await asyncio.sleep(scrape_s)
        if spy is not None:
            spy.send_signal(2)
            await spy.wait()
            self.stages.update(_by_stage(folder / "spy.txt"))
        # From the first sign of work to the last but one: neither the start nor the idle end belongs to the rate.
        lower = next(point for point in points if point[1] > 0)
        upper = points[-2]
        ended = upper[1] - lower[1]
        if len(points) < 4 or ended < count / 4:
            raise RuntimeError(f"{count} is too few to measure: it was over within {len(points)} scrapes")
        return ended / (upper[0] - lower[0]), (upper[2] - lower[2]) / ended * 1e6

    def _config(self, folder: Path, url: str) -> tuple[Config, int]:
        port, prefix = stack.free_port(), f"path{os.getpid()}x{self._runs}"
        log = stack.log_keys(folder, self.bootstrap)
        path = folder / "c.toml"
        path.write_text(CONFIG.format(folder=folder, log=log, prefix=prefix, url=url, port=port))
        return load(path), port


async def _bare(log: Log, config: Config, tier: str, count: int) -> float:
    """Sends a second when they are only read and counted; for Kafka aiokafka's own ``getmany``."""
    topic = f"{config.log.prefix}.{tier}"
    if config.log.kind == "kafka":
        return await _bare_aiokafka(config.log.bootstrap, topic, count)
    reader = await log.reader([topic])
    seen, started = 0, time.monotonic()
    while seen < count:
        seen += sum(len(chunk.offsets) for chunk in await reader.poll(500, 0.2))
    took = time.monotonic() - started
    await reader.close()
    return count / took


async def _bare_aiokafka(bootstrap: str, topic: str, count: int) -> float:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        seen = sum(map(len, (await consumer.getmany(timeout_ms=1000, max_records=500)).values()))
        first, started = seen, time.monotonic()
        while seen < count:
            seen += sum(map(len, (await consumer.getmany(timeout_ms=1000, max_records=500)).values()))
        return (count - first) / (time.monotonic() - started)
    finally:
        await consumer.stop()


async def _bare_calls(url: str, seconds: float) -> float:
    """Template calls a second of a bare client loop: one token, 32 at once, the body built beforehand."""
    connector, timeout, jar = aiohttp.TCPConnector(limit=32), aiohttp.ClientTimeout(total=10), aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as session:
        ask = {"grant_type": "client_credential", "appid": "wx-shop", "secret": "s"}
        async with session.post(f"{url}/wechat/cgi-bin/stable_token", json=ask) as answer:
            token = (await answer.json())["access_token"]
        send = f"{url}/wechat/cgi-bin/message/template/send?access_token={token}"
        done, end = 0, time.monotonic() + seconds

        async def worker(number: int) -> None:
            nonlocal done
            while time.monotonic() < end:
                body = {"touser": f"bare-{number}-{done}", "template_id": "tpl", "data": {"state": {"value": "x"}}}
                async with session.post(send, data=json.dumps(body).encode()) as answer:
                    await answer.read()
                done += 1

        started = time.monotonic()
        cpu = time.process_time()
        await asyncio.gather(*(worker(number) for number in range(32)))
        rate = done / (time.monotonic() - started)
        print(f"  bare loop: {rate:,.0f} calls/s, {(time.process_time() - cpu) / done * 1e6:.0f} us CPU a call")
        return done / (time.process_time() - cpu)


async def _spy(pid: int, file: Path) -> asyncio.subprocess.Process:
    py_spy = Path(sys.executable).with_name("py-spy")
    return await asyncio.create_subprocess_exec(
        str(py_spy), "record", "-d", "600", "-r", "200", "-f", "raw", "-o", str(file), "-p", str(pid),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _by_stage(file: Path) -> Counter[str]:
    """Samples by the stage of the innermost frame that belongs to one."""
    stages: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        frames, _, samples = line.rpartition(" ")
        for frame in reversed(frames.split(";")):
            stage = next((name for name, marks in STAGES.items() if any(mark in frame for mark in marks)), None)
            if stage is not None:
                break
        stages[stage or "loop and rest"] += int(samples)
    return stages


def _cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _median(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


async def _all(options: argparse.Namespace, folder: Path, kind: str, bootstrap: str | None) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with aiohttp.ClientSession() as session:
        bench = Bench(folder, kind, bootstrap, session)
        for name, make, tier, count in (
            ("sends", one_recipient, "basic", options.sends),
            ("batches", thousands, "basic", options.sends * 2),
            ("calls", templates, "template", options.sends // 20),
        ):
            if name not in options.what:
                continue
            rates, bares, cpus = [], [], []
            if name == "sends":  # one run more, for the shares: being watched slows it
                await bench.run(make, tier, count, profile=True)
            before = await _calls_floor(folder, session) if name == "calls" else 0.0
            for _ in range(options.runs):
                rate, bare, cpu = await bench.run(make, tier, count, profile=False)
                print(
                    f"{kind} {name}: {rate:,.0f} recipients/s, bare reader {bare:,.0f} sends/s, {cpu:.1f} us CPU each"
                )
                rates.append(rate)
                if name == "calls":  # the machine may change its pace within a run: between two of the floor's
                    after = await _calls_floor(folder, session)
                    bare, before = (before + after) / 2, after
                bares.append(bare)
                cpus.append(cpu)
            figures[name] = {"recipients_per_s": _median(rates), "cpu_us": _median(cpus)}
            if name == "sends":
                ratio = statistics.median(r / b for r, b in zip(rates, bares, strict=True))
                total, cpu_us = sum(bench.stages.values()) or 1, statistics.median(cpus)
                figures[name] |= {
                    "engine_sends_per_s": _median(rates),
                    "bare_client_sends_per_s": _median(bares),
                    "ratio": round(ratio, 3),
                    "share_by_stage": {stage: round(n / total, 3) for stage, n in bench.stages.most_common()},
                    "cpu_us_per_send": {stage: round(cpu_us * n / total, 2) for stage, n in bench.stages.most_common()},
                }
            if name == "calls":
                # Calls for a second of CPU: the share of a core is what differs, not how long the simulator takes.
                engine = [1e6 / cpu for cpu in cpus]
                figures[name] |= {
                    "engine_calls_per_core_s": _median(engine),
                    "bare_calls_per_core_s": _median(bares),
                    "ratio": round(statistics.median(e / b for e, b in zip(engine, bares, strict=True)), 3),
                }
    return figures


async def _calls_floor(folder: Path, session: aiohttp.ClientSession) -> float:
    async with stack.simulator(folder, {}, session, ledger=False) as simulator:
        return await _bare_calls(simulator.url, 4.0)


def main(argv: list[str]) -> int:
    """``python -m bench path``."""
    parser = argparse.ArgumentParser(prog="python -m bench path", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--log", choices=["sqlite", "kafka", "both"], default="both", help="default: %(default)s")
    what = ["sends", "batches", "calls"]
    parser.add_argument("--what", nargs="+", choices=what, default=what, help="default: all")
    parser.add_argument("--sends", type=int, default=1_200_000, help="one-recipient sends a run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args(argv)
    print(stack.machine())
    figures: dict[str, Any] = {"machine": stack.machine()}
    with tempfile.TemporaryDirectory(prefix="surgetank-path-") as folder:
        if options.log != "kafka":
            figures["sqlite"] = uvloop.run(_all(options, Path(folder), "sqlite", None))
        if options.log != "sqlite":
            from bench.kafka import Broker  # Java is needed for this alone

            with Broker() as broker:
                figures["kafka"] = uvloop.run(_all(options, Path(folder), "kafka", broker.bootstrap))
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0
