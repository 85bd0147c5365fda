"""What the pipeline's tests share: a platform over real HTTP, a pipeline on a real log, and a judge of its receipts."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from aiohttp import web

from bench.stack import opened as opened
from engine import wire, wire_control
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.config import Config, load, tier_policy
from engine.decode import decode
from engine.errors import Reject
from engine.logs import Headers, Log, Partition, Record
from engine.metrics import Snapshot
from engine.pipeline import Pipeline
from engine.send import Origin, Outcome, Recipient, Tier

DEADLINE_S = 60.0
TIERS = ("system", "template", "basic")
# Tests wait for batches to close; nobody merges over time here.
IN_MEMORY = '[later]\nhorizon = "7d"'  # what is held for hours waits there
QUICK = "".join(f'[tiers.{tier}]\npacing = "asap"\nlinger = "10ms"\n' for tier in TIERS)


# --- platforms


class Arrived(NamedTuple):
    """One call as the platform saw it."""

    at_ns: int
    batch: str
    account: str
    content: Any
    ids: list[str]
    data: dict[str, Any]


Answer = Callable[[Arrived], Awaitable[web.Response]]


async def accept(_: Arrived) -> web.Response:
    """Everybody is accepted."""
    return web.json_response({"results": []})


class Gateway:
    """A team's own gateway: keeps the webhook contract, remembers what came, answers as it is told."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Arrived] = []
        self.answer: Answer = accept

    @property
    def ids(self) -> Counter[str]:
        """How often each recipient was asked for."""
        return Counter(id for call in self.calls for id in call.ids)

    async def handle(self, request: web.Request) -> web.Response:
        at_ns = time.monotonic_ns()
        body = await request.json()
        ids = [to["id"] for to in body["to"]]
        data = {to["id"]: to["data"] for to in body["to"] if "data" in to}
        arrived = Arrived(at_ns, request.headers["Idempotency-Key"], body["account"], body["content"], ids, data)
        self.calls.append(arrived)
        return await self.answer(arrived)


class Corp:
    """WeCom as its documentation tells: tokens, and a list of those who are no members (``bad...``)."""

    def __init__(self) -> None:
        self.url = ""
        self.ids: Counter[str] = Counter()
        self.largest = 0
        self.silent: asyncio.Event | None = None  # set it: calls get no answer before it is

    async def token(self, _: web.Request) -> web.Response:
        return web.json_response({"errcode": 0, "access_token": "t", "expires_in": 7200})

    async def send(self, request: web.Request) -> web.Response:
        assert request.query["access_token"] == "t"
        ids = (await request.json())["touser"].split("|")
        self.ids.update(ids)
        self.largest = max(self.largest, len(ids))
        if self.silent is not None:
            await self.silent.wait()
        bad = "|".join(id for id in ids if id.startswith("bad"))
        return web.json_response({"errcode": 0, "errmsg": "ok", "invaliduser": bad, "msgid": "m"})


@asynccontextmanager
async def _listening(port: int, *routes: web.RouteDef) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 26)
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway(port: int = 0, answer: Answer = accept) -> AsyncIterator[Gateway]:
    """A gateway that listens."""
    made = Gateway()
    made.answer = answer
    async with _listening(port, web.post("/hook", made.handle)) as url:
        made.url = f"{url}/hook"
        yield made


@asynccontextmanager
async def corp() -> AsyncIterator[Corp]:
    """A WeCom that listens."""
    made = Corp()
    routes = web.get("/cgi-bin/gettoken", made.token), web.post("/cgi-bin/message/send", made.send)
    async with _listening(0, *routes) as made.url:
        yield made


def busiest(stamps_ns: Sequence[int], window_s: float) -> int:
    """The most arrivals in any half-open window of that length."""
    stamps, most, first = sorted(stamps_ns), 0, 0
    for last, at in enumerate(stamps):
        while stamps[first] <= at - window_s * NS_PER_S:
            first += 1
        most = max(most, last - first + 1)
    return most


# --- the pipeline


class Ahead(Clock):
    """The machine's clocks, and as much further as a test says."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ns // NS_PER_MS

    def offset_ns(self) -> int:
        return super().offset_ns() - self.ahead_ns


def channel(name: str, url: str, more: str = "", driver: str = "webhook") -> str:
    """A channel of the configuration."""
    return f'[channels.{name}]\ndriver = "{driver}"\nbase_url = "{url}"\n{more}\n'


def write_config(directory: Path, *parts: str, tiers: str = QUICK, top: str = "", metrics: str = "") -> Path:
    """A configuration file; each of ``parts`` is TOML."""
    head = f'state = "{directory}/state"\n{top}\n[log]\nkind = "sqlite"\npath = "{directory}/log.db"\npartitions = 3\n'
    http = f'[http]\nmetrics = "{metrics}"\nadmin = ""\n'
    path = directory / "surgetank.toml"
    path.write_text("\n".join((head, http, tiers, *parts)))
    return path


def configured(directory: Path, *parts: str, tiers: str = QUICK, top: str = "") -> Config:
    """The same, loaded."""
    return load(write_config(directory, *parts, tiers=tiers, top=top))


def send(id: str, to: Sequence[Any] | str = "u", channel: str = "partner", **keys: Any) -> bytes:
    """One send as an application writes it."""
    content = keys.pop("content", {"text": "hello"})
    body = {"id": id, "channel": channel, "to": [to] if isinstance(to, str) else to, "content": content, **keys}
    return bytes(msgpack.packb(body))


def record(tier: str, value: bytes | None, headers: Headers = (), **keys: Any) -> Record:
    """A record on a tier's topic."""
    return Record(f"surgetank.{tier}", value, headers=headers, **keys)


def registered(name: str, content: Mapping[str, Any], channel: str = "partner", /, **fields: Any) -> Record:
    """A record of the content topic."""
    value = msgpack.packb({"channel": channel, "content": content, "fields": fields})
    return Record("surgetank.content", value, name.encode())


def cancel(campaign: str, at: int, id: str = "c1", tenant: str | None = None) -> Record:
    """A record of the control topic."""
    command = wire_control.Command(
        id=id, command="cancel", tenant=tenant, campaign=campaign, at=at, expires=at + 3_600_000
    )
    key, value = wire_control.encode_command(command)
    return Record("surgetank.control", value, key)


def order(command: str, id: str, /, lasts_ms: int = 3_600_000, at_ms: int | None = None, **on: Any) -> Record:
    """A pause or resume, on the control topic."""
    at, target = now_ms() if at_ms is None else at_ms, wire_control.Target(**on)
    key, value = wire_control.encode_command(
        wire_control.Command(id=id, command=command, on=target, at=at, expires=at + lasts_ms)
    )
    return Record("surgetank.control", value, key)


class End(NamedTuple):
    """How one recipient ended."""

    outcome: Outcome
    reason: str
    attempts: int
    code: str


class Dead(NamedTuple):
    """A record of the dead topic."""

    value: bytes | None
    headers: Headers
    said: wire.History


class Told:
    """Everything on the log, read again from its beginning."""

    def __init__(self) -> None:
        self.records: dict[Origin, bytes | None] = {}
        self.receipts: list[wire.Receipt] = []
        self.dead: list[Dead] = []
        self.replies: list[wire_control.Reply] = []
        self.ends: dict[Partition, int] = {}

    def take(self, topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None, h: Headers) -> None:
        kind = topic.rpartition(".")[2]
        if kind == "receipts" and value is not None:
            self.receipts.append(wire.decode_receipt(value))
        elif kind == "dead":
            said = wire.history(h)
            assert said is not None
            self.dead.append(Dead(value, h, said))
        elif kind == "control" and key is not None and key.startswith(wire_control.REPLY_KEY) and value is not None:
            self.replies.append(wire_control.decode_reply(value))
        elif kind not in ("control", "content"):
            if not wire.hop_of(h):  # else its origin's record stands for it
                self.records[Origin(topic, partition, offset)] = value
            self.ends[Partition(topic, partition)] = offset + 1

    def outcomes(self) -> dict[tuple[Origin, str], list[End]]:
        """All that was told of each recipient of each record ("" for a record nobody can read)."""
        found: dict[tuple[Origin, str], list[End]] = {}
        for receipt in self.receipts:
            for entry in receipt.sends:
                origin = Origin(*entry.origin)
                end = End(receipt.outcome, receipt.reason, entry.attempts, receipt.code)
                for id in recipients(self.records[origin]) if entry.to is None else entry.to:
                    found.setdefault((origin, id), []).append(end)
        return found

    def wanted(self) -> Counter[tuple[Origin, str]]:
        """How many outcomes each recipient must have."""
        return Counter((origin, id) for origin, value in self.records.items() for id in recipients(value))

    def by_id(self) -> dict[tuple[str, str], list[End]]:
        """Outcomes by (id of the send, recipient), for tests whose ids differ."""
        ids = {Origin(*entry.origin): entry.id for receipt in self.receipts for entry in receipt.sends}
        return {(ids[origin] or "", to): ends for (origin, to), ends in self.outcomes().items()}

    def end(self, id: str, to: str = "u") -> End:
        """The only outcome of that recipient."""
        (end,) = self.by_id()[id, to]
        return end


def recipients(value: bytes | None) -> list[str]:
    """Whom a record names; one without a name when it cannot be read."""
    try:
        to = decode(value).to
    except Reject:
        return [""]
    return [one.id if isinstance(one, Recipient) else one for one in to]


class Worker:
    """A pipeline that runs; every instant a test looks at it its sums are checked."""

    def __init__(self, config: Config, log: Log, clock: Clock) -> None:
        self.config = config
        self.log = log
        self.clock = clock
        self.pipeline = Pipeline(config, list(Tier), log, clock)
        self.snapshot = Snapshot(self.pipeline)
        self.instants = 0

    def check(self) -> None:
        """No stage has failed, and the sums agree."""
        for task in self.pipeline.tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task} has ended")
        if self.pipeline.dispatcher.failure.done():
            self.pipeline.dispatcher.failure.result()
        assert self.snapshot.difference() == [0, 0, 0]
        self.instants += 1

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self.check()
            assert time.monotonic() < deadline, f"not in time: {what or condition} ({self.ended()})"
            await asyncio.sleep(0.002)
        self.check()

    async def append(self, *records: Record) -> None:
        """A command is obeyed when it returns: topics have no order among each other."""
        await self.log.append(records)
        if any(record.topic.endswith(".control") for record in records):
            async with asyncio.timeout(DEADLINE_S):
                for reader in self.pipeline.readers:
                    while not await reader.at_end():  # noqa: ASYNC110 - the log tells nobody
                        await asyncio.sleep(0.002)

    async def send(self, tier: str, *values: bytes, **keys: Any) -> None:
        await self.log.append([record(tier, value, **keys) for value in values])

    def ended(self) -> Counter[Outcome]:
        """Recipients ended, as counted."""
        found: Counter[Outcome] = Counter()
        for (_, _, outcome), count in self.pipeline.counters.outcomes.items():
            found[outcome] += count
        return found

    async def all_ended(self, count: int) -> None:
        """So many recipients have ended and it stands in the log."""
        await self.until(lambda: self.ended().total() >= count, f"{count} ended")
        await self.until(lambda: not self.pipeline.recorder.backlog, "all told")
        assert self.ended().total() == count

    async def told(self) -> Told:
        """Read the log."""
        return await read(self.log, self.config)

    async def judged(self) -> Told:
        """Everything on the log has ended: each recipient once, everything committed, nothing kept."""
        told = await self.told()
        wanted = told.wanted()
        await self.all_ended(wanted.total())
        told = await self.told()
        assert {key: len(ends) for key, ends in told.outcomes().items()} == wanted
        await self.until(lambda: not any(ledger.uncommitted for ledger in self.ledgers()), "all committed")
        assert await self.committed() == told.ends
        later = [ledger for intake in self.pipeline.later_intakes for ledger in intake.ledgers.values()]
        await self.until(lambda: not any(ledger.uncommitted for ledger in later), "later topics too")
        self.nothing_left()
        return told

    def ledgers(self) -> Iterator[Any]:
        for intake in self.pipeline.intakes:
            yield from intake.ledgers.values()

    async def committed(self) -> dict[Partition, int]:
        """Where the groups stand; partitions nothing stands in are left out."""
        groups = [await self.log.committed(f"{self.config.log.prefix}.{tier}") for tier in TIERS]
        return {where: position.offset for group in groups for where, position in group.items() if position.offset}

    def nothing_left(self) -> None:
        """No handle, name or content is kept for what has ended."""
        pipeline, opens = self.pipeline, self.pipeline.opens
        stats = pipeline.core.stats()
        for name in ("queued", "waiting", "ended", "flows"):
            assert stats[name] == [0, 0, 0], name
        assert not opens
        assert (opens.count, opens.sizes) == ([0, 0, 0], [0, 0, 0])
        for table in (opens._flows, opens._campaigns, opens._contents, opens.by_raw, *opens.by_names):
            assert not table
        for names in (opens._tenant_names, opens._campaign_names):
            assert not names._table
            assert not names._counts
        names_handles = (opens._tenant_names._handles, opens._campaign_names._handles)
        for handles in (opens._content_handles, *names_handles):
            assert sorted(handles._free) == list(range(handles._next)), "each is free, once"
        counters = pipeline.counters
        assert (counters.in_flight, counters.held, counters.moving) == ([0, 0, 0], [0, 0, 0], [0, 0, 0])
        assert not sum(counters.calls_in_flight.values())
        assert (pipeline.recorder.backlog, pipeline.recorder.backlog_bytes) == (0, 0)


async def read(log: Log, config: Config) -> Told:
    """Every topic of the log, from its beginning."""
    topics = [topic for tier in Tier for topic in tier_policy(config, tier).topics]
    prefix = config.log.prefix
    reader = await log.reader([*topics, *(f"{prefix}.{name}" for name in ("receipts", "dead", "control", "content"))])
    told = Told()
    while not await reader.at_end():
        for chunk in await reader.poll(10_000, 0.2):
            for offset, key, value, headers in zip(chunk.offsets, chunk.keys, chunk.values, chunk.headers, strict=True):
                told.take(chunk.topic, chunk.partition, offset, key, value, headers)
    await reader.close()
    return told


@asynccontextmanager
async def working(config: Config, clock: Clock | None = None) -> AsyncIterator[Worker]:
    """A pipeline from start to drained end."""
    async with opened(config) as log:
        worker = Worker(config, log, clock or Clock())
        await worker.pipeline.start()
        try:
            yield worker
            worker.check()
        except BaseException:
            await worker.pipeline.stop(0.1)
            raise
        assert await worker.pipeline.stop(DEADLINE_S)


@asynccontextmanager
async def partnered(
    directory: Path, more: str = "", answer: Answer = accept, clock: Clock | None = None, top: str = IN_MEMORY
) -> AsyncIterator[tuple[Gateway, Worker]]:
    """A pipeline whose only channel is ``partner``, and its gateway; ``more``: further keys of the channel, ``top``:
    further sections. By default what is held waits in memory, for however long."""
    async with gateway(answer=answer) as partner:
        config = configured(directory, channel("partner", partner.url, more), top)
        async with working(config, clock) as worker:
            yield partner, worker


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What a deadline is promised for takes no longer (a wide margin: the machine is shared)."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def as_json(value: Mapping[str, Any]) -> bytes:
    """A send in the other encoding."""
    return json.dumps(value).encode()


def now_ms() -> int:
    """Wall time."""
    return time.time_ns() // NS_PER_MS
