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
    """Every topic, each once: the tiers' own and configured ones, receipts, dead, later, control, content, progress;
    and attempts, where a channel forbids repeats."""
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
    attempts = TopicSpec(
        f"{prefix}.attempts",
        partitions=1,
        replication=log.replication,
        compacted=True,
        # Read whole when a partition changes hands: compacted soon, so that there is little of it.
        extra={"max.message.bytes": str(MAX_MESSAGE_BYTES), "segment.bytes": str(16 << 20)},
    )
    wanted = any(channel.repeats == "never" for channel in config.channels.values())
    return [*flowing, *later, *standing, maps, *([attempts] if wanted else [])]


def _flowing(log: LogConfig, name: str, partitions: int, retention_ms: int) -> TopicSpec:
    return TopicSpec(
        name,
        partitions=partitions,
        replication=log.replication,
        retention_ms=retention_ms,
        extra={"max.message.bytes": str(MAX_MESSAGE_BYTES)},
    )
