"""Which topics this engine uses, and what each must look like."""

from __future__ import annotations

from engine.clock import NS_PER_MS
from engine.config import Config, tier_policy
from engine.logs import TopicSpec
from engine.send import Tier

# A record may have 2 MiB (engine.decode), which is more than Kafka's default; the rest is for headers and framing.
MAX_MESSAGE_BYTES = 3 << 20


def topic_specs(config: Config) -> list[TopicSpec]:
    """Every topic, each once: the tiers' own and configured ones, receipts, dead, control, content."""
    prefix, log = config.log.prefix, config.log
    names = [topic for tier in Tier for topic in tier_policy(config, tier).topics]
    names += [f"{prefix}.receipts", f"{prefix}.dead"]
    flowing = [
        TopicSpec(
            name,
            partitions=log.partitions,
            replication=log.replication,
            retention_ms=log.retention // NS_PER_MS,
            extra={"max.message.bytes": str(MAX_MESSAGE_BYTES)},
        )
        for name in dict.fromkeys(names)
    ]
    # Read whole by every worker before it begins; order over all of it matters, so one partition.
    standing = [
        TopicSpec(f"{prefix}.{name}", partitions=1, replication=log.replication, compacted=True)
        for name in ("control", "content")
    ]
    return flowing + standing
