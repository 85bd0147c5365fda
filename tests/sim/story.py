"""One run: what is sent, what goes wrong when, and the workers it happens to. All of it follows from a seed."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from bench.simulator_options import Options, Quota
from bench.simulator_options import Webhook as WebhookOptions
from bench.simulator_options import WeCom as WeComOptions
from engine.backoff import Backoff
from engine.clock import NS_PER_S
from engine.config import Config, load
from engine.errors import LogUnavailable
from engine.logs import Record
from engine.metrics import Snapshot
from engine.pipeline import Pipeline
from engine.send import Tier
from engine.topics import topic_specs
from tests.integration.support import cancel, order
from tests.sim.broker import Broker
from tests.sim.log import SimLog
from tests.sim.wires import Platforms, Weather, Wire, outage
from tests.sim.world import Process, World, WorldClock

FEED_S = 6.0  # sends come within
MOST_CALLS = 150  # they take, if nothing goes wrong
TROUBLE_S = 10.0  # what goes wrong goes wrong within
DRAIN_S = 900.0  # then everything must have ended; virtual time is cheap where little happens
MOST_TURNS = 400_000
CHECK_EVERY = 20  # turns between two looks at a worker's sums
TOML = """
state = "{state}"
[log]
kind = "kafka"
partitions = {partitions}
session_timeout = "10s"
[tiers.system]
linger = "0s"
pacing = "asap"
budget = {{ sends = {budget}, bytes = "4MiB", uncommitted = {uncommitted} }}
[tiers.template]
linger = "50ms"
pacing = "asap"
budget = {{ sends = {budget}, bytes = "4MiB", uncommitted = {uncommitted} }}
[tiers.basic]
linger = "{linger}ms"
pacing = "asap"
budget = {{ sends = {budget}, bytes = "4MiB", uncommitted = {uncommitted} }}
[later]
horizon = "{horizon}ms"
retries = "{retries}ms"
delays = ["50ms", "400ms", "3s"]
[channels.partner]
driver = "webhook"
base_url = "http://sim/webhook/partner"
batch = {batch}
in_flight = {in_flight}
timeout = "1s"
repeats = "{partner}"
retry = {{ attempts = {attempts}, first = "50ms", most = "1s" }}
limits = [{{ calls = {calls}, per = "{per}ms" }}]
[channels.notice]
driver = "wecom.message"
base_url = "http://sim/wecom"
in_flight = 4
timeout = "1s"
repeats = "{notice}"
retry = {{ attempts = {attempts}, first = "50ms", most = "1s" }}
limits = [{{ recipients = 1000, per = "{per}ms" }}]
frequency_memory = "1MiB"
[channels.notice.accounts.corp]
corpid = "ww"
corpsecret = "s"
agentid = 1
"""
TROUBLES = ("kill", "kill", "kill", "freeze", "rebalance", "broker", "cut", "disk", "compact", "platform", "platform")
OUTAGES = ("refuse", "error", "hang", "reset", "reset_after", "slow", "garbage")


@dataclass
class Worker:
    """One place where the engine runs: started again where it stood when it is killed."""

    folder: Path
    life: int = 0
    process: Process | None = None
    pipeline: Pipeline | None = None
    snapshot: Snapshot | None = None
    dies_in: int | None = None  # turns

    @property
    def state(self) -> Path:
        """Its files, in this life."""
        return self.folder / str(self.life)


@dataclass
class Fed:
    """One send as it was fed; garbage has no ids."""

    tier: str
    value: bytes
    ids: list[str]
    flow: tuple[Any, ...] | None  # where the order of delivery is known
    deadline: bool = False
    campaign: str | None = None
    channel: str | None = None


@dataclass
class Story:
    """``run`` tells it; then ``judge`` says whether it ended well."""

    seed: int
    folder: Path
    calm: bool = False  # nothing goes wrong
    fed: list[Fed] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    kills: int = 0
    cancelled: str = ""  # a campaign

    def __post_init__(self) -> None:
        self.acked: Callable[[Process, Sequence[Record]], None] = lambda process, records: None
        random.seed(self.seed)  # the engine's own chance
        self.world = World(self.seed)
        self.chance = random.Random(self.seed + 1)
        self.weather = Weather(slow=0.05)
        self.broker = Broker(lambda: self.world.wall_ms, self.world.chance)
        self.broker.short_reads = True
        count = 1 if self.calm else self.chance.choice((1, 1, 2))
        self.named = self.chance.random() < 0.5  # who is killed is back before his session ends
        self.per_s = self.chance.choice((0.5, 1.0, 2.0))
        self.calls = self.chance.choice((6, 15, 60))
        quota = Quota(per_s=self.per_s, calls=self.calls * count)
        people = Quota(per_s=self.per_s, recipients=1000 * count)
        options = Options(
            webhook=WebhookOptions(quotas=(quota,)), wecom=WeComOptions(quotas=(people,), member_limits=())
        )
        self.platforms = Platforms(self.world, options, self.weather)
        self.config = self._config()
        self.workers = [Worker(self.folder / f"w{n}") for n in range(count)]
        self.broker.create(topic_specs(self.config))

    def _config(self) -> Config:
        chance, path = self.chance, self.folder / "c.toml"
        self.batch = chance.choice((1, 7, 50, 200))
        own = random.Random(self.seed + 2)
        self.never = {name for name in ("partner", "notice") if own.random() < 0.4}  # channels that forbid repeats
        path.write_text(
            TOML.format(
                state=self.folder,
                partitions=chance.randint(1, 4),
                budget=chance.choice((10, 40, 1000)),
                uncommitted=chance.choice((5, 100, 100_000)),
                linger=chance.choice((0, 20, 200)),
                batch=self.batch,
                in_flight=chance.randint(1, 6),
                horizon=chance.choice((50, 500, 4_000)),
                retries=chance.choice((50, 500, 4_000)),
                attempts=chance.randint(4, 9),
                calls=self.calls,
                partner="never" if "partner" in self.never else "allowed",
                notice="never" if "notice" in self.never else "allowed",
                per=int(self.per_s * 1000),
            )
        )
        config = load(path)
        # So little that most maps do not fit into a commit.
        log = msgspec.structs.replace(config.log, metadata_limit=chance.choice((80, 80, 4096)))
        return msgspec.structs.replace(config, log=log)

    # --- what is sent

    def _feed(self) -> None:
        calls = 0
        if self.chance.random() < 0.15:
            self.cancelled = self.chance.choice("xy")
            self.world.after(self.chance.random() * FEED_S * NS_PER_S, self._cancel)
        self._pause()
        for number in range(self.chance.randint(10, 50)):
            fed = self._send(number)
            calls += 1 + len(fed.ids) // self.batch
            if calls > MOST_CALLS:
                return
            self.fed.append(fed)
            self.world.after(self.chance.random() * FEED_S * NS_PER_S, self._appending(fed))

    def _pause(self) -> None:
        """For longer than the horizon or not, and maybe resumed before its time."""
        own = random.Random(self.seed + 3)
        on = own.choice(({"campaign": "x"}, {"tenant": "a"}, {"tier": "basic"}, {"channel": "partner"}))
        at_s, lasts_ms = own.random() * FEED_S, own.randrange(200, 15_000)
        told = [("pause", at_s)] if own.random() < 0.4 else []
        if told and own.random() < 0.5:
            told.append(("resume", at_s + own.random() * lasts_ms / 1_000))
        for command, when_s in told:
            self.world.after(when_s * NS_PER_S, partial(self._order, command, lasts_ms, on))

    def _order(self, command: str, lasts_ms: int, on: Mapping[str, str]) -> None:
        self.broker.append([order(command, command, lasts_ms, self.world.wall_ms, **on)])

    def _cancel(self) -> None:
        self.broker.append([cancel(self.cancelled, self.world.wall_ms)])

    def _appending(self, fed: Fed) -> Callable[[], None]:
        return lambda: self._append(fed)

    def _append(self, fed: Fed) -> None:
        self.broker.append([Record(f"surgetank.{fed.tier}", fed.value)])

    def _send(self, number: int) -> Fed:
        chance = self.chance
        tier = chance.choice(("system", "template", "basic", "basic"))
        if chance.random() < 0.04:
            return Fed(tier, chance.choice((b"", b"\xc1", b"{", b'{"id": 7}', b"[1]")), [], None)
        size = chance.choice((1, 1, 1, 1, 3, 20, chance.randint(50, 400)))
        ids = [f"s{number}-{n}" for n in range(size)]
        if chance.random() < 0.1:
            ids[0] = f"invalid-{ids[0]}"
        tenant, campaign = chance.choice("ab"), chance.choice(("x", "y", None))
        send: dict[str, Any] = {"id": f"s{number}", "to": list(ids), "tenant": tenant, "channel": "partner"}
        send["content"] = {"text": chance.choice(("one", "two"))}
        if chance.random() < 0.3:
            send |= {"channel": "notice", "content": {"type": "text", "text": "hello"}}
        if campaign is not None:
            send["campaign"] = campaign
        flow: tuple[Any, ...] | None = (tier, send["channel"], tenant, campaign, str(send["content"]))
        now_ms = self.world.wall_ms
        if chance.random() < 0.15:
            send["not_before"] = now_ms + chance.randrange(8_000)
            flow = None
        deadline = chance.random() < 0.08
        if deadline:
            send["deadline"] = now_ms + chance.randrange(20_000)
            flow = None
        if len(self.workers) == 1 and number and chance.random() < 0.05:
            send["id"] = f"s{chance.randrange(number)}"
            flow = None
        encode = (lambda body: json.dumps(body).encode()) if chance.random() < 0.2 else msgpack.packb
        if send["channel"] == "notice":
            flow = None  # what waits for a token is overtaken
        return Fed(tier, encode(send), ids, flow, deadline, campaign, send["channel"])

    # --- what goes wrong

    def _plan(self) -> None:
        for _ in range(0 if self.calm else self.chance.randint(1, 8)):
            name = self.chance.choice(TROUBLES)
            self.troubles.append(name)
            self.world.after(self.chance.random() * TROUBLE_S * NS_PER_S, getattr(self, f"_{name}"))

    def _kill(self) -> None:
        """Within the next turns, so that it may be anywhere; now and then a whole lot of times."""
        worker = self.chance.choice(self.workers)
        worker.dies_in = self.chance.choice((0, self.chance.randrange(10), self.chance.randrange(200)))

    def _freeze(self) -> None:
        process = self.chance.choice(self.workers).process
        if process is not None:
            process.freeze(self.chance.choice((0.1, 1.0, 5.0, 15.0)))

    def _rebalance(self) -> None:
        self.broker.expel(f"surgetank.{self.chance.choice(('system', 'template', 'basic'))}")

    def _broker(self) -> None:
        self.weather.broker_down = True
        self.world.after(self.chance.choice((0.2, 2.0, 6.0)) * NS_PER_S, self._broker_back)

    def _broker_back(self) -> None:
        self.weather.broker_down = False
        self.broker.back()

    def _cut(self) -> None:
        self.weather.cut = self.chance.choice((0.02, 0.1, 0.3))
        self._for_a_while(lambda: setattr(self.weather, "cut", 0.0))

    def _disk(self) -> None:
        self.world.disk_fails = self.chance.choice((0.1, 0.5, 1.0))
        self._for_a_while(lambda: setattr(self.world, "disk_fails", 0.0))

    def _compact(self) -> None:
        self.broker.compact()

    def _platform(self) -> None:
        kind, name = self.chance.choice(OUTAGES), self.chance.choice(("webhook", "webhook", "wecom"))
        self.platforms.disturb(outage(kind, name, self.chance.choice((0.1, 0.5, 2.0))))

    def _for_a_while(self, over: Callable[[], None]) -> None:
        self.world.after(self.chance.choice((0.5, 2.0, 5.0)) * NS_PER_S, over)

    # --- the workers

    def _start(self, worker: Worker) -> None:
        worker.state.mkdir(parents=True, exist_ok=True)
        worker.process = Process(self.world, lambda process: self._serve(worker, process))

    async def _serve(self, worker: Worker, process: Process) -> None:
        """What ``engine.pipeline.serve`` does, with this world's log and clock."""
        backoff = Backoff(0.1, 1.0)
        config = msgspec.structs.replace(self.config, state=str(worker.state))
        while True:
            limit = self.config.log.metadata_limit
            log = SimLog(self.broker, lambda: Wire(process, self.weather), metadata_limit=limit)
            log.member = worker.folder.name if self.named else None
            log.acked = lambda records: self.acked(process, records)
            log.commit_begins = lambda: (process, self.world.now_ns)
            try:
                await log.start()
                pipeline = Pipeline(config, list(Tier), log, WorldClock(self.world))
                try:
                    await pipeline.start()
                except BaseException:
                    await pipeline.close()
                    raise
            except LogUnavailable:
                await log.close()
                await backoff.wait()
                continue
            worker.pipeline, worker.snapshot = pipeline, Snapshot(pipeline)
            return

    def _die(self, worker: Worker) -> None:
        """SIGKILL, and a new life on the files as they are now."""
        process, before = worker.process, worker.state
        if process is None:
            return
        self.kills += 1
        worker.life += 1
        shutil.copytree(before, worker.state)
        worker.process = worker.pipeline = worker.snapshot = worker.dies_in = None
        process.kill()
        self.world.after(self.chance.choice((0.05, 0.5, 3.0)) * NS_PER_S, lambda: self._start(worker))

    def run(self, look: Callable[[], bool]) -> None:
        """Until ``look`` is content, after all troubles."""
        self._feed()
        self._plan()
        over_ns = self.world.now_ns + int((TROUBLE_S + 2.0) * NS_PER_S)
        last_ns = over_ns + int(DRAIN_S * NS_PER_S)
        with self.platforms.reached(self._process_of):
            for worker in self.workers:
                self._start(worker)
            while True:
                self._turn()
                calm = self.world.now_ns > over_ns and not self.weather.broker_down
                if calm and self.world.turns % CHECK_EVERY == 0 and look():
                    break
                assert self.world.now_ns < last_ns, "not everything has ended"
                assert self.world.turns < MOST_TURNS, "it runs in circles"
            self._stop()

    def _turn(self) -> None:
        self.world.turn()
        for worker in self.workers:
            if worker.dies_in is not None:
                worker.dies_in -= 1
                if worker.dies_in < 0:
                    self._die(worker)
            if self.world.turns % CHECK_EVERY == 0:
                self.check(worker)

    def check(self, worker: Worker) -> None:
        """No stage of it has failed, and its sums agree."""
        if worker.process is not None and worker.process.main.done():
            worker.process.main.result()
        if worker.pipeline is None or worker.snapshot is None:
            return
        for task in worker.pipeline.tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task} has ended")
        if worker.pipeline.dispatcher.failure.done():
            worker.pipeline.dispatcher.failure.result()
        difference = worker.snapshot.difference()
        assert difference == [0, 0, 0], f"conservation: {difference}"

    def _stop(self) -> None:
        """SIGTERM: it must end well."""
        for pipeline, process in self.running():
            process.main = process.loop.create_task(_ended(pipeline))
            while not process.main.done():
                self.world.turn()
            process.main.result()

    def running(self) -> Iterator[tuple[Pipeline, Process]]:
        """Workers that serve."""
        for worker in self.workers:
            if worker.pipeline is not None and worker.process is not None:
                yield worker.pipeline, worker.process

    def trace(self) -> str:
        """Equal for equal runs."""
        calls = [(call.ids, call.begun_ns, call.answered_ns) for call in self.platforms.calls]
        ends = [len(entries) for topic in self.broker.topics.values() for entries in topic.partitions]
        return sha256(repr((calls, ends, self.world.turns, self.world.now_ns)).encode()).hexdigest()

    def close(self) -> None:
        """Nothing is left over."""
        for worker in self.workers:
            if worker.process is not None:
                worker.process.kill()

    def _process_of(self, loop: asyncio.AbstractEventLoop) -> Process:
        return next(worker.process for worker in self.workers if worker.process and worker.process.loop is loop)


async def _ended(pipeline: Pipeline) -> None:
    assert await pipeline.stop(), "a clean stop was not clean"
    await pipeline.log.close()
