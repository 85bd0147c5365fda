"""The worker processes of [[workers]], and what of the configuration is each one's (pure).

In: a Config. Out: the workers' names and tiers; the Config one of them runs with, its share in place of every limit.
Invariant: the shares of a limit sum to its number, whoever lives. They are counted by the processes configured: those
of the tier for a tier's limit, all of them for every other.
Never: gives a process a share of nothing; such a configuration is refused (``too_small``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.config import ChannelConfig, Config, Frequency, Limit, tier_policy
from engine.send import Tier


class Worker(NamedTuple):
    """One process of [[workers]]."""

    name: str  # its tiers and a number from 1, e.g. "system-1"; "all-1" serves every tier
    tiers: tuple[Tier, ...]


class Shared(NamedTuple):
    """A limit, where it stands in the configuration, and how many processes share it."""

    path: tuple[str | int, ...]
    limit: Limit | Frequency
    processes: int


class Held(NamedTuple):
    """A limit as one process keeps it."""

    key: str
    limit: Limit


def workers(config: Config) -> list[Worker]:
    """Every process of [[workers]], in the order in which shares are given."""
    found = []
    for group in config.workers:
        tiers = tuple(tier for tier in Tier if tier.label in group.tiers)
        label = "all" if len(tiers) == len(Tier) else "-".join(tier.label for tier in tiers)
        found += [Worker(f"{label}-{number}", tiers) for number in range(1, group.processes + 1)]
    return found


def share(number: int, processes: int, index: int) -> int:
    """What the process ``index`` (from 0) has of ``number``: the first ones have one more where it does not divide."""
    return number // processes + (index < number % processes)


def dealt(uses: int, shares: Sequence[int]) -> list[int]:
    """How many of the first ``uses`` of a limit count as whose, when what was used is dealt to new sharers.

    Grows with ``uses`` for each of them, and each has its whole share of any sum(shares) uses in a row. So of any
    window's uses nobody is dealt more than its share, unless they exceed the limit, and all together have left
    exactly what the limit has.
    """
    parts, left, of = [], uses, sum(shares)
    for one in shares:
        parts.append(left * one // of)
        left, of = left - parts[-1], of - one
    return parts


def key_of(scope: Sequence[str], limit: Limit) -> str:
    """What a limit's use is kept under: its scope and window. Not its number, so another one keeps what was used."""
    unit = 0 if limit.calls is not None else 1
    return json.dumps([*scope, unit, str(limit.per), limit.zone])


def number_of(limit: Limit | Frequency) -> int:
    """How many calls, recipients or messages."""
    if isinstance(limit, Frequency):
        return limit.messages
    return limit.calls if limit.calls is not None else limit.recipients or 0


def shared_limits(config: Config) -> Iterator[Shared]:
    """Every limit of a configuration with [[workers]]."""
    everybody = workers(config)
    for index, limit in enumerate(config.limits):
        yield Shared(("limits", index), limit, len(everybody))
    for name, policy in config.tiers.items():
        serving = sum(name in (tier.label for tier in worker.tiers) for worker in everybody)
        for index, limit in enumerate(policy.limits):
            yield Shared(("tiers", name, "limits", index), limit, serving)
    for name, channel in config.channels.items():
        for index, limit in enumerate(channel.limits):
            yield Shared(("channels", name, "limits", index), limit, len(everybody))
        for index, limit in enumerate(channel.tenant_limits):
            yield Shared(("channels", name, "tenant_limits", index), limit, len(everybody))
        for index, rule in enumerate(frequency_of(channel)):
            yield Shared(("channels", name, "frequency", index), rule, len(everybody))
        for account, limits in channel.account_limits.items():
            for index, limit in enumerate(limits):
                yield Shared(("channels", name, "accounts", account, "limits", index), limit, len(everybody))
    for name, tenant in config.tenants.items():
        for index, limit in enumerate(tenant.limits):
            yield Shared(("tenants", name, "limits", index), limit, len(everybody))


def frequency_of(channel: ChannelConfig) -> tuple[Frequency, ...]:
    """The channel's own rules, or those its platform publishes; none of a driver that is not there, which is an error
    told elsewhere."""
    from engine.drivers import known, load  # late: they are built on the structs

    if channel.frequency is not None or channel.driver not in known():
        return channel.frequency or ()
    return load(channel.driver).frequency


def too_small(config: Config) -> Iterator[Shared]:
    """The limits of which some process would have nothing: what it reads could never leave."""
    return (shared for shared in shared_limits(config) if shared.processes > number_of(shared.limit))


def held_limits(config: Config, tiers: Sequence[Tier]) -> Iterator[Held]:
    """What a process of these tiers keeps to, as ``config``, its own, has it."""
    yield from (Held(key_of(["everything"], limit), limit) for limit in config.limits)
    for tier in tiers:
        yield from (Held(key_of(["tier", tier.label], limit), limit) for limit in tier_policy(config, tier).limits)
    for name, channel in config.channels.items():
        yield from (Held(key_of(["channel", name], limit), limit) for limit in channel.limits)
        for account, limits in channel.account_limits.items():
            yield from (Held(key_of(["account", name, account], limit), limit) for limit in limits)
    for name, tenant in config.tenants.items():
        yield from (Held(key_of(["tenant", name], limit), limit) for limit in tenant.limits)


def worker_state(config: Config, name: str) -> Path:
    """The directory of what this worker alone keeps."""
    return Path(config.state) / "workers" / name


def worker_config(config: Config, worker: Worker) -> Config:
    """What ``worker`` runs with: its state directory, and its share of every limit."""
    everybody = workers(config)
    tiers = {}
    for name, policy in config.tiers.items():
        serving = [one for one in everybody if name in (tier.label for tier in one.tiers)]
        mine = _shares(policy.limits, serving, worker) if worker in serving else policy.limits
        tiers[name] = msgspec.structs.replace(policy, limits=mine)
    channels = {
        name: msgspec.structs.replace(
            channel,
            limits=_shares(channel.limits, everybody, worker),
            tenant_limits=_shares(channel.tenant_limits, everybody, worker),
            frequency=_frequency_shares(frequency_of(channel), everybody, worker),
            account_limits={
                account: _shares(limits, everybody, worker) for account, limits in channel.account_limits.items()
            },
        )
        for name, channel in config.channels.items()
    }
    tenants = {
        name: msgspec.structs.replace(tenant, limits=_shares(tenant.limits, everybody, worker))
        for name, tenant in config.tenants.items()
    }
    return msgspec.structs.replace(
        config,
        worker=worker.name,
        state=str(worker_state(config, worker.name)),
        limits=_shares(config.limits, everybody, worker),
        tiers=tiers,
        channels=channels,
        tenants=tenants,
    )


def own_share(config: Config, number: int, tier: str | None = None) -> int:
    """What the process with this configuration has of a number for all of them, or for those that serve ``tier``; of a
    tier it does not serve, all. 0: there are more processes than that."""
    everybody = workers(config) if config.worker is not None else []
    sharing = [one.name for one in everybody if tier is None or tier in (of.label for of in one.tiers)]
    if config.worker not in sharing:
        return number
    return share(number, len(sharing), sharing.index(config.worker)) if number >= len(sharing) else 0


def _shares(limits: tuple[Limit, ...], sharers: list[Worker], worker: Worker) -> tuple[Limit, ...]:
    index = sharers.index(worker)
    return tuple(_of(limit, share(number_of(limit), len(sharers), index)) for limit in limits)


def _frequency_shares(rules: tuple[Frequency, ...], sharers: list[Worker], worker: Worker) -> tuple[Frequency, ...]:
    index = sharers.index(worker)
    return tuple(msgspec.structs.replace(rule, messages=share(rule.messages, len(sharers), index)) for rule in rules)


def _of(limit: Limit, number: int) -> Limit:
    unit = "calls" if limit.calls is not None else "recipients"
    return msgspec.structs.replace(limit, **{unit: number})
