"""Nothing lost, proven by killing it: two workers on a real Kafka deliver to the simulator while they are killed and
started again, frozen, the broker is killed, and the platforms hang and break connections. Then all that was fed is
looked for.

Exit code 1 when a target is missed: see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench import stack
from bench.crash_feed import FREED, KINDS, TWICE, Feed
from bench.crash_judge import Quota, agrees, ended, over_quota, repeats
from bench.judge import judge, read_input
from bench.kafka import Broker, Unavailable
from engine.config import Config, load
from engine.errors import LogUnavailable
from engine.logs import Log
from engine.state import flight

WORKERS = 2
BURST_EVERY_S = 0.15
BETWEEN_S = (2.0, 10.0)  # two kills
BROKER_EVERY, FREEZE_EVERY, OUTAGE_EVERY = 12, 10, 3  # kills
FROZEN_S = (2.0, 12.0)  # the session timeout lies between
QUIET_S = 20.0  # after the last one, still feeding: what comes again then finds its first ended, and by the same worker
DRAIN_S = 600.0
UNDONE = ("kafka_lag_sends", "kafka_uncommitted_sends", "queue_recipients", "later_sends")
SIZES_PER_S = {"partner": 20, "once": 10, "notice": 40}  # calls, of all workers together
CONFIG = """
state = "{folder}/{name}"
[log]
kind = "kafka"
bootstrap = "{bootstrap}"
prefix = "{prefix}"
partitions = 8
session_timeout = "6s"
[later]
horizon = "2s"
delays = ["2s", "5s"]
[tiers.basic]
linger = "100ms"
due_after = "30s"
pacing = "asap"
[channels.partner]
driver = "webhook"
base_url = "{url}/webhook/partner"
batch = 100
in_flight = 8
timeout = "5s"
retry = {{ attempts = 100, first = "200ms", most = "3s" }}
limits = [{{ calls = {partner}, per = "1s" }}]
[channels.once]
driver = "webhook"
base_url = "{url}/webhook/once"
batch = 50
in_flight = 4
timeout = "5s"
repeats = "never"
retry = {{ attempts = 100, first = "200ms", most = "3s" }}
limits = [{{ calls = {once}, per = "1s" }}]
[channels.notice]
driver = "wecom.message"
base_url = "{url}/wecom"
in_flight = 8
timeout = "5s"
retry = {{ attempts = 100, first = "200ms", most = "3s" }}
limits = [{{ calls = {notice}, per = "1s" }}, {{ recipients = {people}, per = "10s" }}]
[channels.notice.accounts.corp]
corpid = "ww"
corpsecret = "s"
agentid = 1
[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
PEOPLE = 10_000  # of `notice`, in 10 s
S = 1_000_000_000
QUOTAS = (
    Quota("webhook", "partner/default", "calls", SIZES_PER_S["partner"], S),
    Quota("webhook", "once/default", "calls", SIZES_PER_S["once"], S),
    Quota("wecom", "ww", "calls", SIZES_PER_S["notice"], S),
    Quota("wecom", "ww", "recipients", PEOPLE, 10 * S),
)
LATENCY = {"kind": "lognormal", "median_s": 0.05, "sigma": 0.5, "max_s": 1.0}
SIMULATOR = {"wecom": {"latency": LATENCY, "member_limits": []}, "webhook": {"latency": LATENCY}}


@dataclass
class Worker:
    """One ``surgetank serve``, again and again."""

    name: str
    config: Path
    folder: Path
    metrics: str
    child: stack.Child | None = None

    async def start(self) -> None:
        """Returns at once; it is ready when it is."""
        arguments = ["engine.cli", "serve", "-c", str(self.config), "--log-format", "json"]
        self.child = await stack.Child.start(self.name, arguments, self.folder)

    def signal(self, number: signal.Signals) -> None:
        """To the process as it is."""
        assert self.child is not None
        self.child.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        assert self.child is not None
        self.child.check()
        self.signal(signal.SIGKILL)
        await self.child.process.wait()

    def left(self) -> int:
        """Recipients in flight, or settled and not committed, when its lives ended or lost their partitions."""
        return sum(sum(counts) for counts in flight.read(self.folder / self.name / "flight"))


@dataclass
class Crash:
    """One run."""

    folder: Path
    kills: int
    chance: random.Random
    feed: Feed
    broker: Broker
    simulator: stack.Simulator
    session: aiohttp.ClientSession
    workers: list[Worker]
    log: Log
    prefix: str
    counts: dict[str, int] = field(default_factory=lambda: {"kills": 0, "broker_restarts": 0, "freezes": 0})
    appended: int = 0  # sends

    async def run(self) -> dict[str, Any]:
        """Feed and break until there were as many kills as asked for; feed some more; then drain, stop, judge."""
        started = time.monotonic()
        for worker in self.workers:
            await worker.start()
        await self._until(self._ready, "the workers are not ready", 60.0)
        feeding = asyncio.create_task(self._feed())
        try:
            for number in range(1, self.kills + 1):
                await self._break(number)
                if feeding.done():
                    break
            await asyncio.wait([feeding], timeout=QUIET_S)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        if not feeding.cancelled():
            feeding.result()
        await self.simulator.delete("outage")
        tell(f"fed {self.appended:,} sends; draining")
        drained = await self._until(self._drained, "", DRAIN_S)
        difference = await self._difference()
        codes = [await worker.child.stop() for worker in self.workers if worker.child is not None]
        figures = await self._judge(difference)
        return {
            **self.counts,
            **figures,
            "drained": drained and not any(codes),
            "seconds": round(time.monotonic() - started),
        }

    # --- what happens

    async def _feed(self) -> None:
        started = time.monotonic()
        while True:
            records = self.feed.burst(time.monotonic() - started)
            try:
                await self.log.append(records)
            except LogUnavailable:
                continue  # what of it stands on the log is read from there; no id is used again
            self.appended += len(records)
            await asyncio.sleep(BURST_EVERY_S)

    async def _break(self, number: int) -> None:
        """One kill, and now and then something else besides."""
        await asyncio.sleep(self.chance.uniform(*BETWEEN_S))
        if number % OUTAGE_EVERY == 0:
            await self._outage()
        if number % FREEZE_EVERY == 0:
            await self._freeze(self.chance.choice(self.workers))
        if number % BROKER_EVERY == 0:
            await self._kill_broker()
        victim = self.chance.choice(self.workers)
        await victim.kill()
        self.counts["kills"] += 1
        tell(
            f"{number}/{self.kills}: killed {victim.name}, which may repeat {victim.left():,} in all; "
            f"{self.appended:,} sends are fed"
        )
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        await victim.start()

    async def _outage(self) -> None:
        kind, endpoint = self.chance.choice(("hang", "reset", "refuse")), self.chance.choice(("webhook", "wecom"))
        seconds = self.chance.uniform(0.5, 4.0)
        await self.simulator.post("outage", {"endpoint": endpoint, "kind": kind, "duration_s": seconds})
        tell(f"{endpoint}: {kind} for {seconds:.1f} s")

    async def _freeze(self, worker: Worker) -> None:
        seconds = self.chance.uniform(*FROZEN_S)
        worker.signal(signal.SIGSTOP)
        self.counts["freezes"] += 1
        tell(f"froze {worker.name} for {seconds:.1f} s")
        await asyncio.sleep(seconds)
        worker.signal(signal.SIGCONT)
        await asyncio.sleep(1.0)

    async def _kill_broker(self) -> None:
        self.broker.kill()
        self.counts["broker_restarts"] += 1
        tell("killed the broker")
        await asyncio.sleep(self.chance.uniform(0.0, 3.0))
        self.broker.restart()  # from this thread, which it dies with

    # --- the end

    async def _ready(self) -> bool:
        return all([await stack.Engine(w.child, w.metrics, self.session).ready() for w in self.workers if w.child])

    async def _scrapes(self) -> list[stack.Samples]:
        children = [worker.child for worker in self.workers if worker.child is not None]
        for child in children:
            child.check()
        pairs = zip(children, self.workers, strict=True)
        return [await stack.Engine(child, worker.metrics, self.session).samples() for child, worker in pairs]

    async def _drained(self) -> bool:
        """Nothing is on the log that was not read, or waits there, nothing was read that is not committed; twice, a
        moment apart."""
        if not await self._ready():
            return False
        for _ in range(2):
            for scrape in await self._scrapes():
                if any(scrape.sum(name) for name in UNDONE):
                    return False
            await asyncio.sleep(2.0)
        return True

    async def _difference(self) -> int:
        found = 0.0
        for scrape in await self._scrapes():
            found += sum(abs(value) for value in scrape.by("conservation_difference_recipients", "tier").values())
        return int(found)

    async def _until(self, condition: Any, what: str, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while True:
            try:
                if await condition():
                    return True
            except aiohttp.ClientError:
                pass  # it has not begun to listen
            if time.monotonic() > deadline:
                if what:
                    raise RuntimeError(what)
                return False
            await asyncio.sleep(1.0)

    async def _judge(self, difference: int) -> dict[str, Any]:
        tell("judging")
        fed = await read_input(self.log, self.prefix)
        verdict = await judge(self.log, self.prefix, fed, self.simulator.lines("ledger/export"))
        untold = sum(not verdict.ends.get((origin, name)) for origin, names in fed.items() for name in names)
        once, others = repeats(verdict.arrived, self.feed.once)
        expired = {name for (_, name), ends in verdict.ends.items() if "expired" in ends}
        audit = await self._audit()
        return {
            "taken_in": verdict.taken_in,
            "outcomes": dict(sorted(verdict.outcomes.items())),
            "again": {kind: dict(sorted(ended(verdict.ends, kind).items())) for kind in KINDS},
            "missing": len(verdict.missing),
            "repeated": others,
            "repeated_bound": sum(worker.left() for worker in self.workers),
            "repeated_never": once,
            "difference": difference + max(0, self.appended - len(fed)),
            "expired_without_deadline": len(expired - self.feed.deadlines),
            "over_quota_windows": await over_quota(self.simulator.lines("calls"), QUOTAS),
            "audit_agrees": agrees(verdict, untold, audit),
            "audit": {key: audit[key] for key in ("recipients", "missing", "repeated", "unexplained", "waiting")},
        }

    async def _audit(self) -> dict[str, Any]:
        arguments = ["-m", "engine.cli", "audit", "-c", str(self.workers[0].config), "--grace", "1h", "--json"]
        with (self.folder / "audit.log").open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=said
            )
            out, _ = await process.communicate()
        document: dict[str, Any] = json.loads(out)
        return document


def tell(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def missed(figures: dict[str, Any]) -> list[str]:
    """The targets that were not met."""
    zeros = ("missing", "difference", "repeated_never", "expired_without_deadline", "over_quota_windows")
    wrong = [f"{key} is {figures[key]}" for key in zeros if figures[key]]
    if figures["repeated"] > figures["repeated_bound"]:
        wrong.append(f"repeated is {figures['repeated']}, more than {figures['repeated_bound']}")
    twice, freed = figures["again"][TWICE], figures["again"][FREED]
    if twice.keys() - {"duplicate"}:
        wrong.append(f"of ids that came twice some ended {twice}")
    if "accepted" not in freed:
        wrong.append(f"of ids that were free again none was accepted: {freed}")
    wrong += [f"{key} is false" for key in ("audit_agrees", "drained") if not figures[key]]
    return wrong


def _worker(name: str, folder: Path, bootstrap: str, prefix: str, url: str) -> Worker:
    port, path = stack.free_port(), folder / f"{name}.toml"
    mine = {channel: calls // WORKERS for channel, calls in SIZES_PER_S.items()}
    text = CONFIG.format(
        folder=folder,
        name=name,
        bootstrap=bootstrap,
        prefix=prefix,
        url=url,
        port=port,
        people=PEOPLE // WORKERS,
        **mine,
    )
    path.write_text(text)
    return Worker(name, path, folder, f"http://127.0.0.1:{port}")


async def measure(folder: Path, broker: Broker, kills: int, seed: int) -> dict[str, Any]:
    """The whole run."""
    prefix = "crash"
    async with AsyncExitStack() as exits:
        session = await exits.enter_async_context(aiohttp.ClientSession())
        simulator = await exits.enter_async_context(stack.simulator(folder, SIMULATOR, session, ledger=False))
        workers = [_worker(f"w{n}", folder, broker.bootstrap, prefix, simulator.url) for n in range(WORKERS)]
        config: Config = load(workers[0].config)
        log = await exits.enter_async_context(stack.opened(config, engine=False))
        run = Crash(
            folder, kills, random.Random(seed), Feed(prefix, seed), broker, simulator, session, workers, log, prefix
        )
        try:
            return await run.run()
        finally:
            for worker in workers:
                if worker.child is not None and worker.child.process.returncode is None:
                    worker.signal(signal.SIGCONT)
                    await worker.kill()


def main(argv: list[str]) -> int:
    """``python -m bench crash``."""
    parser = argparse.ArgumentParser(prog="python -m bench crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of workers (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of what is fed and when what breaks (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave logs, configurations and state there")
    options = parser.parse_args(argv)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the feeder's own: many lines while the broker is away
    with tempfile.TemporaryDirectory(prefix="surgetank-crash-") as made:
        folder = options.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with Broker() as broker:
                figures = uvloop.run(measure(folder.absolute(), broker, options.kills, options.seed))
        except Unavailable as error:
            print(f"no Kafka: {error}", file=sys.stderr)
            return 1
    figures["machine"] = stack.machine()
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    wrong = missed(figures)
    for line in wrong:
        tell(line)
    return 1 if wrong else 0
