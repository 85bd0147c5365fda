"""The demo: engine and simulator as real processes, 200,000 recipients in bursts, one outage; then the reckoning.

Exit code 1 when anything is missing, repeated or unexplained.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench import feed, stack
from bench.judge import Verdict, judge, percentile, read_input
from engine.config import Config
from engine.config import load as load_config
from engine.logs import Log, Record
from engine.send import Tier

BURST_EVERY_S = 1.0
OUTAGE = {"endpoint": "wecom", "kind": "refuse", "start_s": 3.0, "duration_s": 2.0}
GIVE_UP_S = 90.0
CONFIG = """
state = "{folder}/state"

[log]
{log}

[tiers.basic]
due_after = "20s"
linger = "200ms"

[channels.wecom-notice]
driver = "wecom.message"
base_url = "{url}/wecom"
in_flight = 16
limits = [{{ calls = 10_000, per = "1m" }}]
retry = {{ attempts = 12, first = "200ms", most = "5s" }}

[channels.wecom-notice.accounts.corp-a]
corpid = "ww-a"
corpsecret = "secret-a"
agentid = 1000002

[channels.wecom-notice.accounts.corp-b]
corpid = "ww-b"
corpsecret = "secret-b"
agentid = 1000003

[channels.wechat-notice]
driver = "wechat.template"
base_url = "{url}/wechat"
in_flight = 32

[channels.wechat-notice.accounts.shop]
appid = "wx-shop"
secret = "secret-shop"

[channels.partner]
driver = "webhook"
base_url = "{url}/webhook/partner"
in_flight = 8
batch = 500

[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
SIMULATOR = {
    "wecom": {
        "accounts": {"ww-a": "secret-a", "ww-b": "secret-b"},
        "latency": {"kind": "lognormal", "median_s": 0.02, "sigma": 0.4, "max_s": 0.5},
        "quotas": [{"calls": 10_000, "per_s": 60}],
    },
    "wechat": {
        "accounts": {"wx-shop": "secret-shop"},
        "latency": {"kind": "lognormal", "median_s": 0.01, "sigma": 0.4, "max_s": 0.5},
        "templates": ["tpl-order"],
    },
    "webhook": {"latency": {"kind": "lognormal", "median_s": 0.03, "sigma": 0.4, "max_s": 0.5}, "batch": 500},
}


class Demo:
    """One run."""

    def __init__(self, folder: Path, recipients: int, bootstrap: str | None, console: Console) -> None:
        self.folder = folder
        self.recipients = recipients
        self.bootstrap = bootstrap
        self.console = console

    async def run(self) -> dict[str, Any]:
        """Feed, wait, judge; returns the JSON document."""
        port = stack.free_port()
        async with AsyncExitStack() as exits:
            session = await exits.enter_async_context(aiohttp.ClientSession())
            simulator = await exits.enter_async_context(stack.simulator(self.folder, SIMULATOR, session))
            config = self._config(simulator.url, port)
            log = await exits.enter_async_context(stack.opened(config, engine=False))
            template = Record(f"{config.log.prefix}.content", msgpack.packb(feed.TEMPLATE), key=b"order-state")
            await log.append([template])
            engine = await exits.enter_async_context(
                stack.engine(self.folder, self.folder / "surgetank.toml", port, session)
            )
            fed = feed.make(config.log.prefix, self.recipients)
            await simulator.post("outage", OUTAGE)
            started = time.monotonic()
            feeding = asyncio.create_task(_feed(log, fed))
            samples = await self._watch(engine, fed.recipients, feeding)
            seconds = time.monotonic() - started
            code = await engine.child.stop()
            if code:
                raise RuntimeError(f"the engine ended with {code}:\n{engine.child.tail()}")
            verdict = await judge(
                log, config.log.prefix, await read_input(log, config.log.prefix), simulator.lines("ledger/export")
            )
            difference = sum(abs(d) for d in samples.by("conservation_difference_recipients", "tier").values())
            counts = await simulator.get("ledger/counts")
            report(self.console, verdict, samples, counts)
            return document(verdict, int(difference), fed.recipients, seconds)

    def _config(self, url: str, port: int) -> Config:
        log = stack.log_keys(self.folder, self.bootstrap) + f'\nprefix = "demo{time.time_ns()}"'
        path = self.folder / "surgetank.toml"
        path.write_text(CONFIG.format(folder=self.folder, log=log, url=url, port=port))
        return load_config(path)

    async def _watch(self, engine: stack.Engine, recipients: int, feeding: asyncio.Task[None]) -> stack.Samples:
        """Show progress until everything fed has ended."""
        started = time.monotonic()
        with Live(console=self.console, transient=False, refresh_per_second=4) as live:
            while True:
                engine.child.check()
                samples = await engine.samples()
                ended = samples.sum("recipients_total")
                live.update(_progress(samples, recipients, time.monotonic() - started))
                if feeding.done():
                    feeding.result()
                    if ended >= recipients:
                        return samples
                if time.monotonic() - started > GIVE_UP_S:
                    raise RuntimeError(f"{recipients - ended:.0f} recipients open after {GIVE_UP_S:.0f} s")
                await asyncio.sleep(0.25)


async def _feed(log: Log, fed: feed.Fed) -> None:
    start = time.monotonic()
    for number, burst in enumerate(fed.bursts):
        await asyncio.sleep(start + number * BURST_EVERY_S - time.monotonic())
        for first in range(0, len(burst), 500):
            await log.append([r._replace(timestamp_ms=time.time_ns() // 1_000_000) for r in burst[first : first + 500]])


def _progress(samples: stack.Samples, recipients: int, seconds: float) -> Table:
    table = Table(title=f"{seconds:4.1f} s, {samples.sum('recipients_total'):,.0f} of {recipients:,} recipients ended")
    for column in ("tier", "taken in", "queued", "in flight", "accepted", "other ends", "retried"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for tier in Tier:
        states = samples.by("queue_recipients", "state", tier=tier.label)
        in_flight = states.pop("inflight", 0)
        ends = samples.by("recipients_total", "outcome", tier=tier.label)
        accepted = ends.pop("accepted", 0)
        taken_in = samples.sum("taken_in_recipients_total", tier=tier.label)
        row = (taken_in, sum(states.values()), in_flight, accepted, sum(ends.values()), states.get("retry", 0))
        table.add_row(tier.label, *(f"{value:,.0f}" for value in row))
    return table


def report(console: Console, verdict: Verdict, samples: stack.Samples, counts: dict[str, Any]) -> None:
    """What became of it all."""
    table = Table(title="Outcomes, in recipients (from the receipts on the log)")
    for column in ("tier", "channel", "outcome", "recipients"):
        table.add_column(column, justify="right" if column == "recipients" else "left")
    for (tier, channel, outcome), count in sorted(verdict.by_channel.items()):
        table.add_row(tier, channel or "(unreadable)", outcome, f"{count:,}")
    console.print(table)
    table = Table(title="From the append to the platform's receipt of the request, ms")
    for column in ("tier", "p50", "p99"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for tier, values in verdict.latency_ms.items():
        table.add_row(tier, f"{percentile(values, 0.5):,.0f}", f"{percentile(values, 0.99):,.0f}")
    console.print(table)
    table = Table(title="Calls that were made (from the engine) and their fill")
    for column in ("channel", "calls", "recipients a call"):
        table.add_column(column, justify="left" if column == "channel" else "right")
    calls = samples.by("batch_recipients_count", "channel")
    for channel, recipients in samples.by("batch_recipients_sum", "channel").items():
        if calls[channel]:
            table.add_row(channel, f"{calls[channel]:,.0f}", f"{recipients / calls[channel]:,.1f}")
    console.print(table)
    console.print(f"the simulator's ledger: {json.dumps(counts)}")


def document(verdict: Verdict, difference: int, fed: int, seconds: float) -> dict[str, Any]:
    """The JSON document: docs/benchmarks.md."""
    return {
        "taken_in": verdict.taken_in,
        "outcomes": dict(verdict.outcomes),
        "difference": difference + abs(fed - verdict.taken_in),
        "missing": len(verdict.missing),
        "repeated": len(verdict.repeated),
        "unexplained": len(verdict.unexplained),
        "seconds": round(seconds, 2),
        "recipients_per_s": round(verdict.taken_in / seconds),
        "latency_ms": {
            tier: {"p50": round(percentile(values, 0.5), 1), "p99": round(percentile(values, 0.99), 1)}
            for tier, values in verdict.latency_ms.items()
        },
        "machine": stack.machine(),
    }


def main(argv: list[str]) -> int:
    """``python -m bench demo``."""
    parser = argparse.ArgumentParser(prog="python -m bench demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--kafka", action="store_true", help="a real Apache Kafka instead of the embedded log")
    parser.add_argument("--recipients", type=int, default=200_000, help="how many to feed (default: %(default)s)")
    options = parser.parse_args(argv)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="surgetank-demo-") as folder:
        if options.kafka:
            from bench.kafka import Broker  # Java is needed for this alone

            with Broker() as broker:
                figures = asyncio.run(Demo(Path(folder), options.recipients, broker.bootstrap, console).run())
        else:
            figures = asyncio.run(Demo(Path(folder), options.recipients, None, console).run())
    console.print_json(json.dumps(figures))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    wrong = {key: figures[key] for key in ("difference", "missing", "repeated", "unexplained") if figures[key]}
    if wrong:
        print(f"not everything is accounted for: {wrong}", file=sys.stderr)
    return 1 if wrong else 0
