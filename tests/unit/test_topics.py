"""Which topics a configuration asks for, and what they must look like."""

from __future__ import annotations

import msgspec

from engine.config import Config, Duration, LogConfig, TierConfig
from engine.send import MAX_RECORD_BYTES
from engine.topics import topic_specs

TIERS = ("system", "template", "basic")
CONFIG = Config(
    log=LogConfig(prefix="p", partitions=3, replication=2, retention=Duration(60 * 10**9)),
    tiers={"basic": TierConfig(topics=("big", "p.basic"))},
)


def test_every_topic_once_with_the_tiers_own() -> None:
    names = [spec.name for spec in topic_specs(CONFIG)]
    assert names[:6] == ["p.system", "p.template", "big", "p.basic", "p.receipts", "p.dead"]
    assert names[6:18] == [f"p.later.{tier}.{delay}" for tier in TIERS for delay in ("5s", "1m", "10m", "1h")]
    assert names[18:] == ["p.control", "p.content", "p.progress"]


def test_what_flows_is_spread_and_kept_for_the_retention() -> None:
    for spec in topic_specs(CONFIG)[:6]:
        assert (spec.partitions, spec.replication, spec.compacted, spec.retention_ms) == (3, 2, False, 60_000)
        assert int(spec.extra["max.message.bytes"]) > MAX_RECORD_BYTES


def test_what_stands_is_compacted_in_one_order() -> None:
    for spec in topic_specs(CONFIG)[18:]:
        assert (spec.partitions, spec.replication, spec.compacted, spec.retention_ms) == (1, 2, True, None)


def test_what_waits_outlives_a_short_retention() -> None:
    for spec in topic_specs(CONFIG)[6:18]:
        assert (spec.replication, spec.compacted) == (2, False)
        assert (spec.retention_ms or 0) > 7 * 86_400_000
        assert int(spec.extra["max.message.bytes"]) > MAX_RECORD_BYTES


def test_every_worker_may_share_what_comes_back() -> None:
    on_kafka = msgspec.structs.replace(CONFIG, log=msgspec.structs.replace(CONFIG.log, kind="kafka"))
    assert {spec.partitions for spec in topic_specs(on_kafka)[6:18]} == {3}
    assert {spec.partitions for spec in topic_specs(CONFIG)[6:18]} == {1}
