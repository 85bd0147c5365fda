"""What must hold between keys, and what an operator should know: for a Config whose single values are valid.

Yields (path of the key, text). Pure but for the drivers it makes, which check their own keys.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from difflib import get_close_matches
from itertools import pairwise
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from engine.config import MONTH, NS, ChannelConfig, Config, Frequency, LaterConfig, Limit, Security, later_topics
from engine.config_lines import Path
from engine.errors import ConfigError
from engine.send import Tier
from engine.shares import too_small, workers

TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
OTHER_TOPICS = ("receipts", "dead", "control", "content", "progress")
NAMES = "the name must be 1..128 bytes of printable text"
Found = Iterator[tuple[Path, str]]


def check(config: Config) -> Found:
    """Every rule that is broken."""
    yield from _log(config)
    yield from _tiers(config)
    yield from limit_problems(config.limits, ("limits",))
    if not config.channels:
        yield ("channels",), "missing: at least one [channels.NAME] with `driver` and `base_url`"
    for name, channel in config.channels.items():
        yield from _channel(name, channel)
    for name, tenant in config.tenants.items():
        if not 1 <= len(name.encode()) <= 128 or not name.isprintable():
            yield ("tenants", name), NAMES
        yield from limit_problems(tenant.limits, ("tenants", name, "limits"))
    yield from _later(config.later)
    yield from _workers(config)
    for key in ("metrics", "admin"):
        address = getattr(config.http, key)
        if address and not _is_address(address):
            yield ("http", key), 'must be "host:port", or "" for off'
    if config.http.metrics and config.http.metrics == config.http.admin:
        yield ("http", "admin"), "must differ from http.metrics"


def warn(config: Config, given: Container[Path]) -> Found:
    """What is accepted but not in effect yet, or likely not meant; ``given``: the keys that stand in the file."""
    if config.log.kind == "kafka" and config.log.security.protocol == "SASL_PLAINTEXT":
        yield ("log", "security", "protocol"), "nothing is encrypted, and PLAIN shows the password to whoever listens"
    if config.log.kind == "kafka" and config.log.max_bytes is not None:
        yield ("log", "max_bytes"), "means nothing on Kafka: see `retention.bytes` of its topics"
    if sum(group.processes for group in config.workers) > 1:
        yield (
            ("workers",),
            "each process remembers the ids it has seen alone: a send repeated under the same id is found only where "
            "both records come to the same process",
        )
    unserved = [tier for tier in config.tiers if not any(tier in group.tiers for group in config.workers)]
    if config.workers and unserved:
        yield ("workers",), f"no group serves {', '.join(unserved)}"
    if config.http.admin and ("http", "admin") in given:
        yield ("http", "admin"), "not in effect yet: nothing listens there"


def _later(later: LaterConfig) -> Found:
    delays = later.delays
    if not delays or any(first >= second for first, second in pairwise(delays)):
        yield ("later", "delays"), 'must be at least one delay, ascending, such as ["5s", "1m", "10m", "1h"]'
        return
    for key in ("horizon", "retries"):
        if getattr(later, key) < delays[0]:
            yield ("later", key), f"must be at least the shortest of later.delays, {delays[0]}"


def _log(config: Config) -> Found:
    if not TOPIC_NAME.fullmatch(config.log.prefix):
        yield ("log", "prefix"), "must be 1..200 of a-z A-Z 0-9 . _ -"
    brokers = config.log.bootstrap.split(",")
    if config.log.kind == "kafka" and not all(_is_address(broker.strip()) for broker in brokers):
        yield ("log", "bootstrap"), 'must be "host:port", several with commas'
    if config.log.kind == "kafka":
        yield from _security(config.log.security)


def _security(security: Security) -> Found:
    from engine.logs.kafka_security import client_keys  # late: an embedded log needs no broker client

    path = ("log", "security")
    sasl, tls = security.protocol.startswith("SASL_"), security.protocol.endswith("SSL")
    for name in ("user", "password"):
        given = getattr(security, name) is not None
        if sasl and not given:
            yield (*path, name), f'missing: protocol "{security.protocol}" needs it'
        elif given and not sasl:
            yield (*path, name), f'means nothing with protocol "{security.protocol}"'
    for name in ("ca_file", "cert_file", "key_file", "key_password"):
        if getattr(security, name) is not None and not tls:
            yield (*path, name), f'means nothing with protocol "{security.protocol}"'
    for name in ("key_file", "key_password"):
        if getattr(security, name) is not None and security.cert_file is None:
            yield (*path, name), "means nothing without cert_file"
    try:
        client_keys(security)
    except ConfigError as error:
        yield error.key, str(error)


def _tiers(config: Config) -> Found:
    own = [f"{config.log.prefix}.{name}" for name in OTHER_TOPICS]
    own += [topic for tier in Tier for topic in later_topics(config, tier)]
    taken = dict.fromkeys(own, "the engine itself")
    for tier, settings in config.tiers.items():
        for index, topic in enumerate(settings.topics):
            path = ("tiers", tier, "topics", index)
            if not TOPIC_NAME.fullmatch(topic) or topic in (".", ".."):
                yield path, "must be a topic name: 1..200 of a-z A-Z 0-9 . _ -"
            elif topic in taken:
                yield path, f'"{topic}" is already used by {taken[topic]}'
            taken[topic] = f"tier {tier}"
        if tier == "system" and settings.pacing != "asap":
            yield ("tiers", tier, "pacing"), 'must be "asap": nothing holds urgent sends back'
        yield from limit_problems(settings.limits, ("tiers", tier, "limits"))
        if settings.allowance is not None and tier != "system":
            yield ("tiers", tier, "allowance"), "only `system` has one"


def limit_problems(limits: tuple[Limit, ...], path: Path) -> Found:
    """What is wrong with limits whose single values are valid."""
    for index, limit in enumerate(limits):
        if (limit.calls is None) == (limit.recipients is None):
            yield (*path, index), "must have exactly one of `calls` and `recipients`"
        if limit.zone is not None and limit.per not in (NS["d"], MONTH):
            yield (*path, index, "per"), 'with `zone` it must be "1d" or "1mo"'
        if limit.zone is None and limit.per == MONTH:
            yield (*path, index, "zone"), "missing: a month is one of a calendar"
        if limit.zone is not None and limit.zone not in available_timezones():
            close = get_close_matches(limit.zone, available_timezones(), n=1)
            hint = f'did you mean "{close[0]}"?' if close else 'for example "Asia/Shanghai"'
            yield (*path, index, "zone"), f"no such time zone; {hint}"


def _channel(name: str, channel: ChannelConfig) -> Found:
    path = ("channels", name)
    problems = [*_channel_itself(name, channel, path)]
    yield from problems
    if not problems:
        yield from _driver(name, channel, path)


def _channel_itself(name: str, channel: ChannelConfig, path: Path) -> Found:
    for at, given in [(path, name), *(((*path, "accounts", a), a) for a in channel.accounts)]:
        if not 1 <= len(given.encode()) <= 128 or not given.isprintable():
            yield at, NAMES
    if not _is_url(channel.base_url):
        yield (*path, "base_url"), 'must be an address such as "https://gateway.example/send"'
    if channel.retry.most < channel.retry.first:
        yield (*path, "retry", "most"), f"must be at least retry.first ({channel.retry.first})"
    yield from limit_problems(channel.limits, (*path, "limits"))
    yield from limit_problems(channel.tenant_limits, (*path, "tenant_limits"))
    for index, limit in enumerate(channel.tenant_limits):
        if limit.zone is not None:
            yield (*path, "tenant_limits", index, "zone"), "means nothing here: these are counted in memory alone"
        if limit.per > NS["d"]:
            yield (*path, "tenant_limits", index, "per"), "must be at most 1d: these are counted in memory alone"
    yield from _frequency(channel.frequency or (), (*path, "frequency"))
    for account, limits in channel.account_limits.items():
        yield from limit_problems(limits, (*path, "accounts", account, "limits"))


def _frequency(rules: tuple[Frequency, ...], path: Path) -> Found:
    if len(rules) > 8:
        yield path, "must have at most 8 rules"
    lengths = [rule.per for rule in rules]
    for index, per in enumerate(lengths):
        if per in lengths[:index]:
            yield (*path, index, "per"), f"{per} has a rule already: each length may have one"


def _driver(name: str, channel: ChannelConfig, path: Path) -> Found:
    from engine import drivers  # late: reading a file that names no driver needs none of them

    try:
        drivers.load(channel.driver, name)(name, channel)
    except ConfigError as error:
        yield error.key or path, str(error)


def _workers(config: Config) -> Found:
    for index, group in enumerate(config.workers):
        if not group.tiers or len(set(group.tiers)) != len(group.tiers):
            yield ("workers", index, "tiers"), "must name at least one tier, each once"
    if config.log.kind == "sqlite" and sum(group.processes for group in config.workers) > 1:
        yield ("workers",), 'several processes need log.kind = "kafka"'
    names = [worker.name for worker in workers(config)]
    for index, group in enumerate(config.workers):
        if any(set(group.tiers) == set(earlier.tiers) for earlier in config.workers[:index]):
            yield ("workers", index, "tiers"), "another group serves the same tiers: set its `processes` instead"
    if len(set(names)) == len(names):
        for path, _, processes in too_small(config):
            yield path, f"is shared by {processes} processes ([[workers]]), and some of them would have nothing of it"


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):([0-9]{1,5})", text)
    return match is not None and 0 <= int(match[1]) <= 65_535


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text
