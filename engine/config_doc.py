"""The reference of every key, made from the structs: ``python -m engine.config_doc > docs/configuration.md``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args, get_origin

import msgspec

from engine.config import (
    Allowance,
    Budget,
    ChannelConfig,
    Config,
    Duration,
    Frequency,
    HttpConfig,
    LaterConfig,
    Limit,
    LogConfig,
    Overload,
    Pacing,
    Rate,
    Retry,
    Security,
    Size,
    Span,
    TenantConfig,
    TierConfig,
    WorkerGroup,
    default_tiers,
)
from engine.config_load import INTERNAL, annotated_fields, plain_type, valid

HEAD = """# Configuration

One TOML file. `surgetank config check FILE` says everything that is wrong with it, each with its line and what would
be valid; `surgetank config show FILE` prints what it amounts to. `deploy/surgetank.toml` is a commented example.

- Durations are an integer and a unit: `"200ms"`, `"10m"`, `"1d"` (ns, us, ms, s, m, h, d). Sizes likewise: `"1GiB"`
  (B, KiB, MiB, GiB).
- Relative paths start at the directory of the configuration file, wherever the command is run.
- A secret may stand in a file of its own: any key `X` of an account, and the passwords of `[log.security]`, may be
  given as `X_file`, the path of a text file (up to 64 KiB, blanks around it are cut off). Keys given so, and keys whose
  name has secret, passw, token, key, authorization, credential or cookie in it, are shown as `***` and never written to
  the log.
- A file with any unknown key or wrong value is refused as a whole, with exit code 2. Keys that are accepted but have
  no effect in this version are said to be so below, and by a warning.
"""

TABLES: tuple[tuple[str, type[msgspec.Struct], str], ...] = (
    ("Top level", Config, "Before the first table of the file."),
    ("[log]", LogConfig, "Where sends come from and receipts go to."),
    (
        "[log.security]",
        Security,
        "How brokers and clients know each other. Certificates are always verified, and so is the broker's name.",
    ),
    ("[tiers.system], [tiers.template], [tiers.basic]", TierConfig, "Settings of a tier."),
    ("budget of a tier", Budget, 'Written as `budget = { sends = 500_000, bytes = "512MiB" }`.'),
    (
        "allowance of system",
        Allowance,
        'Written as `allowance = { recipients = 1_000, per = "1m", tenants = { oncall = 100_000 } }` in '
        "`[tiers.system]`. A send that is more than is left of its tenant's is moved to the topic of `template` and is "
        "served as any send there ([how](scheduler.md#the-allowance-of-system)). Each process counts for itself.",
    ),
    (
        "[pacing]",
        Pacing,
        "For tiers whose `pacing` is not `asap` ([how](scheduler.md#pacing)). Each worker process paces for itself.",
    ),
    ("floor of pacing", Rate, 'Written as `floor = { calls = 1, per = "1s" }`.'),
    ("[channels.NAME]", ChannelConfig, "A channel; `NAME` is what a send gives as its `channel`."),
    ("retry of a channel", Retry, 'Written as `retry = { attempts = 16, first = "500ms", most = "1h" }`.'),
    (
        "[tenants.NAME]",
        TenantConfig,
        "A tenant with a weight or limits of its own; `NAME` is what a send gives as its `tenant` (if it gives none, "
        "its account). A tenant that is not named here has weight 1 and no limits.",
    ),
    (
        "limits",
        Limit,
        "Of everything (top level), of a tier, of a channel, of an account, of a tenant, and (`tenant_limits`) of each "
        'tenant on a channel; all of them hold. Written as `limits = [{ calls = 100, per = "1s" }, { recipients = '
        '30_000, per = "1d", zone = "Asia/Shanghai" }]`. No '
        "limit admits more than its number in any window of its length, or in any day or month of a calendar, counted "
        "where the platform counts, at arrival; a tenth of each is kept for `system`. What was used outlives the "
        "process (`limits.db` in `state`).",
    ),
    (
        "overload of a channel",
        Overload,
        'Written as `overload = { policy = "refuse", most = "10m" }`. What is refused is kept on `surgetank.dead` and '
        "can be replayed; `system`, and what was moved or replayed, is never refused "
        "([how](scheduler.md#overload)).",
    ),
    (
        "frequency of a channel",
        Frequency,
        'Written as `frequency = [{ messages = 30, per = "1m" }, { messages = 4, per = "30d" }]`, up to eight rules of '
        "different lengths; counted for each account apart. A tenth of each number, rounded down, is kept for "
        "`system`. What was counted outlives the process (`frequency/` in `state`); the number of a rule may be "
        "changed without losing it. Default of `wecom.message`: 30 a minute and 1,000 an hour, beyond which the "
        "platform drops silently ([how it is kept](scheduler.md#frequency)).",
    ),
    (
        "[later]",
        LaterConfig,
        "What waits on the log instead of in memory: see [design.md](design.md#later).",
    ),
    (
        "[[workers]]",
        WorkerGroup,
        "Groups of worker processes, started and kept alive by `surgetank serve` (Kafka only; "
        "[how](operations.md#several-workers)). A limit of a tier is divided by the processes that serve it, every "
        "other limit and the messages of `frequency` by all processes; the first ones have what does not divide. A "
        "number smaller than that of its processes is refused. `surgetank config show FILE --worker NAME` prints what "
        "one of them runs with.",
    ),
    ("[http]", HttpConfig, "Where the engine listens."),
)

ACCOUNTS = """
### [channels.NAME.accounts.ACCOUNT]

A sending account. Its keys are the driver's own, below, besides `limits`. A `webhook` may have none: it then has one
account called `default`. A send to a channel with several accounts must name one.

| driver | key | type | default |
| --- | --- | --- | --- |
"""


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, kind, text in TABLES:
        parts.append(f"\n## {title}\n\n{text}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
        parts.extend(_rows(kind))
        if kind is ChannelConfig:
            parts.append(ACCOUNTS)
            parts.extend(_account_rows())
    return "".join(parts)


def _rows(kind: type[msgspec.Struct]) -> Iterator[str]:
    types = annotated_fields(kind)
    for field in msgspec.structs.fields(kind):
        if field.name not in INTERNAL.get(kind, ()):
            one = types[field.name]
            meaning = one.__metadata__[0].description
            yield f"| `{field.name}` | {_type(one)} | {_default(kind, field)} | {meaning} |\n"


def _account_rows() -> Iterator[str]:
    from engine import drivers  # late: they are built on the structs

    for driver in drivers.known():
        account = import_module(drivers.load(driver).__module__).Account
        for field in msgspec.structs.fields(account):
            text = plain_type(field.type)
            word = {str: "text", int: "integer", bool: "true or false", float: "number"}[text]
            default = str(_default(account, field)).replace("True", "true").replace("False", "false")
            yield f"| `{driver}` | `{field.name}` | {word} | {default} |\n"


def _type(kind: Any) -> str:
    plain = plain_type(kind)
    if get_origin(plain) is dict:
        return "tables"
    if get_origin(plain) is tuple:
        return f"list of {valid(get_args(plain)[0])}"
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return "table"
    if plain in (Duration, Span, Size):
        return valid(kind).replace(' such as "10m",', "").replace(' such as "1GiB",', "").removeprefix("a ")
    return f"integer, {valid(kind)}" if plain is int else valid(kind)


def _default(kind: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    if kind is TierConfig:
        values = {name: getattr(tier, field.name) for name, tier in default_tiers().items()}
        if len(set(map(str, values.values()))) > 1:
            return ", ".join(f"{_value(value)} ({name})" for name, value in values.items())
    default = field.default if field.default is not msgspec.NODEFAULT else None
    return _value(default)


def _value(value: object) -> str:
    if value is None or value == () or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, tuple):
        return "[" + ", ".join(f'`"{one}"`' for one in value) + "]"
    if isinstance(value, Duration | Size | str):
        return f'`"{value}"`'
    return f"`{value}`"


if __name__ == "__main__":
    print(render(), end="")
