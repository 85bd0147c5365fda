"""Joins what was fed, what the receipts say and what the simulator got: every recipient, exactly once.

Uses nothing of the engine's counters: inputs and receipts are read back from the log, the rest from the simulator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from engine import wire
from engine.decode import decode
from engine.errors import Reject
from engine.logs import Chunk, Log
from engine.send import Tier

Origin = tuple[str, int, int]


@dataclass
class Verdict:
    """Counted in recipients."""

    taken_in: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_channel: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (tier, channel, outcome)
    missing: list[str] = field(default_factory=list)  # fed, and no receipt, or accepted and never at the platform
    repeated: list[str] = field(default_factory=list)  # more than one outcome, or more than one delivery
    unexplained: list[str] = field(default_factory=list)  # at the platform and not accepted, or never fed
    latency_ms: dict[str, list[float]] = field(default_factory=dict)  # append to the platform's receipt, by tier
    arrived: Counter[str] = field(default_factory=Counter)  # deliveries, by recipient
    ends: dict[tuple[Origin, str], list[str]] = field(default_factory=dict)  # what the receipts say of each


class Input(dict[Origin, list[str]]):
    """What was fed: (topic, partition, offset) -> recipients; an unreadable record is one nameless recipient."""

    def __init__(self) -> None:
        super().__init__()
        self.appended_ms: dict[str, tuple[str, int]] = {}  # recipient -> (tier, timestamp)


async def read_all(log: Log, topics: Iterable[str]) -> AsyncIterator[Chunk]:
    """Every record that stands in the topics now."""
    reader = await log.reader(list(topics))
    try:
        while not await reader.at_end():
            for chunk in await reader.poll(1000, 0.5):
                yield chunk
    finally:
        await reader.close()


async def read_input(log: Log, prefix: str) -> Input:
    """The three tiers' topics; what has come back to them from elsewhere was fed before."""
    fed = Input()
    for tier in Tier:
        async for chunk in read_all(log, [f"{prefix}.{tier.label}"]):
            for offset, at_ms, value, headers in zip(
                chunk.offsets, chunk.timestamps_ms, chunk.values, chunk.headers, strict=True
            ):
                if wire.history(headers) is not None:
                    continue
                try:
                    to = decode(value).to
                except Reject:
                    fed[chunk.topic, chunk.partition, offset] = [""]
                    continue
                names = [who if isinstance(who, str) else who.id for who in to]
                fed[chunk.topic, chunk.partition, offset] = names
                fed.appended_ms.update((name, (tier.label, at_ms)) for name in names)
    return fed


async def judge(log: Log, prefix: str, fed: Input, deliveries: AsyncIterator[Any]) -> Verdict:
    """``deliveries``: the simulator's export."""
    verdict = Verdict(taken_in=sum(map(len, fed.values())))
    await _outcomes(log, prefix, fed, verdict)
    ends, arrived = verdict.ends, verdict.arrived
    async for row in deliveries:
        if row["verdict"] in ("delivered", "dropped"):
            arrived[row["recipient"]] += 1
            tier, appended_ms = fed.appended_ms.get(row["recipient"], ("", 0))
            if tier:
                verdict.latency_ms.setdefault(tier, []).append(row["arrived_ns"] / 1e6 - appended_ms)
            else:
                verdict.unexplained.append(row["recipient"])
    for origin, names in fed.items():
        for name in names:
            _compare(name, ends.get((origin, name), []), arrived[name], verdict)
    return verdict


def _compare(name: str, ends: list[str], arrived: int, verdict: Verdict) -> None:
    accepted = "accepted" in ends
    if not ends or (accepted and not arrived):
        verdict.missing.append(name)
    if len(ends) > 1 or arrived > 1:
        verdict.repeated.append(name)
    if arrived and not accepted:
        verdict.unexplained.append(name)


async def _outcomes(log: Log, prefix: str, fed: Input, verdict: Verdict) -> None:
    ends = verdict.ends
    async for chunk in read_all(log, [f"{prefix}.receipts"]):
        for value in chunk.values:
            receipt = wire.decode_receipt(value or b"")
            for send in receipt.sends:
                origin = (send.origin[0], send.origin[1], send.origin[2])
                for name in fed.get(origin, []) if send.to is None else send.to:
                    ends.setdefault((origin, name), []).append(receipt.outcome)
                    verdict.outcomes[receipt.outcome] += 1
                    verdict.by_channel[receipt.tier, receipt.channel or "", receipt.outcome] += 1


def percentile(values: list[float], share: float) -> float:
    """Nearest rank; ``values`` not empty."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
