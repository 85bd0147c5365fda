"""Which topics a configuration asks for, and what they must look like."""

from __future__ import annotations

from engine.config import Config, Duration, LogConfig, TierConfig
from engine.send import MAX_RECORD_BYTES
from engine.topics import topic_specs

CONFIG = Config(
    log=LogConfig(prefix="p", partitions=3, replication=2, retention=Duration(60 * 10**9)),
    tiers={"basic": TierConfig(topics=("big", "p.basic"))},
)


def test_every_topic_once_with_the_tiers_own() -> None:
    names = [spec.name for spec in topic_specs(CONFIG)]
    assert names == [
        "p.system",
        "p.template",
        "big",
        "p.basic",
        "p.receipts",
        "p.dead",
        "p.control",
        "p.content",
        "p.progress",
    ]


def test_what_flows_is_spread_and_kept_for_the_retention() -> None:
    for spec in topic_specs(CONFIG)[:6]:
        assert (spec.partitions, spec.replication, spec.compacted, spec.retention_ms) == (3, 2, False, 60_000)
        assert int(spec.extra["max.message.bytes"]) > MAX_RECORD_BYTES


def test_what_stands_is_compacted_in_one_order() -> None:
    for spec in topic_specs(CONFIG)[6:]:
        assert (spec.partitions, spec.replication, spec.compacted, spec.retention_ms) == (1, 2, True, None)
