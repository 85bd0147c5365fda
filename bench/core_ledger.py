"""What the ledger costs: a record taken in and completed, a commit's map, and all maps of ten million open sends.

Completions are scattered: a fifth of the offsets, at random, the worst case for a map. Times are CPU times.
"""

from __future__ import annotations

import random
from array import array
from statistics import median
from time import process_time_ns
from typing import Any

from engine import wire_map
from engine.logs import Partition
from ext.ledger import Ledger

PARTITIONS = 12
STAMP_MS = 1_700_000_000_000
SPANS = (1_000, 10_000, 100_000)  # offsets a map speaks of
RUNS = 15
METADATA = 4096  # characters of a commit, Kafka's default
MAX_MAP_BYTES = 8 << 20
DONE_SHARE = 0.2
NONCE = bytes(wire_map.NONCE_BYTES)


def measure_ledger(open_sends: int) -> dict[str, Any]:
    """Key `ledger` of the figures; ``open_sends``: over all partitions."""
    chance = random.Random(1)
    each = open_sends // PARTITIONS
    done = _scattered(each, chance)
    opened = process_time_ns()
    ledgers = [_opened(each) for _ in range(PARTITIONS)]
    completed = process_time_ns()
    for ledger in ledgers:
        ledger.complete_many(done)
    ended = process_time_ns()
    return {
        "open_ns": round((completed - opened) / (each * PARTITIONS), 1),
        "complete_ns": round((ended - completed) / (len(done) * PARTITIONS), 1),
        "encode_us": {str(span): _encode_us(span, chance) for span in SPANS},
        "all_maps": {"open_sends": each * PARTITIONS, **_all_maps(ledgers)},
    }


def _all_maps(ledgers: list[Ledger]) -> dict[str, Any]:
    begun = process_time_ns()
    snapshots = [ledger.snapshot() for ledger in ledgers]
    taken = process_time_ns()
    room = wire_map.room_for(METADATA)
    maps = [wire_map.encode(snapshot, NONCE, room, MAX_MAP_BYTES) for snapshot in snapshots]
    encoded = process_time_ns()
    for made, snapshot in zip(maps, snapshots, strict=True):
        read = wire_map.decode_record(wire_map.as_record(made), snapshot.offset, wire_map.crc_of(made))
        Ledger(Partition("t", 0), snapshot.offset, 2).restore(read.stamp_ms, read.codec, read.payload)
    restored = process_time_ns()
    return {
        "snapshot_ms": round((taken - begun) / 1e6, 2),
        "encode_ms": round((encoded - taken) / 1e6, 2),
        "restore_ms": round((restored - encoded) / 1e6, 2),
        "bytes": sum(map(len, maps)),
    }


def _encode_us(span: int, chance: random.Random) -> float:
    ledger = _opened(span)
    ledger.complete_many(_scattered(span, chance))
    took = []
    for _ in range(RUNS):
        begun = process_time_ns()
        wire_map.encode(ledger.snapshot(), NONCE, wire_map.room_for(METADATA), MAX_MAP_BYTES)
        took.append((process_time_ns() - begun) / 1e3)
    return round(median(took), 1)


def _opened(records: int) -> Ledger:
    ledger = Ledger(Partition("t", 0), 0, 1)
    ledger.open_many(array("q", range(records)), array("q", [STAMP_MS]) * records)
    return ledger


def _scattered(records: int, chance: random.Random) -> array[int]:
    """Not the first: the watermark stays."""
    return array("q", (offset for offset in range(1, records) if chance.random() < DONE_SHARE))
