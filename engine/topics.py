"""Which topics this engine uses, and what each must look like."""

from __future__ import annotations

from engine.clock import NS_PER_MS
from engine.config import Config, LogConfig, later_topics, tier_policy
from engine.logs import TopicSpec
from engine.send import Tier

# A record may have 2 MiB (engine.decode), which is more than Kafka's default; the rest is for headers and framing.
MAX_MESSAGE_BYTES = 3 << 20
OUTAGE_MS = 7 * 86_400_000  # what waits on a later topic must outlive one of ours
MAX_MAP_BYTES = 8 << 20  # of a map of what is done: a bitset of 64 million offsets


def topic_specs(config: Config) -> list[TopicSpec]:
    """Every topic, each once: the tiers' own and configured ones, later, receipts, dead, control, content, progress."""
    prefix, log = config.log.prefix, config.log
    names = [topic for tier in Tier for topic in tier_policy(config, tier).topics]
    names += [f"{prefix}.receipts", f"{prefix}.dead"]
    retention_ms = log.retention // NS_PER_MS
    flowing = [_flowing(log, name, log.partitions, retention_ms) for name in dict.fromkeys(names)]
    # The embedded log has one reader, for which more partitions are only more places to look.
    partitions = log.partitions if log.kind == "kafka" else 1
    later = [
        _flowing(log, name, partitions, max(retention_ms, delay_ms + OUTAGE_MS))
        for tier in Tier
        for name, delay_ms in later_topics(config, tier).items()
    ]
    # Read whole by every worker before it begins; order over all of it matters, so one partition.
    standing = [
        TopicSpec(f"{prefix}.{name}", partitions=1, replication=log.replication, compacted=True)
        for name in ("control", "content")
    ]
    maps = TopicSpec(
        f"{prefix}.progress",
        partitions=1,
        replication=log.replication,
        compacted=True,
        # A segment that is written to is not compacted, and maps are written anew every second.
        extra={"max.message.bytes": str(MAX_MAP_BYTES + (64 << 10)), "segment.bytes": str(64 << 20)},
    )
    return [*flowing, *later, *standing, maps]


def _flowing(log: LogConfig, name: str, partitions: int, retention_ms: int) -> TopicSpec:
    return TopicSpec(
        name,
        partitions=partitions,
        replication=log.replication,
        retention_ms=retention_ms,
        extra={"max.message.bytes": str(MAX_MESSAGE_BYTES)},
    )
