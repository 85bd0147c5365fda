"""Wires the stages: consume -> decode -> admit -> schedule -> batch -> deliver -> settle -> commit.

``serve`` is one worker process from start to drained end; ``Pipeline`` is what it wires, for tests and benchmarks too.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from engine.admit import Channel
from engine.assignment import Assignment
from engine.attempts import Attempts
from engine.backoff import Backoff
from engine.clock import NS_PER_MS, NS_PER_S, Clock
from engine.commit import Committer
from engine.config import Config, Rate, account_limits, later_topics, tier_policy
from engine.consume import Intake
from engine.content import Contents
from engine.control import Control
from engine.counters import Counters
from engine.deal import deal_if_due, kept_by_one
from engine.deliver import Deliverer
from engine.dispatch import Dispatcher
from engine.drivers import load
from engine.errors import LogUnavailable
from engine.fence import Fence
from engine.frequency import Frequencies
from engine.gates import Gates
from engine.later import Later
from engine.later_due import LaterDue
from engine.limits import Limits
from engine.limits_changed import Changed
from engine.logs import Chunk, Log, Reader
from engine.logs.open import open_log
from engine.metrics import Snapshot
from engine.open_sends import OpenSends
from engine.orders import Orders
from engine.paused import Pauses
from engine.probes import Probes
from engine.progress import Keep
from engine.record import Recorder
from engine.send import Tier
from engine.state.flight import Flight
from engine.state.in_hand import Hands
from engine.state.lock import lock
from engine.state.seen import Seen
from engine.state.uses import Uses
from engine.topics import MAX_MAP_BYTES, topic_specs
from engine.turns import Turns
from engine.weights import Weights
from engine.why import Why
from ext.schedule import ACCOUNT, ASAP, CALL_A_SECOND, CHANNEL, EVEN, GLOBAL, OF_TENANT, PACED, WHOLE_TIER, Core

logger = structlog.get_logger("surgetank.pipeline")
GC_EVERY = 50_000  # objects
SWITCH_S = 0.0005  # the embedded log's threads give the interpreter back sooner: 5 ms would show in urgent latency
DRAIN_S = 20.0  # for calls under way and their receipts; Kubernetes ends a process 30 s after SIGTERM
TELL_S = 2.0  # of it, at least for receipts
WATCH_NS = 100 * NS_PER_MS
FOLLOW_RECORDS = 1000
PACING = {"asap": ASAP, "even": EVEN, "paced": PACED}


class Pipeline:
    """One worker's stages on one log. ``start``, then ``stop`` exactly once."""

    def __init__(self, config: Config, tiers: Sequence[Tier], log: Log, clock: Clock) -> None:
        self.config, self.log, self.clock = config, log, clock
        self.counters = Counters()
        self.core = _core(config)
        urgent = Tier.SYSTEM in tiers  # where it is served elsewhere nothing need be kept for it here
        self.flight = Flight(Path(config.state) / "flight", self.counters)
        self.limits = Limits(
            self.core, Uses(Path(config.state) / "limits.db"), clock, keep_for_system=urgent,
            cut_off=self.flight.cut_off,
        )  # fmt: skip
        self.channels = _channels(config, self.core, self.limits, urgent)
        self.opens = OpenSends()
        _tenants(config, self.core, self.limits, self.opens)
        self.seen = Seen(Path(config.state) / "seen.db", config.dedupe_window // NS_PER_MS, config.max_ids)
        self.in_hand = Hands(Path(config.state))
        budgets = [tier_policy(config, tier).budget.uncommitted for tier in Tier]
        self.fence = Fence(budgets, config.log.session_timeout, self.counters, clock)
        groups = [group for tier in Tier for group in self._groups(tier)]
        self.attempts = Attempts(
            log, config.log.prefix, groups, self.channels, self.opens.own_content, self.opens.free_content, clock
        )
        self.recorder = Recorder(log, config.log.prefix, clock, self.counters, self.attempts.flushed)
        self.deliverers = {
            name: Deliverer(name, config.channels[name], channel.driver, clock=clock)
            for name, channel in self.channels.items()
        }
        drivers = {name: channel.driver for name, channel in self.channels.items()}
        self.frequencies = Frequencies(Path(config.state), config.channels, drivers, clock, keep_for_system=urgent)
        self.opens.gone.append(self.frequencies.forget)
        self.gates = Gates(config, self.channels, self.core, clock)
        self.turns = Turns(clock)
        self.later = Later(log, config, self.fence, self.turns, self.counters, clock)
        self.pauses = Pauses(
            self.core, self.opens, self.channels, lambda ms: ms * NS_PER_MS + clock.offset_ns(), clock.wall_ms()
        )
        self.dispatcher = Dispatcher(
            self.core, self.opens, self.channels, config.channels, self.deliverers, self.recorder, self.seen,
            self.limits, self.frequencies, self.gates, self.fence, self.flight, self.attempts, self.later, self.turns,
            self.counters, clock,
        )  # fmt: skip
        self.limits.granted = self.dispatcher.wake
        self.contents = Contents(self._registered)
        worker = f"{socket.gethostname()}-{os.getpid()}"
        self.committer = Committer(self.seen, self.fence, self.flight, self.counters, clock)
        self.intakes = [self._intake(tier) for tier in tiers]
        self.dues: dict[Tier, LaterDue] = {}
        self.later_intakes = [self._later_intake(tier) for tier in tiers]
        why = Why(self.core, self.opens, self.pauses.standing, self.limits.told, self.frequencies.rule, clock)
        changed = Changed(config, self.limits, self.channels, self.opens)
        self.orders = Orders(
            worker, self.dispatcher, self.pauses, _weights(config, self.core, self.opens), why, self.limits, changed,
            self.all_intakes,
        )  # fmt: skip
        self.control = Control(f"{config.log.prefix}.control", self.orders.obey, clock)
        self.tasks: list[asyncio.Task[None]] = []
        self.readers: list[Reader] = []

    async def start(self) -> None:
        """Read what must be known first, join the groups, begin. Raises LogUnavailable; then only ``close`` is left."""
        for deliverer in self.deliverers.values():
            await deliverer.start()
        prefix = self.config.log.prefix
        content, control = [await self._reader(f"{prefix}.{name}") for name in ("content", "control")]
        await _read_all(content, self.contents.take)
        await _read_all(control, self.control.take)
        self.limits.start()
        await asyncio.gather(*(intake.assignment.consumer.start() for intake in self.all_intakes))
        self._spawn(self.recorder.run(), self.later.run(), self.committer.run(), self.limits.run(), self.orders.run())
        self._spawn(_watch_loop(self.counters, self.fence, self.clock))
        if self.gates.by_channel:
            self._spawn(self.gates.run())
        if self.attempts.wanted:
            self._spawn(self.attempts.run(), self.attempts.tidy())
        self._spawn(_follow(content, self.contents.take), _follow(control, self.control.take, self._answer))
        self._spawn(*(intake.run() for intake in self.all_intakes))
        self._spawn(*(intake.assignment.watch() for intake in self.all_intakes))

    async def stop(self, deadline_s: float = DRAIN_S) -> bool:
        """Drain: poll no more, finish what is under way, tell of it, commit, leave the groups. True: all of that.

        A log that does not answer takes TELL_S and the time of one commit more.
        """
        ends_ns = self.clock.now_ns() + int(deadline_s * NS_PER_S)
        for intake in self.all_intakes:
            intake.stop()
        cut = await self.dispatcher.stop(deadline_s)
        await self.later.flushed(max((ends_ns - self.clock.now_ns()) / NS_PER_S, 0.0))
        told = await self.recorder.flushed(max((ends_ns - self.clock.now_ns()) / NS_PER_S, TELL_S))
        committed = await self.committer.finish()
        await self.close()
        logger.info("drained", calls_cut_off=cut, receipts_told=told, sends_given_back=sum(self.opens.count))
        return told and committed

    async def close(self) -> None:
        """Free everything, finished or not."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for intake in self.all_intakes:
            await intake.assignment.consumer.close()
        for reader in self.readers:
            await reader.close()
        self.dispatcher.failure.cancel()
        for deliverer in self.deliverers.values():
            await deliverer.close()
        self.seen.close()
        self.limits.close()
        self.frequencies.close()
        self.in_hand.close()
        self.flight.close()

    @property
    def ready(self) -> bool:
        """Every tier has had its first assignment."""
        return bool(self.tasks) and all(intake.assignment.assigned_once for intake in self.all_intakes)

    @property
    def all_intakes(self) -> list[Intake]:
        """Of the tiers' own topics, then of their later ones."""
        return [*self.intakes, *self.later_intakes]

    async def _reader(self, topic: str) -> Reader:
        reader = await self.log.reader([topic])
        self.readers.append(reader)
        return reader

    def _groups(self, tier: Tier) -> tuple[str, str]:
        """Of its own topics, and of its later ones."""
        return f"{self.config.log.prefix}.{tier.label}", f"{self.config.log.prefix}.later.{tier.label}"

    def _intake(self, tier: Tier) -> Intake:
        intake = self._new_intake(tier, group := self._groups(tier)[0], self.dispatcher.drop)
        intake.assignment.consumer = self.log.consumer(group, intake.policy.topics, intake.assignment)
        return intake

    def _later_intake(self, tier: Tier) -> Intake:
        """One of its own, so that neither waits for the other's records."""
        # Given back as it is popped: to empty the tier's queues would put all else in them out of order.
        intake = self._new_intake(tier, group := self._groups(tier)[1], lambda _: None)
        topics = later_topics(self.config, tier)
        self.dues[tier] = due = LaterDue(
            tier, topics, intake.assignment, self.channels, self.dispatcher.cancelled, self.pauses, self.turns,
            self.clock,
        )  # fmt: skip
        due.consumer = self.log.consumer(group, list(topics), due)
        intake.assignment.consumer = intake.due = due
        return intake

    def _new_intake(self, tier: Tier, group: str, drop: Callable[[Tier], None]) -> Intake:
        policy, config = tier_policy(self.config, tier), self.config.log
        keep = Keep(self.log, config.prefix, group, config.metadata_limit, MAX_MAP_BYTES)
        self.fence.add(tier, group)
        assignment = Assignment(
            tier, keep, self.committer, self.recorder, self.attempts, drop, self.flight, self.counters, self.clock
        )
        self.committer.sources.append(assignment)
        intake = Intake(
            tier, policy, assignment, self.channels, self.contents.templates, self.opens, self.seen, self.dispatcher,
            self.recorder, self.gates, self.attempts, self.later, self.turns, self.counters, self.clock,
        )  # fmt: skip
        intake.in_hand = self.in_hand
        return intake

    def _registered(self, name: str, channels: set[str]) -> None:
        for channel in channels:
            self.opens.forget_encodings(channel)
        for intake in self.all_intakes:
            intake.registered(name)

    async def _answer(self) -> None:
        if self.control.answers:
            await self.log.append(self.control.answers)
            self.control.answers.clear()

    def _spawn(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        self.tasks.extend(asyncio.create_task(coroutine) for coroutine in coroutines)


async def serve(config: Config, tiers: Sequence[Tier]) -> int:
    """Run until SIGTERM or SIGINT, then drain. Returns the exit code."""
    clock, stop = Clock(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked, stop)
    lock(Path(config.state))
    await deal_if_due(Path(config.state), kept_by_one(config, tiers), alone=True)
    probes = Probes()
    await probes.start(config.http.metrics)
    stopped = loop.create_task(stop.wait())
    pipeline: Pipeline | None = None
    try:
        pipeline = await _until(stopped, _started(config, tiers, clock))
        if pipeline is None:
            return 0
        # Open sends are many, live long and hold no cycles: looking through them costs more than it finds.
        gc.freeze()
        gc.set_threshold(GC_EVERY, 50, 50)
        sys.setswitchinterval(SWITCH_S)
        probes.serve(Snapshot(pipeline), pipeline)
        logger.info("serving", tiers=[tier.label for tier in tiers], channels=list(config.channels), pid=os.getpid())
        watched: list[asyncio.Future[Any]] = [*pipeline.tasks, pipeline.dispatcher.failure]
        await asyncio.wait([stopped, *watched], return_when=asyncio.FIRST_COMPLETED)
        probes.draining = True
        failed = [task for task in watched if task.done() and not task.cancelled() and task.exception()]
        for task in failed:
            logger.critical("a stage failed; draining", exc_info=task.exception())
        drained = await pipeline.stop()
        return 0 if drained and not failed else 1
    finally:
        if pipeline is not None:
            await pipeline.log.close()
        await probes.close()


def _asked(stop: asyncio.Event) -> None:
    """To end; the second time at once."""
    if stop.is_set():
        logger.warning("asked again to end: not drained")
        os._exit(1)
    stop.set()


async def _started(config: Config, tiers: Sequence[Tier], clock: Clock) -> Pipeline:
    """Try until the log answers and its topics are there, each time with a new one: a log that was closed stays so."""
    backoff = Backoff(0.5, 15.0)
    while True:
        log = open_log(config.log, state=config.state, engine=True)
        try:
            return await _start(config, tiers, log, clock)
        except LogUnavailable as error:
            logger.warning("waiting for the log", error=str(error), again_in_s=backoff.next_s)
        except BaseException:
            await log.close()
            raise
        await log.close()
        await backoff.wait()


async def _start(config: Config, tiers: Sequence[Tier], log: Log, clock: Clock) -> Pipeline:
    await log.start()
    missing = [d.topic for d in await log.check_topics(topic_specs(config)) if d.key == "topic"]
    if missing and config.log.kind == "sqlite":
        await log.create_topics(topic_specs(config))
    elif missing:
        raise LogUnavailable(f"no such topic: {', '.join(missing)} (`surgetank topics create` makes them)")
    pipeline = Pipeline(config, tiers, log, clock)
    try:
        await pipeline.start()
    except BaseException:
        await pipeline.close()
        raise
    return pipeline


async def _until(stopped: asyncio.Task[bool], work: Coroutine[Any, Any, Pipeline]) -> Pipeline | None:
    """The work's result, or None when asked to stop first."""
    task = asyncio.create_task(work)
    await asyncio.wait({stopped, task}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


async def _watch_loop(counters: Counters, fence: Fence, clock: Clock) -> None:
    """Measure how late timers run; after a long stop nothing leaves for now."""
    while True:
        due = clock.now_ns() + WATCH_NS
        await asyncio.sleep(WATCH_NS / NS_PER_S)
        counters.loop_stall.observe(clock.now_ns() - due)
        fence.look()


async def _read_all(reader: Reader, take: Callable[[Chunk], None]) -> None:
    while not await reader.at_end():
        for chunk in await reader.poll(FOLLOW_RECORDS, 0.2):
            take(chunk)


async def _follow(
    reader: Reader, take: Callable[[Chunk], None], after: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Apply what comes, until cancelled."""
    while True:
        try:
            for chunk in await reader.poll(FOLLOW_RECORDS, 0.5):
                take(chunk)
            if after is not None:
                await after()
        except LogUnavailable as error:
            logger.warning("cannot follow a topic", error=str(error))
            await asyncio.sleep(1.0)


def _tenants(config: Config, core: Core, limits: Limits, opens: OpenSends) -> None:
    for name, tenant in config.tenants.items():
        handle = opens.keep_tenant(name)
        core.reweight(OF_TENANT, handle, tenant.weight)
        for rule in tenant.limits:
            limits.add(OF_TENANT, handle, ["tenant", name], rule)


def _weights(config: Config, core: Core, opens: OpenSends) -> Weights:
    tiers = {tier.label: tier_policy(config, tier).weight for tier in Tier}
    return Weights(core, opens, tiers, {name: tenant.weight for name, tenant in config.tenants.items()})


def _rate(rate: Rate) -> int:
    """As the core has rates."""
    return rate.calls * CALL_A_SECOND * NS_PER_S // rate.per


def _core(config: Config) -> Core:
    policies = [tier_policy(config, tier) for tier in Tier]
    return Core(
        policies[Tier.TEMPLATE].weight,
        policies[Tier.BASIC].weight,
        pacing=[PACING[policy.pacing] for policy in policies],
        tau_ns=config.pacing.tau,
        floor=_rate(config.pacing.floor),
        near_ns=[0, policies[Tier.TEMPLATE].due_after, 0],
        horizon_ns=config.later.horizon,
    )


def _channels(config: Config, core: Core, limits: Limits, urgent: bool = True) -> dict[str, Channel]:
    for rule in config.limits:
        limits.add(GLOBAL, 0, ["everything"], rule)
    for tier in Tier:
        for rule in tier_policy(config, tier).limits:
            limits.add(WHOLE_TIER, tier, ["tier", tier.label], rule)
    channels = {}
    for name, channel in config.channels.items():
        driver = load(channel.driver)(name, channel)
        reserved = max(1, channel.in_flight // 4) if urgent and channel.in_flight > 1 else 0
        handle = core.add_channel(channel.in_flight, reserved, driver.cap, stays=channel.repeats == "never")
        for rule in channel.limits:
            limits.add(CHANNEL, handle, ["channel", name], rule)
        for rule in channel.tenant_limits:
            limits.add_for_each(handle, rule)
        accounts = {}
        for account in channel.accounts or ("default",):
            accounts[account] = core.add_account(handle)
            for rule in account_limits(config, name, account):
                limits.add(ACCOUNT, accounts[account], ["account", name, account], rule)
        channels[name] = Channel(name, handle, driver, accounts, channel.repeats == "allowed")
    return channels
