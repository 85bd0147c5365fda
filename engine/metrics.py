"""The metrics of one worker as a Prometheus collector, read from the core and the counters at each scrape.

One snapshot a scrape, taken on the event loop's thread between two callbacks, so that the terms of the conservation
sum belong together. Names and labels are a public contract (docs/operations.md).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from engine import __version__
from engine.clock import NS_PER_S
from engine.commit import Ledger
from engine.send import Tier
from ext.histogram import Histogram
from ext.schedule import CALL_A_SECOND

if TYPE_CHECKING:
    from engine.pipeline import Pipeline

NS_A_SECOND = float(NS_PER_S)


class Snapshot:
    """A prometheus_client collector over one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterator[Metric]:
        """Everything; takes about a millisecond."""
        yield _gauge("build_info", "What runs here", {"version": __version__, "python": platform.python_version()}, 1)
        yield from self._intake()
        yield from self._queues()
        yield from self._later()
        yield from self._delivery()
        yield from self._log()

    def difference(self) -> list[int]:
        """Per tier: recipients taken in that have not ended or moved, do not wait, and were not given back: 0."""
        counters, stats = self._pipeline.counters, self._pipeline.core.stats()
        ended = [0, 0, 0]
        for (tier, _, _), count in counters.outcomes.items():
            ended[tier] += count
        for (tier, _), count in counters.moved.items():
            ended[tier] += count
        return [
            counters.taken_in[tier]
            - ended[tier]
            - stats["queued"][tier]
            - stats["waiting"][tier]
            - stats["ended"][tier]
            - counters.in_flight[tier]
            - counters.held[tier]
            - counters.moving[tier]
            - counters.given_back[tier]
            for tier in Tier
        ]

    def _intake(self) -> Iterator[Metric]:
        c = self._pipeline.counters
        yield _by_tier("consumed_sends", "Records read from the log", c.consumed_sends)
        yield _by_tier("consumed_bytes", "Bytes of records read from the log", c.consumed_bytes)
        yield _by_tier("taken_in_recipients", "Recipients of the records read", c.taken_in)
        invalid = CounterMetricFamily("surgetank_invalid_sends", "Sends refused, by reason", labels=["tier", "reason"])
        for (tier, reason), count in c.invalid.items():
            invalid.add_metric([tier.label, reason], count)
        yield invalid
        yield _counter("unknown_keys", "Keys of sends that no version of the format knows", c.unknown_keys)
        yield _by_tier("replayed_twice", "Records of a move that another record makes", c.replayed_twice)
        yield _counter("series_dropped", "Values told under _other to bound the number of series", c.series_dropped)
        stall = CounterMetricFamily("surgetank_backpressure_seconds", "Time a stage held back", labels=["stage"])
        for stage, ns in c.backpressure_ns.items():
            stall.add_metric([stage], ns / NS_A_SECOND)
        yield stall
        yield _histogram("loop_stall_seconds", "How late the event loop ran a timer", [({}, c.loop_stall)])

    def _queues(self) -> Iterator[Metric]:
        pipeline, stats = self._pipeline, self._pipeline.core.stats()
        queue = GaugeMetricFamily("surgetank_queue_recipients", "Recipients not ended", labels=["tier", "state"])
        for tier in Tier:
            for state in ("ready", "paused", "paced", "throttled", "linger", "retry", "scheduled"):
                queue.add_metric([tier.label, state], stats[state][tier])
            queue.add_metric([tier.label, "held"], pipeline.counters.held[tier])
            queue.add_metric([tier.label, "inflight"], pipeline.counters.in_flight[tier])
            queue.add_metric([tier.label, "moving"], pipeline.counters.moving[tier])
        yield queue
        yield from _pacing(stats)
        difference = GaugeMetricFamily(
            "surgetank_conservation_difference_recipients", "Taken in and not accounted for; must be 0", labels=["tier"]
        )
        for tier, count in zip(Tier, self.difference(), strict=True):
            difference.add_metric([tier.label], count)
        yield difference
        standing = GaugeMetricFamily("surgetank_standing_commands", "Commands in force", labels=["kind"])
        for kind, count in pipeline.orders.standing().items():
            standing.add_metric([kind], count)
        yield standing
        age = GaugeMetricFamily("surgetank_queue_oldest_age_seconds", "Age of the oldest open send", labels=["tier"])
        for tier, ledgers in self._ledgers().items():
            oldest = [ledger.oldest_ms for ledger in ledgers if ledger.oldest_ms is not None]
            seconds = (pipeline.clock.wall_ms() - min(oldest)) / 1000 if oldest else 0.0
            age.add_metric([tier.label], max(seconds, 0.0))
        yield age
        budget = GaugeMetricFamily("surgetank_memory_budget_bytes", "What may be held", labels=["kind"])
        used = GaugeMetricFamily("surgetank_memory_used_bytes", "What is held", labels=["kind"])
        for intake in pipeline.intakes:
            budget.add_metric([f"sends_{intake.tier.label}"], intake.policy.budget.bytes)
            used.add_metric([f"sends_{intake.tier.label}"], pipeline.opens.sizes[intake.tier])
            used.add_metric([f"later_{intake.tier.label}"], pipeline.dues[intake.tier].size)
        used.add_metric(["core"], stats["memory_bytes"][0])
        yield budget
        yield used

    def _ledgers(self) -> dict[Tier, list[Ledger]]:
        """Each tier's, of its own topics and of its later ones."""
        found: dict[Tier, list[Ledger]] = {}
        for intake in self._pipeline.all_intakes:
            found.setdefault(intake.tier, []).extend(intake.ledgers.values())
        return found

    def _later(self) -> Iterator[Metric]:
        pipeline, c = self._pipeline, self._pipeline.counters
        moved = {(tier.label, reason): count for (tier, reason), count in c.moved.items()}
        yield _by_pair("moved_recipients", "Recipients moved to a later topic", ("tier", "reason"), moved)
        waiting = GaugeMetricFamily("surgetank_later_sends", "Records that wait on later topics", labels=["tier"])
        for tier, due in pipeline.dues.items():
            waiting.add_metric([tier.label], sum(due.waiting().values()))
        yield waiting
        yield _counter("refused_moves", "Moves the log will never take: they wait in memory", pipeline.later.refused)
        tokens = GaugeMetricFamily(
            "surgetank_retry_budget_recipients", "Retries that may be made now", labels=["channel", "tier"]
        )
        for pair, count in pipeline.later.tokens.items():
            tokens.add_metric(pair, count)
        yield tokens

    def _delivery(self) -> Iterator[Metric]:
        pipeline, c = self._pipeline, self._pipeline.counters
        ended = CounterMetricFamily("surgetank_recipients", "Recipients ended", labels=["tier", "channel", "outcome"])
        for (tier, channel, outcome), count in c.outcomes.items():
            ended.add_metric([tier.label, channel, outcome], count)
        yield ended
        yield _by_pair("dispatch_attempts", "Calls to platforms", ("channel", "result"), c.attempts)
        yield _by_pair("retries", "Recipients to be tried again", ("channel", "reason"), c.retries)
        faults = CounterMetricFamily(
            "surgetank_internal_faults", "Calls that a defect of ours ended", labels=["channel"]
        )
        for name, deliverer in pipeline.deliverers.items():
            faults.add_metric([name], deliverer.faults)
        yield faults
        rest = {(channel, "platform"): count for channel, count in c.throttled.items()}
        yield _by_pair("throttled", "Calls answered with an order to rest", ("channel", "limiter"), rest)
        waited = CounterMetricFamily("surgetank_frequency_waits", "Recipients sent back to wait", labels=["channel"])
        full = GaugeMetricFamily("surgetank_frequency_full_share", "Of the memory, without room", labels=["channel"])
        for name, share in pipeline.frequencies.full_shares().items():
            waited.add_metric([name], pipeline.frequencies.waited[name])
            full.add_metric([name], share)
        yield waited
        yield full
        demoted = CounterMetricFamily(
            "surgetank_demoted_recipients", "Of system, past an allowance: served as template", labels=["channel"]
        )
        for name, count in pipeline.gates.demoted.items():
            demoted.add_metric([name], count)
        yield demoted
        refused = CounterMetricFamily(
            "surgetank_overload_refused_recipients",
            "Refused by a channel that cannot keep up",
            labels=["tier", "channel"],
        )
        refused_share = GaugeMetricFamily(
            "surgetank_overload_refused_share", "Of what arrived in the last window", labels=["channel"]
        )
        for name, gate in pipeline.gates.by_channel.items():
            refused_share.add_metric([name], gate.share)
            for tier, count in zip((Tier.TEMPLATE, Tier.BASIC), gate.refused, strict=True):
                refused.add_metric([tier.label, name], count)
        yield refused
        yield refused_share
        in_flight = GaugeMetricFamily("surgetank_platform_connections", "Calls under way", labels=["channel"])
        limit = GaugeMetricFamily("surgetank_platform_concurrency_limit", "Calls at once", labels=["channel"])
        for name in pipeline.channels:
            in_flight.add_metric([name], c.calls_in_flight[name])
            limit.add_metric([name], pipeline.config.channels[name].in_flight)
        yield in_flight
        yield limit
        fill = [({"channel": n}, pipeline.core.batch_recipients(ch.handle)) for n, ch in pipeline.channels.items()]
        yield _histogram("batch_recipients", "Recipients a call", fill, 1.0)
        late = [({"tier": tier.label}, pipeline.core.lateness(tier)) for tier in Tier]
        yield _histogram("schedule_lateness_seconds", "How long after its due time a recipient left", late)
        waits = [
            ({"tier": tier.label, "channel": name}, pipeline.core.queue_wait(tier, channel.handle))
            for tier in Tier
            for name, channel in pipeline.channels.items()
        ]
        yield _histogram("queue_wait_seconds", "From intake to the call, per recipient", waits)
        yield _histogram("dispatch_duration_seconds", "Platform calls", _labelled(c.call_duration))
        yield _histogram("end_to_end_seconds", "From the log to the end", _labelled(c.end_to_end))

    def _log(self) -> Iterator[Metric]:
        pipeline, c = self._pipeline, self._pipeline.counters
        families = {
            name: GaugeMetricFamily(f"surgetank_kafka_{name}", text, labels=["tier"])
            for name, text in {
                "lag_sends": "Records on the log not read yet",
                "assigned_partitions": "Partitions this worker owns",
                "uncommitted_sends": "Records that ended, in whole or in part, since the last commit",
                "last_poll_timestamp_seconds": "When records were last asked for",
            }.items()
        }
        ledgers = self._ledgers()
        for intake in pipeline.intakes:
            label = [intake.tier.label]
            families["lag_sends"].add_metric(label, sum(intake.assignment.consumer.lag().values()))
            families["assigned_partitions"].add_metric(label, len(intake.ledgers))
            uncommitted = sum(ledger.unsaved for ledger in ledgers[intake.tier])
            families["uncommitted_sends"].add_metric(label, uncommitted)
            families["last_poll_timestamp_seconds"].add_metric(label, intake.last_poll_ms / 1000)
        yield from families.values()
        size = GaugeMetricFamily(
            "surgetank_ledger_metadata_bytes", "The maps of what is done, as committed last", labels=["tier"]
        )
        for intake in pipeline.intakes:
            size.add_metric([intake.tier.label], sum(one.size for one in intake.assignment.progress.values()))
        yield size
        ended = GaugeMetricFamily(
            "surgetank_uncommitted_recipients",
            "Recipients that ended, or moved, since the last commit",
            labels=["tier"],
        )
        for tier in Tier:
            ended.add_metric([tier.label], c.uncommitted(tier))
        yield ended
        text = "Recipients in a call, or ended and not committed, when a worker died or lost its partitions"
        yield _by_tier("forfeited_recipients", text, [pipeline.flight.forfeited(tier) for tier in Tier])
        yield _by_tier("already_done_sends", "Records read again that were done before a restart", c.already_done)
        text = "Recipients that were in a call when a worker died, on channels that forbid repeats"
        yield _by_pair("recovered_recipients", text, ("channel", "how"), c.recovered)
        unread = {(tier.label, reason): count for (tier, reason), count in c.unread_maps.items()}
        yield _by_pair("unread_maps", "Maps of what is done that were of no use", ("tier", "reason"), unread)
        rebalances = {(tier.label, kind): count for (tier, kind), count in c.rebalances.items()}
        yield _by_pair("kafka_rebalances", "Assignments that came and went", ("tier", "type"), rebalances)
        yield _by_tier("kafka_consumers_renewed", "Consumers made anew because they were stuck", c.renewed)
        yield _by_tier("kafka_commit_errors", "Commits that did not get through", c.commit_errors)
        took = [({"tier": tier.label}, c.commit_duration[tier]) for tier in Tier]
        yield _histogram("kafka_commit_duration_seconds", "Commits", took)
        yield _counter(
            "refused_records", "Receipts and dead letters the log will never take", pipeline.recorder.refused
        )
        yield _counter("dedupe_shortened", "Ids forgotten before their window was over", pipeline.seen.shortened)
        yield _gauge("dedupe_ids", "Ids remembered", {}, len(pipeline.seen))


def _pacing(stats: Mapping[str, Sequence[int]]) -> Iterator[Metric]:
    """Rates are kept in calls; here they are in recipients, at the mean of what is queued."""
    texts = {
        "rate": "At which a paced tier leaves",
        "need": "At which all of a paced tier leaves in time",
        "floor": "Below which no paced tier is held",
    }
    for name, text in texts.items():
        family = GaugeMetricFamily(f"surgetank_pacing_{name}_recipients_per_second", text, labels=["tier"])
        for tier in Tier:
            recipients = stats["queued"][tier] / max(stats["pacing_calls"][tier], 1)
            family.add_metric([tier.label], stats[f"pacing_{name}"][tier] / CALL_A_SECOND * max(recipients, 1.0))
        yield family


def _gauge(name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"surgetank_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"surgetank_{name}", text, value=value)


def _by_tier(name: str, text: str, values: Iterable[int]) -> Metric:
    family = CounterMetricFamily(f"surgetank_{name}", text, labels=["tier"])
    for tier, value in zip(Tier, values, strict=True):
        family.add_metric([tier.label], value)
    return family


def _by_pair(name: str, text: str, labels: tuple[str, str], values: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(f"surgetank_{name}", text, labels=labels)
    for pair, value in values.items():
        family.add_metric(pair, value)
    return family


def _labelled(table: Mapping[tuple[Tier, str], Histogram]) -> list[tuple[dict[str, str], Histogram]]:
    return [({"tier": tier.label, "channel": channel}, histogram) for (tier, channel), histogram in table.items()]


def _histogram(
    name: str,
    text: str,
    series: Iterable[tuple[Mapping[str, str], Histogram]],
    unit: float = NS_A_SECOND,
) -> Metric:
    """Edges and sums are divided by ``unit``."""
    rows = list(series)
    family = HistogramMetricFamily(f"surgetank_{name}", text, labels=list(rows[0][0]) if rows else [])
    for labels, histogram in rows:
        counts, total = histogram.snapshot()
        names = [f"{edge / unit:g}" for edge in histogram.edges] + ["+Inf"]
        family.add_metric(list(labels.values()), list(zip(names, counts, strict=True)), total / unit)
    return family
