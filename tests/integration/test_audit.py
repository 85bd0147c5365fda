"""The audit of what a real pipeline left on a real log, and of copies of it in which receipts were removed or added."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import pytest
from aiohttp import web

from engine.audit import KINDS, Audit, Finding, Window
from engine.audit_read import Reading
from engine.audit_runs import Runs
from engine.config import Config, load
from engine.logs import Headers, Log, Partition, Position, Record, TopicSpec
from engine.send import Outcome
from tests.contract.log_kit import Listener, wait_for
from tests.integration.support import (
    QUICK,
    TIERS,
    Arrived,
    cancel,
    channel,
    gateway,
    now_ms,
    opened,
    send,
    working,
)
from tests.integration.test_cli import run

HOUR_MS = 3_600_000
ALL_TIME = Window(0, 1 << 62, None)
TOPICS = (*TIERS, "receipts", "dead")
# For every send of a receipt: the receipts records to write instead.
Edit = Callable[[dict[str, Any], list[Any]], Sequence[tuple[dict[str, Any], list[Any]]]]


def configured(directory: Path, log_keys: str, prefix: str, url: str) -> Config:
    path = directory / f"{prefix}.toml"
    head = f'state = "{directory}/{prefix}"\n[log]\n{log_keys}\nprefix = "{prefix}"\npartitions = 2\n'
    http = '[http]\nmetrics = ""\nadmin = ""\n'
    path.write_text(head + http + QUICK + channel("partner", url, "batch = 5"))
    return load(path)


class Place:
    """A log on which everything that can become of a send has become of some; ``copy`` it with changes."""

    def __init__(self, directory: Path, log_keys: str, url: str) -> None:
        self.directory = directory
        self.log_keys = log_keys
        self.url = url
        self.config = self.other()

    def other(self) -> Config:
        return configured(self.directory, self.log_keys, f"t{uuid4().hex}", self.url)

    async def where(self, words: bytes) -> tuple[tuple[str, int, int], bytes]:
        """Where the only send with these words stands, and its bytes."""
        found = []
        async with opened(self.config, engine=False) as log:
            for tier in TIERS:
                async for offset, record in everything(log, f"{self.config.log.prefix}.{tier}"):
                    if record.value is not None and words in record.value:
                        found.append(((record.topic, record.partition or 0, offset), record.value))
        (only,) = found
        return only

    async def audited(
        self, config: Config, window: Window = ALL_TIME, grace_ms: int = 5_000
    ) -> tuple[Audit, list[Finding]]:
        findings: list[Finding] = []
        audit = Audit(config.tiers, window, grace_ms, findings.append)
        folder = self.directory / f"runs-{uuid4().hex}"
        folder.mkdir()
        async with opened(config, engine=False) as log:
            reading = Reading(log, config, Runs(folder, most_bytes=4096), lambda _kind, _count: None)
            await reading.run()
        reading.judge(audit)
        return audit, findings

    async def copy(
        self, edit: Edit, more: Callable[[str], Sequence[Record]] = lambda _: (), no_dead: str = ""
    ) -> Config:
        """The same log under another prefix, offset for offset but for ``receipts`` and ``dead``; all committed."""
        config = self.other()
        old, new = self.config.log.prefix, config.log.prefix
        async with opened(config) as log:
            records: dict[str, list[Record]] = {name: [] for name in TOPICS}
            for name in TOPICS:
                async for _, record in everything(log, f"{old}.{name}"):
                    records[name].append(_renamed(record, old, new))
            records["receipts"] = list(_edited(records["receipts"], edit, new))
            records["dead"] = [record for record in records["dead"] if not no_dead or no_dead not in str(record.value)]
            for name in TOPICS:
                await log.append(records[name])
            await log.create_topics([TopicSpec(f"{new}.later.system.1h")])
            await log.append(more(new))
            for tier in TIERS:
                await commit_all(log, f"{new}.{tier}")
        return config


async def everything(log: Log, topic: str) -> AsyncIterator[tuple[int, Record]]:
    """Each record with its offset."""
    reader = await log.reader([topic])
    while not await reader.at_end():
        for chunk in await reader.poll(1000, 0.2):
            columns = zip(chunk.offsets, chunk.values, chunk.keys, chunk.headers, chunk.timestamps_ms, strict=True)
            for offset, value, key, headers, stamp in columns:
                yield offset, Record(topic, value, key, headers, chunk.partition, stamp)
    await reader.close()


async def commit_all(log: Log, topic: str, group: str | None = None) -> None:
    """The group (default: the tier's) has done everything there is."""
    ends: dict[Partition, Position] = {}
    async for offset, record in everything(log, topic):
        ends[Partition(topic, record.partition or 0)] = Position(offset + 1)
    listener = Listener()
    consumer = log.consumer(group or topic, [topic], listener)
    await consumer.start()
    await wait_for(lambda: bool(listener.owned), consumer)
    await consumer.commit(ends)
    await consumer.close()


def moved(origin: Sequence[Any], **told: bytes | int) -> Headers:
    """The headers of a record that stands elsewhere than where it first stood."""
    told = {"origin": ":".join(map(str, origin)).encode(), "first-seen": now_ms(), "reason": b"x", **told}
    return tuple(
        (f"surgetank-{name}", b"%d" % value if isinstance(value, int) else value) for name, value in told.items()
    )


def receipt(prefix: str, origin: Sequence[Any], id: str, to: list[str] | None, outcome: str) -> Record:
    """One more receipt."""
    facts = {"v": 1, "tier": "basic", "channel": "partner", "account": "a", "tenant": "a", "campaign": None}
    told = {"outcome": outcome, "code": "", "reason": "", "batch": "more", "platform_id": "", "at": now_ms()}
    return Record(f"{prefix}.receipts", msgpack.packb({**facts, **told, "sends": [[id, origin, to, 1, 0, None]]}))


def _renamed(record: Record, old: str, new: str) -> Record:
    headers = tuple((name, value.replace(old.encode(), new.encode())) for name, value in record.headers)
    return record._replace(topic=record.topic.replace(old, new), headers=headers)


def _edited(receipts: Sequence[Record], edit: Edit, prefix: str) -> Sequence[Record]:
    made = []
    for record in receipts:
        receipt = msgpack.unpackb(record.value)
        for entry in receipt.pop("sends"):
            entry[1][0] = f"{prefix}.{entry[1][0].rpartition('.')[2]}"
            made += [
                record._replace(value=msgpack.packb({**facts, "sends": [changed]}))
                for facts, changed in edit(receipt, entry)
            ]
    return made


def unchanged(receipt: dict[str, Any], entry: list[Any]) -> Sequence[tuple[dict[str, Any], list[Any]]]:
    return [(receipt, entry)]


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    keys = f'kind = "sqlite"\npath = "{tmp_path}/log.db"'
    if request.param == "kafka":
        keys = f'kind = "kafka"\nbootstrap = "{request.getfixturevalue("kafka_bootstrap")}"'

    async def answer(call: Arrived) -> web.Response:
        return web.json_response({"results": [{"id": id, "code": "failed"} for id in call.ids if id.startswith("no")]})

    async with gateway(answer=answer) as partner:
        place = Place(tmp_path, keys, partner.url)
        prefix = place.config.log.prefix
        async with working(place.config) as worker:
            await worker.append(cancel("gone", now_ms())._replace(topic=f"{prefix}.control"))
            await worker.until(lambda: len(worker.pipeline.dispatcher.cancelled), "the command is known")
            await worker.append(
                *(Record(f"{prefix}.basic", send(f"i{n}", f"u{n}", campaign=f"c{n % 2}")) for n in range(20)),
                Record(
                    f"{prefix}.template", send("large", ["a", "b", "a", "no", "\x07", *(f"l{n}" for n in range(40))])
                ),
                Record(f"{prefix}.basic", b"junk"),
                Record(f"{prefix}.basic", None),
                Record(f"{prefix}.basic", send("lost", ["d1", "d2"], channel="nowhere")),
                Record(f"{prefix}.basic", send("gone", ["g1", "g2"], campaign="gone"), timestamp_ms=now_ms() - 1000),
                Record(f"{prefix}.system", send("late", ["e"], deadline=now_ms() - 1)),
                Record(f"{prefix}.system", send("same", ["s1"]), partition=0),
                Record(f"{prefix}.system", send("same", ["s2", "s3"]), partition=0),
                Record(f"{prefix}.system", send("later", ["w1", "w2"], not_before=now_ms() + HOUR_MS)),
            )
            await worker.all_ended(20 + 45 + 2 + 2 + 2 + 1 + 3)
            await worker.until(lambda: sum(ledger.uncommitted for ledger in worker.ledgers()) <= 4, "committed")
        yield place


async def test_what_a_pipeline_did_adds_up(place: Place) -> None:
    audit, findings = await place.audited(place.config)
    assert findings == []
    total = audit.total
    assert total.outcomes == {
        Outcome.ACCEPTED: 20 + 42 + 1,
        Outcome.FAILED: 1,
        Outcome.DUPLICATE: 1 + 2,
        Outcome.DEAD: 1 + 2 + 2,
        Outcome.CANCELLED: 2,
        Outcome.EXPIRED: 1,
    }
    assert (total.recipients, total.waiting) == (77, 2)
    for sums in (total, *audit.places.values()):
        assert sums.recipients == sums.outcomes.total() + sums.waiting + sums.missing
    assert audit.places["basic", "partner", "c1"].outcomes == {"accepted": 10}
    assert audit.places["system", "partner", None].waiting == 2


async def test_each_kind_of_harm_is_seen(place: Place) -> None:
    def edit(receipt: dict[str, Any], entry: list[Any]) -> Sequence[tuple[dict[str, Any], list[Any]]]:
        kept, other = (receipt, entry), {**receipt, "batch": "another"}
        match entry[0]:
            case "i1":
                return []
            case "i2":
                return [kept, (other, entry)]
            case "i3":
                return [kept, ({**other, "outcome": "failed"}, entry)]
            case "i4":
                return [({**receipt, "at": receipt["at"] + HOUR_MS}, entry)]
            case "i5":
                return [kept, (receipt, [*entry[:2], ["stranger"], *entry[3:]])]
            case "i6":
                return [kept, (receipt, [entry[0], ["elsewhere", 0, 7], *entry[2:]])]
            case "i7":
                return [kept, kept]  # told again, as after a crash
            case "i8":
                return [({**receipt, "outcome": "expired"}, entry)]
            case "i9":
                return [(receipt, ["i10", *entry[1:]])]
            case "large" if receipt["outcome"] == "accepted":
                names = [name for name in entry[2] if name != "l7"]
                return [(receipt, [*entry[:2], names, *entry[3:]])] if names else []
        return [kept]

    config = await place.copy(edit, no_dead="nowhere")
    audit, findings = await place.audited(config)
    found = {(one.kind, one.id, one.recipient): one for one in findings}
    assert found.keys() == {
        ("missing", "i1", "u1"),
        ("repeated", "i2", "u2"),
        ("repeated", "i3", "u3"),
        ("late", "i4", "u4"),
        ("unexplained", "i5", "stranger"),
        ("unexplained", "i6", ""),
        ("unexplained", "i8", "u8"),
        ("unexplained", "i9", ""),
        ("missing", "i9", "u9"),
        ("missing", "large", "l7"),
        ("unexplained", "lost", "d1"),
        ("unexplained", "lost", "d2"),
        # Committed, and never told of.
        ("missing", "later", "w1"),
        ("missing", "later", "w2"),
    }
    assert found["repeated", "i3", "u3"].why == "ended accepted and failed"
    assert found["unexplained", "lost", "d1"].why == "told dead, and not on the dead topic"
    assert found["missing", "i1", "u1"].campaign == "c1"
    assert found["missing", "i1", "u1"].origin.startswith(f"{config.log.prefix}.basic:")
    counted = {kind: getattr(audit.total, kind) for kind in KINDS}
    assert counted == {kind: sum(one.kind == kind for one in findings) for kind in KINDS}
    assert audit.places["basic", "partner", "c1"].missing == 2


async def test_what_was_moved_waits_where_it_stands(place: Place) -> None:
    """One of the scheduled send's two recipients went to ``later``; the other was accepted meanwhile."""
    origin, value = await place.where(b"later")

    def more(prefix: str) -> Sequence[Record]:
        at = [f"{prefix}.system", *origin[1:]]
        headers = moved(at, hop=1, open=b"\x02")
        later = Record(f"{prefix}.later.system.1h", value, headers=headers, partition=0)
        return [later, receipt(prefix, at, "later", ["w1"], "accepted")]

    config = await place.copy(unchanged, more)
    audit, findings = await place.audited(config)
    assert (findings, audit.total.waiting, audit.total.recipients) == ([], 1, 77)
    async with opened(config) as log:  # taken from there, and put nowhere
        await commit_all(log, f"{config.log.prefix}.later.system.1h", f"{config.log.prefix}.later.system")
    audit, findings = await place.audited(config)
    assert [(one.kind, one.recipient) for one in findings] == [("missing", "w2")]


async def test_what_was_replayed_may_end_again(place: Place) -> None:
    origin, value = await place.where(b"nowhere")

    def more(prefix: str) -> Sequence[Record]:
        at = [f"{prefix}.basic", *origin[1:]]
        replayed = Record(f"{prefix}.basic", value, headers=moved(at, hop=1), partition=0)
        return [replayed, receipt(prefix, at, "lost", None, "accepted")]

    config = await place.copy(lambda facts, entry: [] if entry[0] == "later" else [(facts, entry)], more)
    audit, findings = await place.audited(config)
    assert {(one.kind, one.recipient) for one in findings} == {("missing", "w1"), ("missing", "w2")}
    assert audit.total.outcomes["accepted"] == 63 + 2


async def test_the_command(place: Place, tmp_path: Path) -> None:
    path = tmp_path / f"{place.config.log.prefix}.toml"
    code, out, err = await run("audit", "-c", path, "--grace", "5s", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [document[kind] for kind in KINDS] == [0, 0, 0, 0]
    assert (document["recipients"], document["waiting"], document["read"]["inputs"]) == (77, 2, 29)
    code, out, _ = await run("audit", "-c", path, "--campaign", "c1", "--grace", "5s", "--json")
    assert json.loads(out)["recipients"] == 10
    for window in (("--to", "1h"), ("--from", "2100-01-01")):
        assert json.loads((await run("audit", "-c", path, *window, "--json"))[1])["recipients"] == 0
    config = await place.copy(lambda receipt, entry: [] if entry[0] in ("i1", "i3") else [(receipt, entry)])
    path, ids = tmp_path / f"{config.log.prefix}.toml", tmp_path / "ids"
    code, out, _ = await run("audit", "-c", path, "--grace", "5s", "--ids", ids)
    assert code == 1
    assert "basic / partner / c1: 2 missing" in out
    assert "i1 -> u1: no outcome, and its record is committed" in out
    found = [json.loads(line) for line in ids.read_text().splitlines()]
    assert {one["recipient"] for one in found} == {"u1", "u3", "w1", "w2"}
    assert (await run("audit", "-c", path, "--from", "yesterday"))[0] == 2
