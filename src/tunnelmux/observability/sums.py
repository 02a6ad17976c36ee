"""Metrics of several processes as those of one, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["add_up"]

_NOT_ADDED: dict[str, Callable[[float, float], float]] = {
    "process_start_time_seconds": min,
    "process_max_fds": min,
    "tunnelmux_build_info": max,
    "tunnelmux_draining": max,
}
"""What is one thing for all of them, and no part of a sum."""

_CREATED = "_created"
# Behind the name of what counts: since when, as a time. In the text format it is a gauge.

_COUNTED = frozenset({"counter", "histogram", "summary"})

_Key = tuple[str, tuple[tuple[str, str], ...]]


class _Sum(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def add_up(texts: Iterable[bytes], *, is_over: bool = False) -> bytes:
    """The sum of these metrics, series by series; of processes that are over, what they counted,
    and nothing of what they were at the moment."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            if is_over and family.type not in _COUNTED:
                continue
            families.setdefault(family.name, family)
            known = values.setdefault(family.name, {})
            add = _NOT_ADDED.get(family.name, float.__add__)
            if family.name.endswith(_CREATED):
                add = min
            for sample in family.samples:
                if is_over and sample.name.endswith(_CREATED):
                    continue
                key = sample.name, tuple(sorted(sample.labels.items()))
                value = float(sample.value)
                known[key] = add(known[key], value) if key in known else value
    registry = CollectorRegistry()
    registry.register(_Sum(_with(family, values[name]) for name, family in families.items()))
    return generate_latest(registry)


def _with(family: Metric, values: dict[_Key, float]) -> Metric:
    made = Metric(family.name, family.documentation, family.type, family.unit)
    for (name, labels), value in values.items():
        made.add_sample(name, dict(labels), value)
    return made
