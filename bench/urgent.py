"""How long a `system` send takes from its append to the platform's receipt of the request: idle, with a million `basic`
recipients queued, with the platform of these hung, and with each of these told to come again (a retry storm);
and, idle, on a channel that forbids repeats.

Open loop: sends are appended at fixed times, whatever became of the ones before, and every latency counts from the
intended time, so that a stall hides nothing. The platform of the urgent sends is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import uvloop

from bench import stack
from bench.judge import percentile
from engine.config import Config, load
from engine.logs import Log, Record

CONFIG = """
state = "{folder}/state"
[log]
{log}
[tiers.basic]
pacing = "asap"
budget = {{ sends = 2_000_000, bytes = "2GiB" }}
[channels.notice]
driver = "wecom.message"
base_url = "{urgent}/wecom"
in_flight = 32
[channels.notice.accounts.corp]
corpid = "ww"
corpsecret = "s"
agentid = 1
[channels.once]
driver = "wecom.message"
base_url = "{urgent}/wecom"
in_flight = 32
repeats = "never"
[channels.once.accounts.corp]
corpid = "ww"
corpsecret = "s"
agentid = 1
[channels.mass]
driver = "webhook"
base_url = "{mass}/webhook/mass"
in_flight = 16
batch = 20
limits = [{{ calls = 100, per = "1s" }}]
[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
LATENCY = {"kind": "lognormal", "median_s": 0.02, "sigma": 0.4, "max_s": 0.5}
URGENT = {"wecom": {"latency": LATENCY}}
MASS = {"webhook": {"latency": LATENCY, "retry_after_ms": 1000}}
HANG = {"endpoint": "webhook", "kind": "hang", "duration_s": 3600}
WARM = 2_000  # the broker compiles what it runs often
APPENDED_AT_ONCE = 2000
INTAKE_S = 300.0  # to take the backlog in
ARRIVES_S, ARRIVE_S = 0.5, 60.0  # the last urgent send, as a rule and at most
SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


class Bench:
    """One log, one engine, two platforms; the cases one after the other."""

    def __init__(self, log: Log, engine: stack.Engine, urgent: stack.Simulator, rate: float) -> None:
        self.figures: dict[str, Any] = {}
        self._log = log
        self._engine = engine
        self._urgent = urgent
        self._every_s = 1.0 / rate

    async def case(self, name: str, samples: int, channel: str = "notice") -> None:
        """Append ``samples`` urgent sends on their schedule and add what became of them to ``figures``."""
        before = await self._engine.samples()
        intended, slips, acked = await self._feed(name, samples, channel)
        latencies = await self._arrived(intended)
        after = await self._engine.samples()
        for label, share in SHARES.items():
            self.figures[f"{name}_{label}_ms"] = round(percentile(latencies, share), 2)
        self.figures[f"{name}_slip_p99_ms"] = round(percentile(slips, 0.99), 2)
        self.figures[f"{name}_append_p99_ms"] = round(percentile(acked, 0.99), 2)
        self.figures[f"{name}_stalls"] = _stalls(after) - _stalls(before)
        self.figures[f"{name}_queued"] = int(after.sum("queue_recipients", tier="basic"))

    async def queue(self, backlog: int) -> None:
        """Queue ``backlog`` basic recipients: one-recipient sends of 20 campaigns, which a limit lets out slowly."""
        for first in range(0, backlog, APPENDED_AT_ONCE):
            await self._log.append([_mass(n) for n in range(first, min(first + APPENDED_AT_ONCE, backlog))])
        deadline = time.monotonic() + INTAKE_S
        while (await self._engine.samples("consumed_sends_total")).sum("consumed_sends_total", tier="basic") < backlog:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the backlog was not taken in within {INTAKE_S:.0f} s")
            await asyncio.sleep(0.5)

    async def _feed(self, name: str, samples: int, channel: str) -> tuple[dict[str, int], list[float], list[float]]:
        """The intended times (wall, ns) by recipient; how much later (ms) each append was begun, and acknowledged."""
        start, epoch_ns = time.monotonic() + 0.1, time.time_ns() - time.monotonic_ns()
        intended: dict[str, int] = {}
        slips: list[float] = []
        acked: list[float] = []

        async def append(id: str, due: float) -> None:
            await self._log.append([_urgent(id, channel)])
            acked.append((time.monotonic() - due) * 1e3)

        async with asyncio.TaskGroup() as appends:
            for n in range(samples):
                due = start + n * self._every_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                slips.append((time.monotonic() - due) * 1e3)
                id = f"{name}{n}"
                intended[id] = int(due * 1e9) + epoch_ns
                appends.create_task(append(id, due))
        return intended, slips, acked

    async def _arrived(self, intended: dict[str, int]) -> list[float]:
        """Latencies in ms, of every one of them."""
        await asyncio.sleep(ARRIVES_S)  # reading the ledger keeps the platform from answering
        deadline = time.monotonic() + ARRIVE_S
        while True:
            rows = [row async for row in self._urgent.lines("ledger/export") if row["recipient"] in intended]
            if len(rows) >= len(intended):
                return [(row["arrived_ns"] - intended[row["recipient"]]) / 1e6 for row in rows]
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(intended) - len(rows)} of {len(intended)} urgent sends never arrived")
            await asyncio.sleep(0.5)


def _stalls(scrape: stack.Samples) -> int:
    """How often the engine's loop ran a timer more than 5 ms late."""
    late = scrape.by("loop_stall_seconds_bucket", "le")
    return int(late["+Inf"] - late["0.005"])


def _urgent(id: str, channel: str) -> Record:
    content = {"type": "text", "text": "urgent"}
    return Record("surgetank.system", msgpack.packb({"id": id, "channel": channel, "to": [id], "content": content}))


def _mass(n: int) -> Record:
    campaign = f"c{n % 20}"
    send = {"id": f"b{n}", "channel": "mass", "to": [f"user{n:023d}"], "campaign": campaign, "content": {"n": campaign}}
    return Record("surgetank.basic", msgpack.packb(send))


async def measure(folder: Path, bootstrap: str | None, samples: int, backlog: int, rate: float) -> dict[str, Any]:
    """All cases on one engine."""
    async with AsyncExitStack() as exits:
        session = await exits.enter_async_context(aiohttp.ClientSession())
        platforms = []
        for name, options in (("urgent", URGENT), ("mass", MASS)):
            (folder / name).mkdir()
            started = stack.simulator(folder / name, options, session, ledger=False)
            platforms.append(await exits.enter_async_context(started))
        urgent, mass = platforms
        config, port = _config(folder, bootstrap, urgent.url, mass.url)
        log = await exits.enter_async_context(stack.opened(config, engine=False))
        engine = await exits.enter_async_context(stack.engine(folder, folder / "c.toml", port, session))
        gc.freeze()
        gc.disable()  # a collection would stand in the schedule
        bench = Bench(log, engine, urgent, rate)
        await bench.case("warm", WARM)
        bench.figures.clear()
        await bench.case("idle", samples)
        await bench.case("once", samples, "once")
        await bench.queue(backlog)
        await bench.case("loaded", samples)
        await mass.post("outage", HANG)
        await bench.case("hung", samples)
        await mass.delete("outage")
        await mass.post("options", {"webhook": {"retry_share": 1.0}})
        await bench.case("storm", samples)
        retries = (await engine.samples()).sum("retries_total", channel="mass")
    ratio = round(bench.figures["loaded_p99_ms"] / bench.figures["idle_p99_ms"], 2)
    return {"samples": samples, "rate": rate, "backlog": backlog, **bench.figures, "retries": retries, "ratio": ratio}


def _config(folder: Path, bootstrap: str | None, urgent: str, mass: str) -> tuple[Config, int]:
    port = stack.free_port()
    path = folder / "c.toml"
    log = stack.log_keys(folder, bootstrap)
    path.write_text(CONFIG.format(folder=folder, log=log, urgent=urgent, mass=mass, port=port))
    return load(path), port


def main(argv: list[str]) -> int:
    """``python -m bench urgent``."""
    parser = argparse.ArgumentParser(prog="python -m bench urgent", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--kafka", action="store_true", help="a real Apache Kafka instead of the embedded log")
    parser.add_argument("--samples", type=int, default=20_000, help="system sends a case (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="of them a second (default: %(default)s)")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="basic recipients (default: %(default)s)")
    options = parser.parse_args(argv)
    numbers = (options.samples, options.backlog, options.rate)
    with tempfile.TemporaryDirectory(prefix="surgetank-urgent-") as folder:
        if options.kafka:
            from bench.kafka import Broker  # Java is needed for this alone

            with Broker() as broker:
                figures = uvloop.run(measure(Path(folder), broker.bootstrap, *numbers))
        else:
            figures = uvloop.run(measure(Path(folder), None, *numbers))
    figures["machine"] = stack.machine()
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0
