"""What stands between the log and the core besides admission (shell): allowances of system, and overloaded channels.

In: a send that may be admitted. Out: whether it may come in as what it is. A system send past its tenant's allowance is
moved to `template`; a template or basic send of a channel that cannot keep up is refused, where the operator wants it.
Never: refuses or moves a send that was moved before (from a later topic, a dead letter, or here).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Protocol

import structlog

from engine.admit import Channel
from engine.clock import NS_PER_S, Clock
from engine.config import Config, tier_policy
from engine.overload import OPEN, Gate, Load
from engine.send import Tier
from ext.gates import Meter
from ext.histogram import Histogram

logger = structlog.get_logger("surgetank.gates")
MOST_METERS = 10_000  # above it those that say what a new one would are forgotten
SAID_EVERY_NS = 60 * NS_PER_S
PACED = (Tier.TEMPLATE, Tier.BASIC)


class Core(Protocol):
    """What is asked of the core."""

    def queued(self, tier: int, channel: int) -> int:
        """Recipients that could go."""

    def lateness(self, tier: int) -> Histogram:
        """Of what left."""


class Gates:
    """One process's."""

    def __init__(self, config: Config, channels: Mapping[str, Channel], core: Core, clock: Clock) -> None:
        self.by_channel = {
            name: Gate(channel.overload.most)
            for name, channel in config.channels.items()
            if channel.overload.policy == "refuse"
        }
        allowance = tier_policy(config, Tier.SYSTEM).allowance
        self.meters: dict[str, Meter] | None = None if allowance is None else {}
        self.demoted: Counter[str] = Counter()  # recipients moved to `template`, by channel
        self.left = defaultdict[tuple[str, Tier], int](int)  # recipients that were on a call, by channel
        self.template_topic = tier_policy(config, Tier.TEMPLATE).topics[0]
        self._allowance = allowance
        self._said: dict[str, tuple[int, int]] = {}  # tenant -> when it was, and demoted since
        self._channels = channels
        self._core = core
        self._clock = clock
        self._asap = {tier: tier_policy(config, tier).pacing == "asap" for tier in PACED}
        self._late: Counter[tuple[str, Tier]] = Counter()

    # --- the allowance of system

    def within_allowance(self, tenant: str, recipients: int, now_ns: int) -> bool:
        """Take so much out of the tenant's allowance, or nothing and False."""
        if self.meters is None or self._allowance is None:
            return True
        meter = self.meters.get(tenant)
        if meter is None:
            most = self._allowance.tenants.get(tenant, self._allowance.recipients)
            self._forget_whole(now_ns)
            meter = self.meters[tenant] = Meter(most, self._allowance.per)
        return meter.take(recipients, now_ns)

    def demote(self, channel: str, tenant: str, recipients: int, now_ns: int) -> None:
        """Count it, and say it once a tenant and minute."""
        self.demoted[channel] += recipients
        said_ns, since = self._said.get(tenant, (now_ns - SAID_EVERY_NS, 0))
        since += recipients
        if now_ns - said_ns >= SAID_EVERY_NS:
            logger.warning("a tenant is past its allowance of system", tenant=tenant, recipients_as_template=since)
            said_ns, since = now_ns, 0
        self._said[tenant] = said_ns, since

    def _forget_whole(self, now_ns: int) -> None:
        assert self.meters is not None  # noqa: S101
        if len(self.meters) < MOST_METERS:
            return
        for tenant in [tenant for tenant, meter in self.meters.items() if meter.whole_ns <= now_ns]:
            del self.meters[tenant]
        self._said = {tenant: said for tenant, said in self._said.items() if tenant in self.meters}

    # --- overload

    def refuses(self, channel: str, level: int, recipients: int, slack_ns: int) -> bool:
        """Whether a send of template or basic may not come in."""
        gate = self.by_channel.get(channel)
        return gate is not None and not gate.admits(level, recipients, slack_ns)

    def look(self, now_ns: int) -> None:
        """To be called often: judges the channels whose window is over."""
        for name, gate in self.by_channel.items():
            if gate.due(now_ns):
                self._turn(name, gate, now_ns)

    async def run(self) -> None:
        """A channel to which nothing comes is judged too, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self.look(self._clock.now_ns())

    def _turn(self, name: str, gate: Gate, now_ns: int) -> None:
        before, handle = gate.level, self._channels[name].handle
        loads = [
            Load(self._core.queued(tier, handle), self.left[name, tier], self._asap[tier] or self._is_late(name, tier))
            for tier in PACED
        ]
        gate.turn(now_ns, loads)
        if before == OPEN and gate.level < OPEN:
            waiting = sum(load.waiting for load in loads)
            logger.warning("a channel is overloaded: it refuses sends", channel=name, waiting_recipients=waiting)
        elif before < OPEN and gate.level == OPEN:
            logger.info("a channel is no longer overloaded", channel=name, refused_recipients=sum(gate.refused))

    def _is_late(self, channel: str, tier: Tier) -> bool:
        """Whether anybody left late since the channel's last turn: a tier that is paced, and late, does what it can."""
        counts, _ = self._core.lateness(tier).snapshot()
        before, self._late[channel, tier] = self._late[channel, tier], counts[-1] - counts[0]
        return self._late[channel, tier] > before
