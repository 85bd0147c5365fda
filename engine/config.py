"""What the operator can set: frozen structs, every default in one place, validated once at load.

Key names are a public contract (docs/configuration.md). Durations and sizes are written as "10m" and "1GiB" and kept
as integer nanoseconds and bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Duration(int):
    """Nanoseconds, written as an integer with a unit: ns, us, ms, s, m, h, d."""


class Size(int):
    """Bytes, written as an integer with a unit: B, KiB, MiB, GiB."""


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one tier may hold in memory at most; at it intake pauses."""

    sends: int = 500_000
    bytes: Size = Size(512 << 20)


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most ``calls`` or ``recipients`` in any window of length ``per``. ``zone``: the platform's calendar."""

    per: Duration
    calls: int | None = None
    recipients: int | None = None
    zone: str | None = None


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a call failed in passing: exponential backoff with full jitter, until ``attempts`` calls were made."""

    attempts: int = 8
    first: Duration = Duration(500_000_000)
    most: Duration = Duration(60_000_000_000)


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where sends come from."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    path: str = "var/log.db"
    bootstrap: str = "127.0.0.1:9092"
    prefix: str = "surgetank"
    first_start: Literal["earliest", "latest"] = "earliest"
    partitions: int = 12
    replication: int = 1
    retention: Duration = Duration(7 * 86_400_000_000_000)


class TierConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tier. The defaults differ per tier: see ``default_tiers``."""

    topics: tuple[str, ...] = ()  # empty: <prefix>.<tier>
    weight: int = 1
    due_after: Duration = Duration(600_000_000_000)
    max_age: Duration = Duration(86_400_000_000_000)
    linger: Duration = Duration(200_000_000)
    pacing: Literal["paced", "even", "asap"] = "paced"
    budget: Budget = Budget()


class ChannelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel: a driver with its address, quotas and accounts."""

    driver: str
    base_url: str
    batch: int | None = None
    repeats: Literal["allowed", "never"] = "allowed"
    in_flight: int = 8
    timeout: Duration = Duration(10_000_000_000)
    limits: tuple[Limit, ...] = ()
    retry: Retry = Retry()
    # The driver's own keys (validated by the driver) and ``limits``; secrets as X or X_file, already read.
    accounts: dict[str, dict[str, Any]] = {}


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the engine listens; an empty address is off."""

    metrics: str = "127.0.0.1:9464"
    admin: str = "127.0.0.1:9465"


class WorkerGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processes that share the work (Kafka only)."""

    tiers: tuple[Literal["system", "template", "basic"], ...] = ("system", "template", "basic")
    processes: int = 1


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    state: str = "var"
    log: LogConfig = LogConfig()
    tiers: dict[str, TierConfig] = {}
    channels: dict[str, ChannelConfig] = {}
    limits: tuple[Limit, ...] = ()
    workers: tuple[WorkerGroup, ...] = ()
    http: HttpConfig = HttpConfig()
    max_ids: int = 5_000_000
    dedupe_window: Duration = Duration(86_400_000_000_000)
