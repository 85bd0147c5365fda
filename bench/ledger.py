"""Commits of millions of open sends, completed out of order, on a real Kafka: how long one takes, and whether a worker
that starts anew finds exactly what was committed.

A fifth of the offsets are done, at random: the worst case for a map, which does not fit into a commit and goes to the
progress topic. Before each further commit some more complete, as between two commits of a busy worker. The engine's own
committer commits, as a member of a group that owns all partitions; each commit is acknowledged when it counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter_ns, process_time_ns
from typing import Any

import uvloop

from bench import stack
from engine import wire_map
from engine.clock import Clock
from engine.commit import Committer
from engine.config import Config, load
from engine.counters import Counters
from engine.fence import Fence
from engine.logs import Consumer, Log, Partition, Position
from engine.progress import Keep, Progress, fetch
from engine.send import Tier
from engine.state.flight import Flight
from engine.state.seen import Seen
from engine.topics import MAX_MAP_BYTES
from engine.wire_map import Map, Pointer
from ext.ledger import BITSET, Ledger

PARTITIONS = 12
STAMP_MS = 1_700_000_000_000
DONE_SHARE = 0.2
BETWEEN = 12_000  # completions between two commits: 60,000 a second
TICK_S = 0.001
CHANNEL = '[channels.none]\ndriver = "webhook"\nbase_url = "http://127.0.0.1:1/"\n'


class Member:
    """A group's only one: what the committer commits for, and the consumer's listener."""

    tier = Tier.BASIC

    def __init__(self, log: Log, config: Config) -> None:
        group = f"{config.log.prefix}.basic"
        self.keep = Keep(log, config.log.prefix, group, config.log.metadata_limit, MAX_MAP_BYTES)
        self.progress: dict[Partition, Progress] = {}
        self.consumer: Consumer = log.consumer(group, [group], self)
        self.positions: Mapping[Partition, Position] = {}
        self.epoch = 0

    async def assigned(self, positions: Mapping[Partition, Position], epoch: int) -> None:
        """All partitions, there is nobody else."""
        self.positions, self.epoch = positions, epoch

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """Nothing is under way."""

    async def join(self) -> None:
        """Poll until everything is its own."""
        await self.consumer.start()
        while len(self.positions) < PARTITIONS:
            await self.consumer.poll(1, 0.1)


async def measure(config: Config, open_sends: int, commits: int) -> dict[str, Any]:
    """The figures. Raises RuntimeError when a commit fails or what was committed is not found again."""
    chance = random.Random(1)
    each = open_sends // PARTITIONS
    async with stack.opened(config) as log:
        member = Member(log, config)
        await member.join()
        for partition in member.positions:
            member.progress[partition] = Progress(member.keep, _opened(partition, each, member.epoch, chance))
        figures = await _committed(config, member, each, commits, chance)
        await member.consumer.close()
    async with stack.opened(config) as log:
        again = Member(log, config)
        await again.join()
        begun = perf_counter_ns()
        found = await _restored(again)
        figures["restore_ms"] = _ms(perf_counter_ns() - begun)
        await again.consumer.close()
    _compare(member, found, each)
    return {"open_sends": each * PARTITIONS, "partitions": PARTITIONS, **figures}


async def _committed(config: Config, member: Member, each: int, commits: int, chance: random.Random) -> dict[str, Any]:
    clock, counters, state = Clock(), Counters(), Path(config.state)
    seen = Seen(state / "seen.db", 86_400_000, 1_000)
    flight = Flight(state / "flight", counters)
    fence = Fence([1 << 40] * len(Tier), config.log.session_timeout, counters, clock)
    fence.add(Tier.BASIC, member.keep.group)
    committer = Committer(seen, fence, flight, counters, clock)
    committer.sources.append(member)
    took, cpu, late = [], [], array("q")
    watching = asyncio.create_task(_watch(late))
    try:
        for _ in range(commits):
            for one in member.progress.values():
                _complete_more(one.ledger, each, chance)
            begun, used = perf_counter_ns(), process_time_ns()
            if not await committer.commit(member):
                raise RuntimeError("a commit failed; the log above says why")
            took.append(perf_counter_ns() - begun)
            cpu.append(process_time_ns() - used)
    finally:
        watching.cancel()
        seen.close()
        flight.close()
    return {
        "commits": commits,
        "commit_ms": {"median": _ms(median(took)), "max": _ms(max(took)), "first": _ms(took[0])},
        "commit_cpu_ms": _ms(median(cpu)),
        "loop_stall_ms": _ms(max(late, default=0)),
        "map_bytes": sum(one.size for one in member.progress.values()),
    }


async def _watch(late: array[int]) -> None:
    """How late the loop runs a timer."""
    while True:
        due = perf_counter_ns() + int(TICK_S * 1e9)
        await asyncio.sleep(TICK_S)
        late.append(perf_counter_ns() - due)


async def _restored(member: Member) -> dict[Partition, Ledger]:
    """What a new owner knows, as engine.assignment finds it out."""
    said = {at: wire_map.decode_text(one.metadata, one.offset) for at, one in member.positions.items()}
    pointers = {at: (member.positions[at].offset, one) for at, one in said.items() if isinstance(one, Pointer)}
    maps = await fetch(member.keep, pointers) if pointers else {}
    ledgers = {}
    for at, position in member.positions.items():
        known = maps.get(at, said[at])
        ledgers[at] = Ledger(at, position.offset, member.epoch)
        if isinstance(known, Map):  # else _compare says that it is not there
            ledgers[at].restore(known.stamp_ms, known.codec, known.payload)
    return ledgers


def _compare(member: Member, found: Mapping[Partition, Ledger], each: int) -> None:
    for at, one in member.progress.items():
        restored, before = found[at], one.ledger.snapshot()
        restored.open_many(array("q", range(restored.position, each)), array("q", [STAMP_MS]) * (each - before.offset))
        after = restored.snapshot()
        if (after.offset, after.payload(BITSET)) != (before.offset, before.payload(BITSET)):
            raise RuntimeError(f"{at} was not restored as it was committed")


def _opened(partition: Partition, records: int, epoch: int, chance: random.Random) -> Ledger:
    """With a fifth of them done, but not the first: the watermark stays."""
    ledger = Ledger(partition, 0, epoch)
    ledger.open_many(array("q", range(records)), array("q", [STAMP_MS]) * records)
    ledger.complete_many(array("q", (n for n in range(1, records) if chance.random() < DONE_SHARE)))
    return ledger


def _complete_more(ledger: Ledger, records: int, chance: random.Random) -> None:
    for offset in {chance.randrange(1, records) for _ in range(min(BETWEEN // PARTITIONS, records // 100))}:
        if not ledger.is_done(offset):
            ledger.complete(offset)


def _ms(ns: float) -> float:
    return round(ns / 1e6, 1)


def configured(folder: Path, bootstrap: str | None) -> Config:
    """``bootstrap`` None: the embedded log."""
    path = folder / "surgetank.toml"
    log = stack.log_keys(folder, bootstrap)
    path.write_text(f'state = "{folder}/state"\n[log]\n{log}\npartitions = {PARTITIONS}\n{CHANNEL}')
    (folder / "state").mkdir()
    return load(path)


def main(argv: list[str]) -> int:
    """``python -m bench ledger``."""
    parser = argparse.ArgumentParser(prog="python -m bench ledger", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--open", type=int, default=10_000_000, help="open sends (default: %(default)s)")
    parser.add_argument("--commits", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="kafka", help="default: %(default)s")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="surgetank-ledger-") as made:
        if options.log == "sqlite":
            figures = uvloop.run(measure(configured(Path(made), None), options.open, options.commits))
        else:
            from bench.kafka import Broker  # Java is needed for this alone

            with Broker() as broker:
                config = configured(Path(made), broker.bootstrap)
                figures = uvloop.run(measure(config, options.open, options.commits))
    result = {**figures, "log": options.log, "machine": stack.machine()}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
