"""The compiled intake against the stages in Python: whatever it takes, they would have taken in the same way."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgpack
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.assignment import Assignment
from engine.attempts import Attempts
from engine.cancelled import Standing
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.commit import Committer, Ledger
from engine.config import load, tier_policy
from engine.consume import Intake
from engine.counters import Counters
from engine.dispatch import Dispatcher
from engine.fence import Fence
from engine.frequency import Frequencies
from engine.gates import Gates
from engine.later import Later
from engine.limits import Limits
from engine.logs import Chunk, Partition
from engine.logs.open import open_log
from engine.open_sends import OpenSend, OpenSends
from engine.pipeline import _channels
from engine.progress import Keep
from engine.record import Recorder
from engine.send import Tier
from engine.state.flight import Flight
from engine.state.in_hand import Hands
from engine.state.seen import Seen
from engine.state.uses import Uses
from engine.turns import Turns
from ext.records import RecordBatch
from ext.schedule import Core

NOW_MS = 1_700_000_000_000
CONFIG = """
state = "{folder}"
[log]
path = ":memory:"
[tiers.system]
allowance = {{ recipients = 9, per = "10s", tenants = {{ k = 4 }} }}
[tiers.basic]
pacing = "asap"
linger = "0ms"
[channels.partner]
driver = "webhook"
base_url = "http://127.0.0.1:1/x"
in_flight = 1000
overload = {{ policy = "refuse" }}
[channels.wecom]
driver = "wecom.message"
base_url = "http://127.0.0.1:1"
in_flight = 1000
[channels.wecom.accounts.a]
corpid = "c"
corpsecret = "s"
agentid = 1
[channels.wecom.accounts.b]
corpid = "c"
corpsecret = "s"
agentid = 2
"""


class Still(Clock):
    """Time stands."""

    def now_ns(self) -> int:
        return 10**12

    def wall_ms(self) -> int:
        return NOW_MS

    def offset_ns(self) -> int:
        return self.now_ns() - NOW_MS * NS_PER_MS


class LeavesAll:
    """Takes nothing, so that every record goes through Python."""

    sends = recipients = size = unknown_keys = 0

    def take(self, *arguments: Any) -> int:
        return int(arguments[-1])

    def learn(self, value: bytes, flow: object) -> None:
        pass


class Place:
    """An intake, and everything it works on."""

    def __init__(self, folder: Path, compiled: bool, tier: Tier = Tier.BASIC) -> None:
        (folder / "c.toml").write_text(CONFIG.format(folder=folder))
        config = load(folder / "c.toml")
        clock = Still()
        self.core, self.opens, self.counters = Core(), OpenSends(), Counters()
        limits = Limits(self.core, Uses(folder / "limits.db"), clock)
        channels = _channels(config, self.core, limits)
        self.seen = Seen(folder / "seen.db", 10**9, 10**6)
        log = open_log(config.log, state=config.state, engine=False)
        self.recorder = Recorder(log, "s", clock, self.counters)
        attempts = Attempts(log, "s", [], channels, self.opens.own_content, self.opens.free_content, clock)
        fence = Fence([10**6] * 3, 30 * NS_PER_S, self.counters, clock)
        turns = Turns(clock)
        self.later = Later(log, config, fence, turns, self.counters, clock)
        flight = Flight(folder / "flight", self.counters)
        self.gates = gates = Gates(config, channels, self.core, clock)
        gates.look(clock.now_ns())  # time stands: that was the only turn
        self.dispatcher = Dispatcher(
            self.core, self.opens, channels, config.channels, {}, self.recorder, self.seen, limits,
            Frequencies(folder, {}, {}, clock), gates, fence, flight, attempts, self.later, turns, self.counters,
            clock,
        )  # fmt: skip
        self.dispatcher._stopped = True  # the test pops
        self.dispatcher.cancel("stopped", Standing(None, NOW_MS + 5, NOW_MS + 10**6))
        assignment = Assignment(
            tier, Keep(log, "s", "s.basic", 4096, 1 << 20),
            Committer(self.seen, fence, flight, self.counters, clock),
            self.recorder, attempts, self.dispatcher.drop, flight, self.counters, clock,
        )  # fmt: skip
        self.intake = Intake(
            tier, tier_policy(config, tier), assignment, channels, {}, self.opens, self.seen,
            self.dispatcher, self.recorder, gates, attempts, self.later, turns, self.counters, clock,
        )  # fmt: skip
        self.intake.in_hand = Hands(folder)
        if not compiled:
            self.intake._taker = LeavesAll()  # type: ignore[assignment]
        self.ledger = Ledger(Partition("s.basic", 0), 0, 1)
        self.intake.ledgers[Partition("s.basic", 0)] = self.ledger

    def tells(self) -> dict[str, Any]:
        """All that can be seen of it; the core is emptied."""
        popped = self.core.pop_batches(10**12, 10**6)
        columns = ("tier", "channel", "account", "closed", "due", "start", "send", "position", "attempt", "pushed")
        counters = self.counters
        return {
            "sends": {handle: said(self.opens[handle]) for handle in self.opens},
            "open": (self.opens.count, self.opens.sizes),
            "core": [getattr(popped, name).tolist() for name in columns],
            "names": [(popped.tenant.tolist(), popped.campaign.tolist(), popped.content.tolist())],
            "ids": (popped.ids, popped.id_end.tolist(), self.core.stats()["waiting"], self.core.stats()["expired"]),
            "counters": (counters.consumed_sends, counters.consumed_bytes, counters.taken_in, counters.unknown_keys),
            "outcomes": (counters.outcomes, counters.invalid, counters.held),
            "records": self.recorder._records,
            "completions": [(ledger.partition, list(offsets)) for ledger, offsets in self.recorder._completions],
            "seen": self.seen.table.take(),
            "meters": {name: meter.whole_ns for name, meter in (self.gates.meters or {}).items()},
            "gate": (self.gates.by_channel["partner"].window(), self.gates.demoted),
            "moves": [
                (move.handle, move.positions, move.attempts, move.wait)
                for move in self.later._movers[self.intake.tier]._moves
            ],
            "held": {name: [held.send for held in waiting] for name, waiting in self.intake._held._held.items()},
        }

    def end(self) -> None:
        """Every open send is gone."""
        for handle in list(self.opens):
            self.opens.remove(handle)


def said(send: OpenSend) -> tuple[object, ...]:
    flow, content = send.flow, send.content
    return (
        send.id, send.origin, send.offset, send.key, send.total, send.left, send.first_seen_ms, send.pushed_ns,
        send.due_ns, send.deadline_ns, send.linger_ns, send.meta, send.record_key, send.value, send.headers,
        dict(send.data), send.taken, flow.tier, flow.channel, flow.account, flow.tenant, flow.campaign, flow.open,
        flow.account_handle, flow.tenant_handle, flow.campaign_handle, content.handle, content.key, content.open,
    )  # fmt: skip


IDS = st.sampled_from(["u", "user-1", "user_2", "U.3", "x" * 128, "y" * 129, "@all", "a|b", "王", "a b", "", "é" * 65])
RECIPIENT = IDS | st.builds(lambda id: {"id": id}, IDS) | st.just({"id": "u", "data": {"k": 1}}) | st.just(1)
TO = st.lists(st.sampled_from(["u", "v", "w-1"]), min_size=1, max_size=4) | st.lists(RECIPIENT, max_size=4)
TIMES = st.none() | st.sampled_from([0, 1, NOW_MS - 5, NOW_MS, NOW_MS + 100, NOW_MS + 10**9, 2**53 - 1, 2**53, -1, "x"])
NAME = st.sampled_from(["t", "k", "stopped", "", "n" * 128, "n" * 129]) | st.none()
SENDS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["1", "2", "3", "é", "i" * 128, "i" * 129, ""]) | st.integers(0, 300).map(str),
        "channel": st.sampled_from(["partner"] * 4 + ["wecom", "none"]),
        "to": TO,
        "content": st.sampled_from([{"n": 1}, {"n": 2}, {"msgtype": "text", "text": {"content": "hi"}}, {"ref": "r"}]),
    },
    optional={
        "v": st.sampled_from([1, 1, 1, 2]),
        "account": st.sampled_from(["a", "b", "none", None]),
        "tenant": NAME,
        "campaign": NAME,
        "not_before": TIMES,
        "due": TIMES,
        "deadline": TIMES,
        "meta": st.sampled_from([None, 1, {"k": [1, "x"]}, "m" * 4100]),
        "unknown": st.just(1),
    },
)
PLAIN = st.builds(
    lambda id, to, meta: {"id": str(id), "channel": "partner", "to": to, "content": {"n": 1}, "meta": meta},
    st.integers(0, 10**6),
    st.lists(st.sampled_from(["a", "b", "c", "d-1", "E_2"]), min_size=1, max_size=5, unique=True),
    st.sampled_from([None, None, "m" * 2000]),
)


@st.composite
def values(draw: st.DrawFn) -> bytes | None:
    send = draw(PLAIN | SENDS)
    kind = draw(st.sampled_from(["msgpack"] * 8 + ["json", "cut", "twice", "none"]))
    if kind == "none":
        return None
    if kind == "json":
        return json.dumps(send).encode()
    packed: bytes = msgpack.packb(send)
    if kind == "twice":
        key = draw(st.sampled_from(["id", "to", "campaign", "due"]))
        other = msgpack.packb(key) + msgpack.packb(draw(st.sampled_from([1, "x", ["u"], None])))
        packed = bytes([packed[0] + 1]) + draw(st.sampled_from([other + packed[1:], packed[1:] + other]))
    return packed[: draw(st.integers(0, len(packed)))] if kind == "cut" else packed


HEADERS = st.sampled_from(
    [(), (), (), (("traceparent", b"00-1"),), (("surgetank-origin", b"s.basic:0:1"),), (("surgetank-hop", b"x"),)]
)
RECORDS = st.lists(st.tuples(values(), st.none() | st.binary(max_size=3), HEADERS, st.integers(-9, 9)), max_size=25)


def as_read(chunk: Chunk) -> Chunk:
    """The same, as it comes from Kafka: columns that point into a batch."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 24)
    for offset, stamp_ms, key, value, headers in zip(*chunk[3:], strict=True):
        builder.append(offset - chunk.offsets[0], stamp_ms, key, value, list(headers))
    first_ms = chunk.timestamps_ms[0]
    records = RecordBatch(bytes(builder.build())[61:], len(chunk.offsets), chunk.offsets[0], first_ms).read(
        len(chunk.offsets)
    )
    columns = records.offsets, records.timestamps_ms, records.keys, records.values, records.headers
    return Chunk(chunk.topic, chunk.partition, chunk.epoch, *columns)


async def compare(folder: Path, tier: Tier, rounds: list[list[tuple[Any, ...]]], levels: list[int], read: bool) -> None:
    (folder / "a").mkdir()
    Seen(folder / "a" / "seen.db", 1, 1).close()
    shutil.copytree(folder / "a", folder / "b")  # one secret, so that keys can be compared
    places = [Place(folder / "a", True, tier), Place(folder / "b", False, tier)]
    offset = 0
    for records, level in zip(rounds, levels, strict=True):
        offsets = list(range(offset, offset + len(records)))
        offset += len(records)
        for place in places:
            place.gates.by_channel["partner"].level = level
            chunk = Chunk(
                "s.basic", 0, 1, offsets, [NOW_MS + record[3] for record in records],
                [record[1] for record in records], [record[0] for record in records],
                [record[2] for record in records],
            )  # fmt: skip
            raw = read and place is places[0] and offsets
            await place.intake.take(as_read(chunk) if raw else chunk)
        one, other = (place.tells() for place in places)
        for name in one:
            assert one[name] == other[name], name
        for place in places:
            place.end()
    for place in places:
        place.seen.close()
        place.dispatcher.failure.cancel()


ROUNDS = st.lists(st.tuples(RECORDS, st.sampled_from([255, 255, 190, 127, -1])), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([Tier.SYSTEM, Tier.BASIC]), ROUNDS, st.booleans())
def test_what_it_takes_is_what_they_would_have_taken(
    tier: Tier, rounds: list[tuple[list[tuple[Any, ...]], int]], read: bool
) -> None:
    """From objects and from Kafka's bytes, within allowances, and up to the levels at which the channel refuses."""
    records, levels = zip(*rounds, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder), tier, list(records), list(levels), read))


def test_a_content_met_before_hides_nothing(tmp_path: Path) -> None:
    """It is not read again where the same bytes stand: what is wrong in it, before it or after it is found all the
    same."""
    content = {"n": 1, "of": [{"x": "é"}, "y" * 40]}

    def packed(number: int, **others: Any) -> bytes:
        send = {"id": str(number), "channel": "partner", "content": content, "to": ["a"], **others}
        return bytes(msgpack.packb(send))

    last = msgpack.packb({"id": "z", "channel": "partner", "to": ["a"], "content": content})
    second = msgpack.packb("content") + msgpack.packb(content)
    odd = [packed(0)[:cut] for cut in range(len(packed(0)))]
    odd += [last[:cut] for cut in range(1, len(last) + 1)]
    odd += [bytes([last[0] + 1]) + last[1:] + second, last + second, packed(1, content={**content, "m": 2})]
    odd += [packed(2).replace("é".encode(), b"\xc3("), packed(3, more=content), packed(4, content=[content])]
    # It has been met once a whole group was taken, and is forgotten at what is not of the common kind.
    numbers = iter(range(10, 10_000))
    values = [value for one in odd for value in [*(packed(next(numbers)) for _ in range(17)), one]]
    records = [(value, None, (), 0) for value in values]
    asyncio.run(compare(tmp_path, Tier.BASIC, [records], [255], True))


def test_sends_of_a_known_kind_never_reach_python(tmp_path: Path) -> None:
    async def run() -> list[int]:
        place = Place(tmp_path, compiled=True)
        slow: list[int] = []
        one = place.intake._take_one
        place.intake._take_one = lambda *arguments: slow.append(arguments[-1]) or one(*arguments)  # type: ignore
        values = [
            msgpack.packb({"id": str(n), "channel": "partner", "to": [f"u{n}"], "content": {"n": 1}}) for n in range(99)
        ]
        row = [()] * 99
        await place.intake.take(Chunk("s.basic", 0, 1, range(99), [NOW_MS] * 99, [None] * 99, values, row))
        place.seen.close()
        place.dispatcher.failure.cancel()
        return slow

    assert asyncio.run(run()) == [0]
