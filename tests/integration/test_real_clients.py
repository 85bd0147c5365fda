"""The engine as its users meet it: processes, a real Kafka, and other people's clients at both ends of it.

kcat and confluent-kafka (both librdkafka) write the sends and read the receipts; nothing of the engine is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import msgpack
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from bench import stack
from bench.kafka import Broker
from bench.stack import Child, Engine, Simulator
from tests.conftest import started

pytestmark = pytest.mark.kafka
WITHIN_S = 60.0  # a member that was killed is expelled after its session of 30 s
SOON_S = 0.05
INSTALL_S = 300
PARTITIONS = 4
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
CONFIG = """
state = "{folder}/{name}"

[log]
kind = "kafka"
bootstrap = "{bootstrap}"
prefix = "{prefix}"
partitions = {partitions}

[tiers.basic]
pacing = "asap"

[channels.notice]
driver = "wecom.message"
base_url = "{url}/wecom"

[channels.notice.accounts.corp]
corpid = "ww-corp"
corpsecret = "secret-corp"
agentid = 1

[channels.partner]
driver = "webhook"
base_url = "{url}/webhook/partner"
in_flight = 4
batch = 10

[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
Origin = tuple[str, int, int]
Ends = dict[str, list[tuple[Origin, str]]]  # recipient -> the endings told of it


@pytest.fixture(scope="module")
def kcat() -> str:
    """Installed where CI is set; elsewhere the test is skipped without it."""
    if shutil.which("kcat") is None:
        if not os.environ.get("CI"):
            pytest.skip("no kcat on the PATH (Debian: apt-get install kcat)")
        as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for step in (["update"], ["install", "-y", "--no-install-recommends", "kcat"]):
            subprocess.run([*as_root, "apt-get", "-q", *step], check=True, timeout=INSTALL_S)
    return "kcat"


async def until(true: Callable[[], Awaitable[object]], *children: Child) -> None:
    """Wait for it; a process that ends meanwhile ends the waiting, and a deadline tells what they said."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await true():
                for child in children:
                    child.check()
                await asyncio.sleep(SOON_S)
    except TimeoutError:
        raise AssertionError("\n".join(f"--- {child.name}\n{child.tail()}" for child in children)) from None


class Place:
    """A prefix of its own on a Kafka, a simulator, engines: every process ends with the test."""

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        session: aiohttp.ClientSession,
        simulator: Simulator,
        exits: AsyncExitStack,
    ) -> None:
        self.folder = folder
        self.bootstrap = bootstrap
        self.simulator = simulator
        self.prefix = f"t{uuid4().hex}"
        self._session = session
        self._exits = exits

    @classmethod
    async def make(cls, folder: Path, bootstrap: str, exits: AsyncExitStack) -> Place:
        """With a running simulator, and nothing on the Kafka yet (there need not be one)."""
        session = await exits.enter_async_context(aiohttp.ClientSession())
        simulator = await exits.enter_async_context(stack.simulator(folder, {}, session, ledger=False))
        return cls(folder, bootstrap, session, simulator, exits)

    def config(self, name: str) -> tuple[Path, int]:
        """An engine's file, and the port of its probes."""
        path, port = self.folder / f"{name}.toml", stack.free_port()
        values = {"folder": self.folder, "name": name, "bootstrap": self.bootstrap, "prefix": self.prefix}
        path.write_text(CONFIG.format(**values, partitions=PARTITIONS, url=self.simulator.url, port=port))
        return path, port

    async def create_topics(self) -> None:
        """By the command."""
        path, _ = self.config("topics")
        code, said = await run(sys.executable, "-m", "engine.cli", "topics", "create", "-c", str(path), "--json")
        assert code == 0, said
        names = ["system", "template", "basic", "receipts", "dead", "control", "content", "progress"]
        tiers, delays = ("system", "template", "basic"), ("5s", "1m", "10m", "1h")
        names += [f"later.{tier}.{delay}" for tier in tiers for delay in delays]
        assert sorted(json.loads(said)["created"]) == sorted(f"{self.prefix}.{name}" for name in names)

    async def start(self, path: Path, port: int, *options: str) -> Engine:
        """An engine's process; not necessarily ready."""
        arguments = ["engine.cli", "serve", "-c", str(path), "--log-format", "json", *options]
        child = await Child.start(path.stem, arguments, self.folder)
        self._exits.push_async_callback(child.stop)
        return Engine(child, f"http://127.0.0.1:{port}", self._session)

    async def serve(self, name: str, *options: str) -> Engine:
        """A ready engine."""
        engine = await self.start(*self.config(name), *options)
        await until(engine.ready, engine.child)
        return engine

    async def status(self, port: int, path: str) -> tuple[int, str]:
        """What a probe answers; 0 while nobody listens."""
        try:
            async with self._session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectionError:
            return 0, ""

    async def kcat_send(self, tier: str, lines: Iterable[bytes], *options: str) -> None:
        """One record a line."""
        topic = f"{self.prefix}.{tier}"
        code, said = await run("kcat", "-P", "-b", self.bootstrap, "-t", topic, *options, stdin=b"\n".join(lines))
        assert code == 0, said

    async def kcat_read(self, name: str, form: str) -> bytes:
        """Everything that stands in a topic now."""
        command = ["kcat", "-C", "-b", self.bootstrap, "-t", f"{self.prefix}.{name}", "-o", "beginning", "-e", "-q"]
        code, said = await run(*command, "-f", form)
        assert code == 0, said
        return said

    async def confluent_send(self, tier: str, sends: Iterable[Mapping[str, Any]], codec: str = "none") -> None:
        """As msgpack."""
        values = [msgpack.packb(send) for send in sends]

        def produce() -> None:
            settings = {"bootstrap.servers": self.bootstrap, "compression.type": codec, "linger.ms": 50}
            producer = Producer(settings)
            for number, value in enumerate(values):
                producer.produce(f"{self.prefix}.{tier}", value, partition=number % PARTITIONS)
            assert producer.flush(WITHIN_S) == 0

        await asyncio.to_thread(produce)

    async def receipts(self) -> list[dict[str, Any]]:
        """As kcat reads them."""
        return [msgpack.unpackb(value) for value in values_of(await self.kcat_read("receipts", "%R%s"))]

    async def ends(self, sends: Iterable[Mapping[str, Any]]) -> Ends:
        """Every ending told, by recipient; a recipient's name must stand in one send only."""
        of = {send["id"]: list(dict.fromkeys(send["to"])) for send in sends}
        found: Ends = {}
        for receipt in await self.receipts():
            for id, origin, to, *_ in receipt["sends"]:
                for name in of[id] if to is None else to:
                    found.setdefault(name, []).append((tuple(origin), receipt["outcome"]))
        return found

    async def told(self, sends: list[dict[str, Any]], *engines: Engine) -> Ends:
        """The endings, once every recipient has one."""
        found: Ends = {}
        names = {name for send in sends for name in send["to"]}

        async def all_ended() -> bool:
            nonlocal found
            found = await self.ends(sends)
            return found.keys() >= names

        await until(all_ended, *(engine.child for engine in engines))
        return found

    async def delivered(self) -> Counter[str]:
        """How often each recipient was delivered to: the simulator's word."""
        return Counter(
            [row["recipient"] async for row in self.simulator.lines("ledger/export") if row["verdict"] == "delivered"]
        )


async def run(*command: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Exit code, and what it printed (with what it complained of, when it failed)."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(WITHIN_S):
            out, complaint = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out + complaint if process.returncode else out


def values_of(stream: bytes) -> list[bytes]:
    """Of kcat's %R%s: a length of 32 bits before each."""
    values, at = [], 0
    while at < len(stream):
        (length,) = struct.unpack_from(">i", stream, at)
        at += 4 + length
        values.append(stream[at - length : at])
    return values


def committed(place: Place, tier: str) -> dict[int, int]:
    """The group's committed offsets, by partition, as another client sees them."""
    topic = f"{place.prefix}.{tier}"
    consumer = Consumer({"bootstrap.servers": place.bootstrap, "group.id": topic})
    try:
        found = consumer.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=WITHIN_S)
        return {one.partition: max(0, one.offset) for one in found}
    finally:
        consumer.close()


def partner(id: str, count: int = 3, **more: Any) -> dict[str, Any]:
    """A send to recipients nobody else has."""
    return {"id": id, "channel": "partner", "to": [f"{id}-{n}" for n in range(count)], "content": {"n": 1}, **more}


@pytest.fixture
async def place(kcat: str, kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as exits:
        made = await Place.make(tmp_path, kafka_bootstrap, exits)
        await made.create_topics()
        yield made


def outcomes(ends: Ends) -> dict[str, list[str]]:
    return {name: [outcome for _, outcome in told] for name, told in ends.items()}


async def test_other_clients_write_sends_and_read_receipts(place: Place) -> None:
    engine = await place.serve("engine")
    text = {"type": "text", "text": "Your parcel is at the door."}
    by_kcat: list[dict[str, Any]] = [
        {"id": f"k{n}", "channel": "notice", "to": [f"k{n}-a", f"k{n}-名", f"invalid-{n}"], "content": text,
         "campaign": "parcels", "meta": {"order": n, "of": "李"}}
        for n in range(40)
    ]  # fmt: skip
    lines = [json.dumps(send, ensure_ascii=bool(n % 2)).encode() for n, send in enumerate(by_kcat)]
    await place.kcat_send("basic", lines, "-H", f"traceparent={TRACEPARENT}")
    by_confluent = {
        codec: [partner(f"{codec}{n}", meta=[n, b"\x00\xff", 1.5, None]) for n in range(60)] for codec in CODECS
    }
    for codec, sends in by_confluent.items():
        await place.confluent_send("template", sends, codec)
    alert = partner("alert", 1)
    await place.kcat_send("system", [json.dumps(alert).encode()])
    fed = [*by_kcat, *(send for sends in by_confluent.values() for send in sends), alert]
    found = outcomes(await place.told(fed, engine))
    names = [name for send in fed for name in send["to"]]
    assert found == {name: ["failed" if name.startswith("invalid-") else "accepted"] for name in names}
    assert await place.delivered() == Counter(name for name in names if not name.startswith("invalid-"))
    metas = {id: meta for receipt in await place.receipts() for id, _, _, _, _, meta in receipt["sends"]}
    assert metas == {send["id"]: send.get("meta") for send in fed}
    tiers = {receipt["tier"]: (receipt["channel"], receipt["campaign"]) for receipt in await place.receipts()}
    assert tiers == {"basic": ("notice", "parcels"), "template": ("partner", None), "system": ("partner", None)}
    assert await place.kcat_read("dead", "%R%s") == b""


async def test_what_is_dead_is_kept_as_it_came(place: Place) -> None:
    engine = await place.serve("engine")
    bad, good = b'{"id":"broken', partner("good")
    text = {"type": "text", "text": "hello"}
    part = json.dumps({"id": "part", "channel": "notice", "to": ["u", "v|w"], "content": text, "meta": 7}).encode()
    await place.kcat_send("basic", [bad], "-p", "2", "-k", "first", "-H", f"traceparent={TRACEPARENT}", "-H", "my=own")
    await place.kcat_send("basic", [part], "-p", "2", "-k", "second")
    await place.kcat_send("basic", [json.dumps(good).encode()], "-p", "2")
    await until_receipts(place, engine, 4)
    stamps = (await place.kcat_read("basic", "%T\n")).decode().split()
    keys = (await place.kcat_read("dead", "%k\n")).decode().split()
    kept = dict(zip(keys, values_of(await place.kcat_read("dead", "%R%s")), strict=True))
    assert kept == {"first": bad, "second": part}
    lines = (await place.kcat_read("dead", "%h\n")).decode().splitlines()
    headers = dict(zip(keys, map(headers_of, lines), strict=True))
    assert all(found.pop("surgetank-detail") for found in headers.values())
    ours = {"surgetank-attempts": "0", "surgetank-hop": "0"}
    assert headers["first"] == ours | {
        "traceparent": TRACEPARENT,
        "my": "own",
        "surgetank-reason": "malformed",
        "surgetank-origin": f"{place.prefix}.basic:2:0",
        "surgetank-first-seen": stamps[0],
    }
    assert headers["second"] == ours | {
        "surgetank-reason": "recipient_forbidden",
        "surgetank-origin": f"{place.prefix}.basic:2:1",
        "surgetank-first-seen": stamps[1],
        "surgetank-open": "\x02",
    }
    told = {(receipt["outcome"], receipt["reason"]): receipt["sends"] for receipt in await place.receipts()}
    assert told["dead", "malformed"] == [[None, [f"{place.prefix}.basic", 2, 0], None, 0, 0, None]]
    assert told["dead", "recipient_forbidden"] == [["part", [f"{place.prefix}.basic", 2, 1], ["v|w"], 0, 0, 7]]
    assert await place.delivered() == Counter(["u", *good["to"]])


def headers_of(line: str) -> dict[str, str]:
    """kcat's %h: NAME=VALUE with commas between them, and commas in our detail too."""
    pairs = re.split(r",(?=surgetank-|traceparent=|my=)", line)
    return dict(pair.split("=", 1) for pair in pairs)


async def until_receipts(place: Place, engine: Engine, count: int) -> None:
    async def there() -> bool:
        return len(await place.receipts()) >= count

    await until(there, engine.child)


async def test_an_engine_killed_in_mid_flight_leaves_nothing_out(place: Place) -> None:
    await place.simulator.post("options", {"webhook": {"latency": {"median_s": 0.1}}})
    fed = [partner(f"s{n}") for n in range(500)]
    await place.confluent_send("basic", fed)
    path, port = place.config("engine")
    first = await place.start(path, port)

    async def some_committed() -> bool:
        return sum((await asyncio.to_thread(committed, place, "basic")).values()) > 0

    await until(some_committed, first.child)
    first.child.process.kill()
    assert await first.child.process.wait() == -signal.SIGKILL
    before = await place.delivered()
    assert 0 < len(before) < len(fed) * 3, "not in mid-flight"
    bounds = await asyncio.to_thread(committed, place, "basic")
    await place.simulator.post("options", {"webhook": {"latency": {"median_s": 0.0}}})
    second = await place.start(path, port)
    found = await place.told(fed, second)
    assert {outcome for told in found.values() for _, outcome in told} == {"accepted"}
    after = await place.delivered()
    assert after.keys() == found.keys()
    # What was committed is never done again; what was not, at most once more.
    assert max(after.values()) <= 2
    for name, told in found.items():
        ((_, partition, offset),) = {origin for origin, _ in told}
        if offset < bounds[partition]:
            assert (after[name], len(told)) == (1, 1), f"{name} at {partition}:{offset} was committed"
    assert await second.child.stop() == 0


async def test_two_engines_share_and_one_takes_over(place: Place) -> None:
    one = await place.serve("one", "--tiers", "basic")
    two = await place.serve("two", "--tiers", "basic")

    async def owned(engine: Engine) -> float:
        return (await engine.samples()).sum("kafka_assigned_partitions", tier="basic")

    async def both_own() -> bool:
        return [await owned(one), await owned(two)] == [PARTITIONS / 2, PARTITIONS / 2]

    await until(both_own, one.child, two.child)
    shared = [partner(f"shared{n}") for n in range(200)]
    await place.confluent_send("basic", shared)
    names = [name for send in shared for name in send["to"]]
    assert outcomes(await place.told(shared, one, two)) == {name: ["accepted"] for name in names}
    assert await place.delivered() == Counter(names)
    assert [(await e.samples()).sum("recipients_total") for e in (one, two)] == [len(names) / 2, len(names) / 2]

    await place.simulator.post("options", {"webhook": {"latency": {"median_s": 0.05}}})
    taken = [partner(f"taken{n}") for n in range(300)]
    await place.confluent_send("basic", taken)

    async def at_work() -> bool:
        return (await one.samples()).sum("recipients_total") > len(names) / 2

    await until(at_work, one.child, two.child)
    assert await one.child.stop() == 0, one.child.tail()
    found = outcomes(await place.told([*shared, *taken], two))
    assert {outcome for told in found.values() for outcome in told} == {"accepted"}
    assert (await place.delivered()).keys() == found.keys()
    assert all(found[name] == ["accepted"] for name in names)
    assert await owned(two) == PARTITIONS
    assert await two.child.stop() == 0, two.child.tail()


async def test_an_engine_waits_for_a_broker_that_is_away(kcat: str, tmp_path: Path) -> None:
    broker = Broker(stack.free_port())
    async with AsyncExitStack() as exits:
        exits.callback(broker.stop)
        place = await Place.make(tmp_path, broker.bootstrap, exits)
        path, port = place.config("engine")
        engine = await place.start(path, port)

        def logged(text: str) -> list[dict[str, Any]]:
            lines = map(json.loads, engine.child.log.read_text().splitlines())
            return [line for line in lines if line["event"] == "waiting for the log" and text in line["error"]]

        async def waits() -> bool:
            return bool(logged(broker.bootstrap))

        await until(waits, engine.child)
        assert await place.status(port, "readyz") == (503, "waiting for the log\n")
        assert (await place.status(port, "livez"))[0] == 200
        started(broker)  # blocks the loop, and must: the broker dies with the thread that started it

        async def wants_topics() -> bool:
            return bool(logged(f"{place.prefix}.basic"))

        await until(wants_topics, engine.child)
        assert (await place.status(port, "readyz"))[0] == 503
        await place.create_topics()
        await until(engine.ready, engine.child)
        send = partner("late")
        await place.kcat_send("basic", [json.dumps(send).encode()])
        assert outcomes(await place.told([send], engine)) == {name: ["accepted"] for name in send["to"]}
        assert await engine.child.stop() == 0
