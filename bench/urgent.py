"""How long a `system` send takes from the append to the platform's receipt of the request: idle, and while 200,000
basic recipients are queued. Open loop: sends are appended at fixed times, whatever became of the ones before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgpack

from bench import stack
from bench.judge import percentile
from engine.config import load
from engine.logs import Log, Record

CONFIG = """
state = "{folder}/state"
[log]
{log}
[tiers.basic]
pacing = "asap"
budget = {{ sends = 1_000_000, bytes = "2GiB" }}
[channels.wecom]
driver = "wecom.message"
base_url = "{url}/wecom"
in_flight = 16
[channels.wecom.accounts.corp]
corpid = "ww"
corpsecret = "s"
agentid = 1
[channels.wecom-mass]
driver = "wecom.message"
base_url = "{url}/wecom"
in_flight = 16
limits = [{{ calls = 100, per = "1s" }}]
[channels.wecom-mass.accounts.corp]
corpid = "ww"
corpsecret = "s"
agentid = 2
[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
SIMULATOR = {"wecom": {"latency": {"kind": "lognormal", "median_s": 0.02, "sigma": 0.4, "max_s": 0.5}}}
EVERY_S = 0.02


async def measure(folder: Path, bootstrap: str | None, samples: int, backlog: int) -> dict[str, Any]:
    """Both cases, one after the other, on one engine."""
    async with AsyncExitStack() as exits:
        session = await exits.enter_async_context(aiohttp.ClientSession())
        simulator = await exits.enter_async_context(stack.simulator(folder, SIMULATOR, session, ledger=False))
        port = stack.free_port()
        path = folder / "c.toml"
        path.write_text(
            CONFIG.format(folder=folder, log=stack.log_keys(folder, bootstrap), url=simulator.url, port=port)
        )
        config = load(path)
        log = await exits.enter_async_context(stack.opened(config, engine=False))
        engine = await exits.enter_async_context(stack.engine(folder, path, port, session))
        await _urgent(log, simulator, "warm", 50)
        idle = await _urgent(log, simulator, "idle", samples)
        await _queue(log, engine, backlog)
        before = (await engine.samples()).sum("queue_recipients", tier="basic")
        loaded = await _urgent(log, simulator, "loaded", samples)
        after = (await engine.samples()).sum("queue_recipients", tier="basic")
    figures: dict[str, Any] = {"samples": samples, "queued_before": before, "queued_after": after}
    for name, values in (("idle", idle), ("loaded", loaded)):
        figures |= {f"{name}_p{p}_ms": round(percentile(values, p / 100), 2) for p in (50, 99)}
    figures["ratio"] = round(figures["loaded_p99_ms"] / figures["idle_p99_ms"], 2)
    return figures


async def _queue(log: Log, engine: stack.Engine, backlog: int) -> None:
    """Queue ``backlog`` basic recipients: one-recipient sends with a content each, which the limit lets out slowly."""
    for first in range(0, backlog, 1000):
        sends = [
            {"id": f"b{n}", "channel": "wecom-mass", "to": [f"user{n}"], "campaign": f"c{n % 20}",
             "content": {"type": "text", "text": f"offer {n}"}}
            for n in range(first, first + 1000)
        ]  # fmt: skip
        await log.append([Record("surgetank.basic", msgpack.packb(send)) for send in sends])
    deadline = time.monotonic() + 120
    while (await engine.samples()).sum("consumed_sends_total", tier="basic") < backlog:
        if time.monotonic() > deadline:
            raise RuntimeError("the backlog was not taken in within 120 s")
        await asyncio.sleep(0.5)


async def _urgent(log: Log, simulator: stack.Simulator, name: str, samples: int) -> list[float]:
    """Latencies in ms, from the intended time of the append."""
    appended: dict[str, int] = {}
    start = time.monotonic()
    content = {"type": "text", "text": "urgent"}
    for n in range(samples):
        await asyncio.sleep(max(0.0, start + n * EVERY_S - time.monotonic()))
        id = f"{name}{n}"
        # From the intended time: a stall of this process must not hide what it delayed.
        appended[id] = time.time_ns() - max(0, int((time.monotonic() - start - n * EVERY_S) * 1e9))
        send = {"id": id, "channel": "wecom", "to": [id], "content": content}
        await log.append([Record("surgetank.system", msgpack.packb(send))])
    deadline = time.monotonic() + 60
    while True:
        rows = [row async for row in simulator.lines("ledger/export") if row["recipient"] in appended]
        if len(rows) >= samples:
            return [(row["arrived_ns"] - appended[row["recipient"]]) / 1e6 for row in rows]
        if time.monotonic() > deadline:
            raise RuntimeError(f"{samples - len(rows)} of {samples} urgent sends never arrived")
        await asyncio.sleep(0.5)


def main(argv: list[str]) -> int:
    """``python -m bench urgent``."""
    parser = argparse.ArgumentParser(prog="python -m bench urgent", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--kafka", action="store_true", help="a real Apache Kafka instead of the embedded log")
    parser.add_argument("--samples", type=int, default=1000, help="system sends a case (default: %(default)s)")
    parser.add_argument("--backlog", type=int, default=200_000, help="basic recipients queued (default: %(default)s)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="surgetank-urgent-") as folder:
        if options.kafka:
            from bench.kafka import Broker  # Java is needed for this alone

            with Broker() as broker:
                figures = asyncio.run(measure(Path(folder), broker.bootstrap, options.samples, options.backlog))
        else:
            figures = asyncio.run(measure(Path(folder), None, options.samples, options.backlog))
    figures["machine"] = stack.machine()
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0
