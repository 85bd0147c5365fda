"""The metrics of several processes as those of one.

In: what each process told of itself. Out: one family a name. Invariant: a counter or histogram is the sum over every
life of every process, the ended ones too, so it never goes back. Never: sums what only makes sense apart (``GAUGES``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client.core import Metric

Series = tuple[str, tuple[tuple[str, str], ...]]  # the sample's name, its labels
Plain = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]  # name, type, text, samples: for the wire


class Family(NamedTuple):
    """One metric of one process, or of all."""

    kind: str
    text: str
    samples: dict[Series, float]


Families = Mapping[str, Family]
ADD_UP = ("counter", "histogram")


def _furthest(values: list[float]) -> float:
    return max(values, key=abs)


# Gauges that are not sums, by their name; every other one is.
GAUGES: dict[str, Callable[[list[float]], float]] = {
    "surgetank_build_info": max,
    "surgetank_queue_oldest_age_seconds": max,
    "surgetank_standing_commands": max,
    "surgetank_frequency_full_share": max,
    "surgetank_overload_refused_share": max,
    "surgetank_kafka_last_poll_timestamp_seconds": min,
    "surgetank_conservation_difference_recipients": _furthest,  # +1 here and -1 there are two faults
    "python_info": max,
    "process_start_time_seconds": min,
    "process_max_fds": min,
}


def plain(metrics: Iterable[Metric]) -> Plain:
    """Metrics as plain values."""
    return [
        (one.name, one.type, one.documentation, [(s.name, s.labels, float(s.value)) for s in one.samples])
        for one in metrics
    ]


def families(told: Plain) -> Families:
    """What ``plain`` made, for ``merge``."""
    return {
        name: Family(kind, text, {(series, tuple(sorted(labels.items()))): value for series, labels, value in samples})
        for name, kind, text, samples in told
    }


def merge(now: Iterable[Families], before: Iterable[Families] = ()) -> Families:
    """``now``: processes as they are. ``before``: as others were last; of these only what adds up counts. Where two
    versions of a process disagree on a metric's type, the first one's is taken and the other left out."""
    merged: dict[str, Family] = {}
    values: dict[str, dict[Series, list[float]]] = {}
    for told, lives in [*((one, True) for one in now), *((one, False) for one in before)]:
        for name, family in told.items():
            if lives or family.kind in ADD_UP:
                known = merged.setdefault(name, family)
                if known.kind == family.kind:
                    into = values.setdefault(name, {})
                    for series, value in family.samples.items():
                        into.setdefault(series, []).append(value)
    return {
        name: Family(family.kind, family.text, {s: _one(name, all_) for s, all_ in values[name].items()})
        for name, family in merged.items()
    }


def _one(name: str, values: list[float]) -> float:
    return GAUGES[name](values) if name in GAUGES else sum(values)


def metrics(told: Families) -> Iterable[Metric]:
    """For prometheus_client to write."""
    for name, family in told.items():
        metric = Metric(name, family.text, family.kind)
        for (series, labels), value in family.samples.items():
            metric.add_sample(series, dict(labels), value)
        yield metric
