"""What the operator can set: frozen structs, every default in one place, validated once at load.

Key names are a public contract; docs/configuration.md is made from this file (``engine.config_doc``). Durations and
sizes are written as "10m" and "1GiB" and kept as integer nanoseconds and bytes. ``load`` reads a file into
a ``Config``; tests and tools may make one directly.
"""

from __future__ import annotations

import re
from os import PathLike
from typing import Annotated, Any, Literal

import msgspec

from engine.config_secrets import masked, masked_url
from engine.send import Tier

NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9}
MONTH = 2_629_746 * NS["s"]  # the mean one; a calendar's has 28..31 days
BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Duration(int):
    """Nanoseconds, written as an integer with a unit: ns, us, ms, s, m, h, d."""

    @staticmethod
    def parse(text: str) -> Duration:
        """ "10m" -> 600,000,000,000. Raises ValueError."""
        return Duration(_parse(text, NS))

    def __str__(self) -> str:
        return _shown(self, NS)


class Span(Duration):
    """A Duration, or "1mo", a month."""

    @staticmethod
    def parse(text: str) -> Span:
        """ "1mo" -> MONTH. Raises ValueError."""
        return Span(MONTH if text == "1mo" else _parse(text, NS))

    def __str__(self) -> str:
        return "1mo" if self == MONTH else super().__str__()


class Size(int):
    """Bytes, written as an integer with a unit: B, KiB, MiB, GiB."""

    @staticmethod
    def parse(text: str) -> Size:
        """ "1GiB" -> 1,073,741,824. Raises ValueError."""
        return Size(_parse(text, BYTES))

    def __str__(self) -> str:
        return _shown(self, BYTES)


def _parse(text: str, units: dict[str, int]) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([A-Za-z]+)", text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return int(match[1]) * units[match[2]]


def _shown(value: int, units: dict[str, int]) -> str:
    """In the largest unit that divides it; zero in seconds or bytes."""
    if value == 0:
        return "0s" if units is NS else "0B"
    unit = max((unit for unit, factor in units.items() if value % factor == 0), key=units.__getitem__)
    return f"{int(value) // units[unit]}{unit}"


def about(meaning: str, low: int | None = None, high: int | None = None) -> msgspec.Meta:
    """A key's meaning, for the documentation, and the range the loader holds it to (both ends valid)."""
    return msgspec.Meta(description=meaning, extra={"low": low, "high": high})


YEAR = 365 * NS["d"]
TierName = Literal["system", "template", "basic"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one tier may hold in memory at most; at it intake pauses."""

    sends: Annotated[int, about("Sends held at most.", 10, 100_000_000)] = 500_000
    bytes: Annotated[Size, about("Bytes of records held at most.", 4 << 20, 1 << 40)] = Size(512 << 20)
    uncommitted: Annotated[
        int,
        about(
            "Recipients that may have ended since the last commit: at half of it the next commit is made at once, at "
            "it no more calls begin until one gets through. A crash repeats at most these and those in flight.",
            1,
            100_000_000,
        ),
    ] = 100_000


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most ``calls`` or ``recipients`` in any window of length ``per``; with ``zone`` in any day or month there."""

    per: Annotated[Span, about("Length of the window; with `zone` `1d` or `1mo`.", NS["ms"], YEAR)]
    calls: Annotated[int | None, about("Calls in any window; this or `recipients`.", 1, 10**9)] = None
    recipients: Annotated[int | None, about("Recipients in any window; this or `calls`.", 1, 10**12)] = None
    zone: Annotated[
        str | None,
        about(
            "Time zone whose calendar days or months the platform counts in, e.g. `Asia/Shanghai`. Not given: any "
            "window of that length, which is stricter."
        ),
    ] = None


class Frequency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most ``messages`` from one account to one recipient in any window of length ``per``."""

    messages: Annotated[int, about("Messages in any window.", 1, 60_000)]
    per: Annotated[Duration, about("Length of the window.", NS["s"], YEAR)]


RETRY_BUDGET = (
    "Retries that a hundred first calls earn, counted in recipients, in each tier; one that gets an answer earns two. "
    "A retry that is not earned waits on a `later` topic, and spends no attempt."
)


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a call failed in passing: exponential backoff with full jitter, until ``attempts`` calls were made."""

    attempts: Annotated[int, about("Calls made for a recipient at most; then it is dead.", 1, 200)] = 16
    first: Annotated[Duration, about("Longest wait before the second call; doubles each time.", NS["ms"], NS["d"])] = (
        Duration(500_000_000)
    )
    most: Annotated[Duration, about("Longest wait before any call.", NS["ms"], NS["d"])] = Duration(3_600_000_000_000)
    budget_percent: Annotated[int, about(RETRY_BUDGET, 0, 1_000)] = 20
    budget_per_s: Annotated[int, about("Retries a second earned besides, in each tier.", 1, 1_000_000)] = 10


class Security(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How brokers and clients know each other (Kafka). Over TLS a broker's name must be the one it was called by."""

    protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        about("The listener's kind: `SSL` is TLS, `SASL_` asks for user and password."),
    ] = "PLAINTEXT"
    mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], about("How the password is proven (SASL).")
    ] = "SCRAM-SHA-512"
    user: Annotated[str | None, about("Who we are (SASL).")] = None
    password: Annotated[str | None, about("Its password; also as `password_file`.")] = None
    ca_file: Annotated[
        str | None, about("Certificates that vouch for the brokers, PEM (TLS). Not given: those of the system.")
    ] = None
    cert_file: Annotated[str | None, about("Our own certificate, PEM, where brokers ask for one (TLS).")] = None
    key_file: Annotated[str | None, about("The key of `cert_file`, PEM. Not given: it stands in `cert_file` too.")] = (
        None
    )
    key_password: Annotated[
        str | None, about("What the key is encrypted with, if it is; also as `key_password_file`.")
    ] = None


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where sends come from and receipts go to."""

    kind: Annotated[
        Literal["sqlite", "kafka"], about("`sqlite`: the embedded log, one file; `kafka`: a Kafka cluster.")
    ] = "sqlite"
    path: Annotated[str, about("The embedded log's file. Not given: `log.db` in the directory `state`.")] = "var/log.db"
    bootstrap: Annotated[str, about("Kafka brokers to start from: `host:port`, several with commas.")] = (
        "127.0.0.1:9092"
    )
    prefix: Annotated[str, about("What topic and group names begin with.")] = "surgetank"
    first_start: Annotated[Literal["earliest", "latest"], about("Where a group with no committed offset begins.")] = (
        "earliest"
    )
    partitions: Annotated[int, about("Partitions of the tier topics, when they are created.", 1, 10_000)] = 12
    replication: Annotated[int, about("Replicas of every topic, when it is created (Kafka).", 1, 10)] = 1
    retention: Annotated[
        Duration, about("How long records are kept; set on topics when they are created.", NS["m"], 100 * YEAR)
    ] = Duration(7 * 86_400_000_000_000)
    max_bytes: Annotated[
        Size | None,
        about(
            "Size the embedded log may have: above it records every group has read go, oldest first, whatever "
            "`retention` says; what was not read yet stays. Not given: no bound.",
            1 << 20,
            1 << 50,
        ),
    ] = None
    metadata_limit: Annotated[
        int,
        about(
            "Characters a commit may carry beside its position: the brokers' `offset.metadata.max.bytes`.",
            1024,
            1 << 20,
        ),
    ] = 4096
    session_timeout: Annotated[
        Duration,
        about(
            "How long a worker may be silent before its partitions go to others (Kafka); brokers take 6 s to 30 min "
            "unless told otherwise.",
            6 * NS["s"],
            30 * NS["m"],
        ),
    ] = Duration(30_000_000_000)
    security: Annotated[Security, about("TLS and SASL (Kafka): see `[log.security]`.")] = Security()
    # Made by the supervisor; not a key of the file.
    member: str | None = None  # by this name a process that comes back within 30 s gets its partitions back


class Allowance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of `system` each tenant has: a bucket of ``recipients`` that fills up evenly in ``per``."""

    recipients: Annotated[int, about("Recipients at once, and every `per` in the long run.", 1, 1_000_000_000)]
    per: Annotated[Duration, about("How long the bucket takes to fill.", NS["s"], NS["d"])]
    tenants: Annotated[
        dict[str, Annotated[int, about("Recipients of this tenant.", 1, 1_000_000_000)]],
        about("Other numbers, by the tenant's name."),
    ] = {}


class TierConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tier. The defaults differ per tier: see ``default_tiers``."""

    topics: Annotated[tuple[str, ...], about("Topics it reads. Not given: `<log.prefix>.<tier>`.")] = ()
    weight: Annotated[
        int, about("Share of `template` and `basic` when both wait; `system` always goes first.", 1, 1_000)
    ] = 1
    due_after: Annotated[Duration, about("`due` of a send that names none: this long after its start.", 0, YEAR)] = (
        Duration(600_000_000_000)
    )
    max_age: Annotated[Duration, about("A send older than this, from its start, expires.", NS["s"], YEAR)] = Duration(
        86_400_000_000_000
    )
    linger: Annotated[
        Duration,
        about(
            "How long a batch that is not full waits for more recipients; until it is due at most, and what is paced "
            "for half of that time.",
            0,
            NS["h"],
        ),
    ] = Duration(200_000_000)
    pacing: Annotated[
        Literal["paced", "even", "asap"],
        about(
            "`paced`: at the lowest peak rate that meets every due time; `even`: each call's share from its arrival to "
            "its due time; `asap`: as soon as limits allow, which is all that `system` may have. Of `template` only "
            "what names a `due` later than `due_after` from its start is paced; the rest leaves as limits allow."
        ),
    ] = "paced"
    budget: Annotated[Budget, about("What the tier may hold in memory; at it intake pauses.")] = Budget()
    limits: Annotated[tuple[Limit, ...], about("Limits of the tier, over all channels.")] = ()
    allowance: Annotated[
        Allowance | None,
        about(
            "`system` only: what each tenant may send at this tier; what is more is served as `template`. Not given: "
            "no bound."
        ),
    ] = None


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many calls every ``per``, evenly."""

    calls: Annotated[int, about("Calls every `per`.", 1, 1_000_000)]
    per: Annotated[Duration, about("How long it takes them to leave.", NS["s"], NS["d"])]


class Pacing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tiers are paced that are."""

    tau: Annotated[
        Duration,
        about(
            "How slowly a past peak is forgotten. Meanwhile calls leave up to twice as fast as needed, and no "
            "faster than at that peak, so that what comes next finds less left to do; `0s`: always at the rate needed, "
            "which is smoothest now and makes later peaks higher.",
            0,
            30 * NS["d"],
        ),
    ] = Duration(21_600_000_000_000)
    floor: Annotated[
        Rate,
        about("While it has something to send, a paced tier is never held below this. Not given: one call a second."),
    ] = Rate(1, Duration(1_000_000_000))


class Overload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when a channel cannot keep up."""

    policy: Annotated[
        Literal["queue", "refuse"],
        about(
            "`queue`: what comes waits, however late it will be; `refuse`: sends of `template` and `basic` end `dead` "
            "with the reason `overloaded`, by campaign, `basic` first."
        ),
    ] = "queue"
    most: Annotated[
        Duration, about("`refuse`: how long after its due time a send may be foreseen to leave.", NS["s"], NS["d"])
    ] = Duration(600_000_000_000)


class ChannelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel: a driver with its address, quotas and accounts."""

    driver: Annotated[str, about("The platform's driver, e.g. `webhook`, `wecom.message`.")]
    base_url: Annotated[str, about("The platform's address; for a webhook the whole address.")]
    batch: Annotated[int | None, about("Recipients a call at most. Not given: the platform's own cap.", 1, 10_000)] = (
        None
    )
    repeats: Annotated[
        Literal["allowed", "never"],
        about(
            "`never`: a call whose effect is unknown, or during which the worker died, is made again only exactly, "
            "under its name, as long as the platform knows names (`webhook` for a day, `wechat.template` for 10 "
            "minutes); else its recipients end `unknown`. Each call is written to the log first."
        ),
    ] = "allowed"
    in_flight: Annotated[int, about("Calls at once; some of them are kept for `system`.", 1, 1_000)] = 8
    timeout: Annotated[Duration, about("How long a call may take.", NS["ms"], NS["h"])] = Duration(10_000_000_000)
    limits: Annotated[tuple[Limit, ...], about("Quotas of the channel, over all its accounts.")] = ()
    tenant_limits: Annotated[
        tuple[Limit, ...],
        about(
            "Limits that every tenant has on this channel, each for itself, beside those of `[tenants.NAME]`; without "
            "`zone`, up to `1d`. Counted in memory: a restart forgets what was used."
        ),
    ] = ()
    frequency: Annotated[
        tuple[Frequency, ...] | None,
        about(
            "How often one recipient may get a message; whoever has had theirs waits. Not given: as often as the "
            "platform publishes; `[]`: no rule."
        ),
    ] = None
    frequency_memory: Annotated[
        Size,
        about(
            "Memory each `frequency` rule may take, and disk it takes from the start: about 73 bytes a recipient of "
            "its window; where it is too small recipients count together and wait too long. A file that is there keeps "
            "its size.",
            1 << 20,
            1 << 40,
        ),
    ] = Size(64 << 20)
    overload: Annotated[Overload, about("What happens when the channel cannot keep up.")] = Overload()
    retry: Annotated[Retry, about("What happens when a call failed in passing.")] = Retry()
    # The driver's own keys, for the driver to validate; X_file is already read into X, ``limits`` taken out.
    accounts: Annotated[
        dict[str, dict[str, Any]],
        about("Sending accounts: the driver's own keys, each also as `X_file` = a file that holds it, and `limits`."),
    ] = {}
    # Made by the loader; not keys of the file.
    account_limits: dict[str, tuple[Limit, ...]] = {}
    secret_keys: frozenset[str] = frozenset()  # account keys that came from a file

    def masked_accounts(self) -> dict[str, dict[str, Any]]:
        """The accounts with every secret as "***", for people to see."""
        return {name: masked(keys, self.secret_keys) for name, keys in self.accounts.items()}

    def __repr__(self) -> str:
        """Without secrets: what is logged or stands in a traceback must not hold any."""
        return f"ChannelConfig(driver={self.driver!r}, base_url={masked_url(self.base_url)!r}, ...)"


class TenantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant that is not like the others."""

    weight: Annotated[
        int, about("Its share of an account beside the other tenants that wait there, who have 1 each.", 1, 1_000)
    ] = 1
    limits: Annotated[tuple[Limit, ...], about("Limits of the tenant, over all channels and tiers.")] = ()


class LaterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What waits on the log instead of in memory."""

    horizon: Annotated[
        Duration,
        about(
            "What may not leave for longer than this (a `not_before`, a rest, a pause, a spent limit) waits on a "
            "`later` topic, not in memory; of a batch that a limit would keep longer go those that fit by then.",
            NS["ms"],
            7 * NS["d"],
        ),
    ] = Duration(15 * 60_000_000_000)
    retries: Annotated[
        Duration, about("The same of retries, which come in crowds when a platform is out.", NS["ms"], 7 * NS["d"])
    ] = Duration(10_000_000_000)
    delays: Annotated[
        tuple[Annotated[Duration, about("How long a record stands there.", NS["ms"], NS["d"])], ...],
        about(
            "The `later` topics of each tier, by how long each holds a record, ascending: `<log.prefix>.later.<tier>."
            "<delay>`. What waits longer goes through several. What still stands on a topic that is no longer named "
            "here is not read."
        ),
    ] = (Duration(5 * NS["s"]), Duration(NS["m"]), Duration(10 * NS["m"]), Duration(NS["h"]))


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the engine listens; an empty address is off."""

    metrics: Annotated[str, about('Metrics and probes: `host:port`; "" is off.')] = "127.0.0.1:9464"
    admin: Annotated[str, about('Admin API: `host:port`; "" is off. Not in effect yet: nothing listens there.')] = (
        "127.0.0.1:9465"
    )


class WorkerGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processes that share the work (Kafka only)."""

    tiers: Annotated[tuple[TierName, ...], about("Tiers these processes serve.")] = ("system", "template", "basic")
    processes: Annotated[int, about("How many. Each has its share of every limit, see below.", 1, 256)] = 1


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    state: Annotated[str, about("Directory of what outlives the process: ids seen, and the embedded log.")] = "var"
    log: Annotated[LogConfig, about("Where sends come from and receipts go to.")] = LogConfig()
    tiers: Annotated[dict[str, TierConfig], about("The three tiers: `system`, `template`, `basic`.")] = {}
    pacing: Annotated[Pacing, about("How tiers with `pacing` are paced.")] = Pacing()
    channels: Annotated[dict[str, ChannelConfig], about("The channels, by name; at least one.")] = {}
    limits: Annotated[tuple[Limit, ...], about("Limits over all channels together.")] = ()
    tenants: Annotated[dict[str, TenantConfig], about("Tenants with a weight or limits of their own, by name.")] = {}
    workers: Annotated[
        tuple[WorkerGroup, ...], about("Groups of processes (Kafka only). Not given: one process with all tiers.")
    ] = ()
    later: Annotated[LaterConfig, about("What waits on the log instead of in memory.")] = LaterConfig()
    http: Annotated[HttpConfig, about("Where the engine listens.")] = HttpConfig()
    max_ids: Annotated[
        int, about("Ids remembered at most, to find duplicates; about 120 bytes each.", 1, 1_000_000_000)
    ] = 5_000_000
    dedupe_window: Annotated[Duration, about("How long an id is remembered.", NS["s"], YEAR)] = Duration(
        86_400_000_000_000
    )
    # Made by the supervisor; not a key of the file.
    worker: str | None = None  # which of [[workers]] this is; None: alone


def tier_policy(config: Config, tier: Tier) -> TierConfig:
    """The tier's settings: its own defaults where nothing was set, its topics named."""
    policy = config.tiers.get(tier.label) or default_tiers()[tier.label]
    return msgspec.structs.replace(policy, topics=policy.topics or (f"{config.log.prefix}.{tier.label}",))


def later_topics(config: Config, tier: Tier) -> dict[str, int]:
    """The tier's later topics, and for how many ms each holds a record; the shortest first."""
    name = f"{config.log.prefix}.later.{tier.label}"
    return {f"{name}.{delay}": max(delay // NS["ms"], 1) for delay in config.later.delays}


def account_limits(config: Config, channel: str, account: str) -> tuple[Limit, ...]:
    """The account's own limits (the channel's hold besides)."""
    return config.channels[channel].account_limits.get(account, ())


def default_tiers() -> dict[str, TierConfig]:
    """Each tier as it is when the file says nothing of it."""
    return {
        "system": TierConfig(due_after=Duration(0), linger=Duration(0), pacing="asap"),
        "template": TierConfig(due_after=Duration(5 * NS["s"]), linger=Duration(50 * NS["ms"])),
        "basic": TierConfig(),
    }


def load(path: str | PathLike[str]) -> Config:
    """The file as a Config, every key set, paths absolute. Raises ConfigError naming every problem in it."""
    from engine.config_load import load_with_warnings  # it builds on the structs above

    return load_with_warnings(path).config
