"""GET /metrics: counters and gauges in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import tunnelmux
from tunnelmux.proxy.internal.answers import Answer

__all__ = ["Gauges", "Metrics"]

Gauges = Callable[[], dict[str, tuple[str, float]]]
"""Gauges, name to (help, value); computed at each scrape only."""


class Metrics:
    """The proxy's metrics. No label names a device, a session or a stream: there are too many."""

    def __init__(
        self, gauges: Gauges, events: Mapping[str, int], more: Iterable[Collector] = ()
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(gauges, events))
        for collector in more:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._calls = Counter(
            "tunnelmux_internal_calls",
            "Calls of the internal API, by route and outcome.",
            ["method", "route", "code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tunnelmux_internal_call_seconds",
            "Duration of the plain calls of the internal API.",
            ["route"],
            registry=self._registry,
        )

    def count(self, method: str, route: str, code: str, seconds: float | None = None) -> None:
        """Count one call; `code` is "ok" or an error code. Streaming calls have no duration."""
        self._calls.labels(method, route, code).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)

    def render(self) -> Answer:
        """All metrics in Prometheus' text format."""
        return Answer(
            generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode("ascii")
        )


class _Now(Collector):
    def __init__(self, gauges: Gauges, events: Mapping[str, int]) -> None:
        self._gauges = gauges
        self._events = events

    def collect(self) -> Iterator[Metric]:
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(name, text, value=value)
        events = CounterMetricFamily(
            "tunnelmux_session_events",
            "Sessions that connected, were replaced, or were lost.",
            labels=["type"],
        )
        for kind in ("connected", "replaced", "lost"):
            events.add_metric([kind], self._events[kind])
        yield events
        info = GaugeMetricFamily("tunnelmux_build_info", "Always 1.", labels=["version"])
        info.add_metric([tunnelmux.__version__], 1)
        yield info
