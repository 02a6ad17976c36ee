"""Metrics of the listeners' places for new connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunnelmux.transports.admission import Admission

__all__ = ["Arrivals"]


class Arrivals(Collector):
    """For each listener: places in use, connections that wait for one, that lost theirs, and that
    got none.
    """

    def __init__(self, admissions: Callable[[], Iterable[Admission]]) -> None:
        self._admissions = admissions

    def collect(self) -> Iterator[Metric]:
        places = GaugeMetricFamily(
            "tunnelmux_arrivals",
            "Connections that have not sent their first request yet.",
            labels=["listener"],
        )
        waiting = GaugeMetricFamily(
            "tunnelmux_arrivals_waiting",
            "Connections that wait for such a place.",
            labels=["listener"],
        )
        gave_way = CounterMetricFamily(
            "tunnelmux_arrivals_gave_way",
            "Connections that were ended to make room for others.",
            labels=["listener"],
        )
        refused = CounterMetricFamily(
            "tunnelmux_arrivals_refused", "Connections that got no place.", labels=["listener"]
        )
        for admission in self._admissions():
            labels = [admission.listener]
            places.add_metric(labels, len(admission))
            waiting.add_metric(labels, admission.waiting)
            gave_way.add_metric(labels, admission.gave_way)
            refused.add_metric(labels, admission.refused)
        yield from (places, waiting, gave_way, refused)
