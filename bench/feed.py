"""What the demo feeds: 200,000 recipients in three tiers, in bursts, with the faults of real life among them.

Every recipient's id is its own, so that ledgers can be joined on it. The same seed gives the same sends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from engine.logs import Record

BURSTS = 8
SHARES = {"system": 0.01, "template": 0.04, "basic": 0.95}
MALFORMED, DUPLICATES = 0.005, 0.01  # of the records
GARBAGE = [b"", b"\xc1", b"{", b'{"id": 7}', b"\x81\xa2id\xa1x", b"[1,2]", msgpack.packb({"id": "x", "channel": "c"})]
TEMPLATE = {
    "channel": "wechat-notice",
    "content": {"template_id": "tpl-order", "url": "https://shop.example/orders"},
    "fields": {"order": {"required": True, "max_chars": 32}, "state": {"required": True, "max_chars": 20}},
}


class Fed(NamedTuple):
    """Records to append, in bursts."""

    bursts: list[list[Record]]
    recipients: int  # a malformed record counts as one


def make(prefix: str, recipients: int, seed: int = 1) -> Fed:
    """About ``recipients`` recipients over all tiers."""
    chance = random.Random(seed)
    records: list[Record] = []
    total = 0
    for tier, share in SHARES.items():
        for send in _sends(tier, int(recipients * share), chance):
            value: bytes = msgpack.packb(send)
            records.append(Record(f"{prefix}.{tier}", value, key=send["tenant"].encode()))
            total += len(send["to"])
            if chance.random() < DUPLICATES:
                again = send | {"to": [f"again-{who}" for who in send["to"]]}
                records.append(Record(f"{prefix}.{tier}", msgpack.packb(again), key=send["tenant"].encode()))
                total += len(again["to"])
    for number in range(int(len(records) * MALFORMED)):
        tier = chance.choice(list(SHARES))
        records.append(Record(f"{prefix}.{tier}", GARBAGE[number % len(GARBAGE)]))
        total += 1
    return Fed(_in_bursts(records, chance), total)


def _in_bursts(records: list[Record], chance: random.Random) -> list[list[Record]]:
    """Spread at random over the bursts, but in order: a repeated id must come after the first."""
    bursts: list[list[Record]] = [[] for _ in range(BURSTS)]
    placed = sorted(chance.randrange(BURSTS) for _ in records)
    by_tier: dict[str, list[Record]] = {}
    for record in records:
        by_tier.setdefault(record.topic, []).append(record)
    order = [record for tier in zip_evenly(list(by_tier.values())) for record in tier]
    for burst, record in zip(placed, order, strict=True):
        bursts[burst].append(record)
    return bursts


def zip_evenly(columns: list[list[Record]], parts: int = 64) -> Iterator[list[Record]]:
    """Cut each column into ``parts`` runs and deal them out in turn, each column's order kept."""
    for part in range(parts):
        for column in columns:
            yield column[len(column) * part // parts : len(column) * (part + 1) // parts]


def _sends(tier: str, recipients: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    number = 0
    while recipients > 0:
        size = min(recipients, _size(tier, chance))
        recipients -= size
        yield _send(tier, number, size, chance)
        number += 1


def _size(tier: str, chance: random.Random) -> int:
    if tier != "basic" or chance.random() < 0.992:
        return 1
    return chance.choice([20, 100, 150, 300, 1000, 2500])


def _send(tier: str, number: int, size: int, chance: random.Random) -> dict[str, Any]:
    tenant = f"tenant-{chance.randrange(6)}"
    gone = "invalid-" if chance.random() < 0.002 else ""
    to = [f"{gone}{tier}-{number}-{place}" for place in range(size)]
    send: dict[str, Any] = {"id": f"{tier}-{number}", "to": to, "tenant": tenant, "meta": {"n": number}}
    if tier == "system":
        content = {"type": "text", "text": "Your verification is due: please sign in again today."}
        return send | {"channel": "wecom-notice", "account": "corp-a", "campaign": "security", "content": content}
    if tier == "template":
        values = {"template": "order-state", "data": {"order": f"A{number}", "state": "shipped"}}
        return send | {"channel": "wechat-notice", "campaign": "orders", "content": values}
    campaign = f"autumn-{chance.randrange(5)}"
    send |= {"campaign": campaign, "content": {"type": "text", "text": f"{campaign}: half price, this week only"}}
    if chance.random() < 0.5:
        return send | {"channel": "wecom-notice", "account": chance.choice(["corp-a", "corp-b"])}
    return send | {"channel": "partner"}
