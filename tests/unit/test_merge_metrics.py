"""The metrics of several processes as those of one."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from engine.merge_metrics import Families, Plain, families, merge, metrics, plain


def told(
    ended: float = 0,
    connections: float = 0,
    age: float = 0,
    polled: float = 0,
    difference: float = 0,
    seconds: float = 0,
) -> Families:
    """What one process tells, over the wire."""
    counter = CounterMetricFamily("surgetank_recipients", "Ended", labels=["tier", "outcome"])
    counter.add_metric(["basic", "accepted"], ended)
    histogram = HistogramMetricFamily("surgetank_queue_wait_seconds", "Waited", labels=["tier"])
    histogram.add_metric(["basic"], [("1", ended), ("+Inf", ended + 1)], seconds)
    made: list[Metric] = [counter, histogram]
    for name, value in {
        "surgetank_platform_connections": connections,
        "surgetank_queue_oldest_age_seconds": age,
        "surgetank_kafka_last_poll_timestamp_seconds": polled,
        "surgetank_conservation_difference_recipients": difference,
    }.items():
        gauge = GaugeMetricFamily(name, "A gauge", labels=["tier"])
        gauge.add_metric(["basic"], value)
        made.append(gauge)
    wire = msgspec.msgpack.encode(plain(made))
    return families(msgspec.msgpack.decode(wire, type=Plain))


class Registered:
    def __init__(self, merged: Families) -> None:
        self.merged = merged

    def collect(self) -> Iterator[Metric]:
        yield from metrics(self.merged)


def exposed(merged: Families) -> dict[tuple[str, str | None], float]:
    """Written out and read again: (name, le) -> value."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Registered(merged))
    read = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, s.labels.get("le")): s.value for family in read for s in family.samples}


def test_each_metric_is_merged_as_makes_sense() -> None:
    one = told(ended=5, connections=2, age=10, polled=100, difference=3, seconds=1.5)
    two = told(ended=7, connections=1, age=4, polled=90, difference=-4, seconds=2)
    assert exposed(merge([one, two])) == {
        ("surgetank_recipients_total", None): 12,
        ("surgetank_queue_wait_seconds_bucket", "1"): 12,
        ("surgetank_queue_wait_seconds_bucket", "+Inf"): 14,
        ("surgetank_queue_wait_seconds_count", None): 14,
        ("surgetank_queue_wait_seconds_sum", None): 3.5,
        ("surgetank_platform_connections", None): 3,
        ("surgetank_queue_oldest_age_seconds", None): 10,
        ("surgetank_kafka_last_poll_timestamp_seconds", None): 90,
        ("surgetank_conservation_difference_recipients", None): -4,
    }


def test_of_those_that_do_not_live_only_what_adds_up_counts() -> None:
    merged = exposed(merge([told(ended=5, connections=2)], [told(ended=7, connections=9)]))
    assert merged["surgetank_recipients_total", None] == 12
    assert merged["surgetank_platform_connections", None] == 2
    alone = exposed(merge([], [told(ended=7, connections=9)]))
    assert not any("connections" in name for name, _ in alone)


def test_series_of_one_process_alone_stay() -> None:
    more = CounterMetricFamily("surgetank_recipients", "Ended", labels=["tier", "outcome"])
    more.add_metric(["basic", "dead"], 2)
    merged = merge([told(ended=5), families(plain([more]))])
    assert merged["surgetank_recipients"].samples == {
        ("surgetank_recipients_total", (("outcome", "accepted"), ("tier", "basic"))): 5,
        ("surgetank_recipients_total", (("outcome", "dead"), ("tier", "basic"))): 2,
    }


def test_a_metric_whose_type_differs_is_the_first_ones() -> None:
    other = GaugeMetricFamily("surgetank_recipients", "Of another version", value=9)
    assert merge([told(ended=5), families(plain([other]))])["surgetank_recipients"].kind == "counter"


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=5), min_size=1, max_size=4))
def test_sums_never_go_back_whatever_lives_and_dies(lives: list[list[int]]) -> None:
    """Each list is one worker's lives; a life counts up to its number, in two steps, then ends."""
    before: list[Families] = [{} for _ in lives]
    now: list[Families] = [{} for _ in lives]
    seen = 0.0
    for step in range(max(map(len, lives))):
        for worker, counts in enumerate(lives):
            if step < len(counts):
                for part in (counts[step] // 2, counts[step]):
                    now[worker] = told(ended=part)
                    total = exposed(merge(now, before)).get(("surgetank_recipients_total", None), 0.0)
                    assert total >= seen
                    seen = total
                before[worker], now[worker] = merge([], [before[worker], now[worker]]), {}
    assert seen == sum(map(sum, lives))
