"""Metrics of visitors, tunnels and the pump, read from their own counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tunnelmux.proxy.tunnels.figures import TunnelFigures
from tunnelmux.proxy.visitors.figures import VisitorFigures
from tunnelmux.proxy.visitors.visit import VisitRegister

if TYPE_CHECKING:
    from tunnelmux.pump.counts import Histogram

__all__ = ["Traffic"]


class Traffic(Collector):
    """A collector; `batches` returns the pump's figures, or None where there is no pump."""

    def __init__(
        self,
        visits: VisitRegister,
        tunnels: Callable[[], TunnelFigures],
        batches: Callable[[], Histogram | None],
    ) -> None:
        self._visits = visits
        self._tunnels = tunnels
        self._batches = batches

    def collect(self) -> Iterator[Metric]:
        yield from self._requests(self._visits.figures)
        yield from self._relays(self._visits.figures)
        visits = GaugeMetricFamily(
            "tunnelmux_visits_by_way", "Open visits, by way.", labels=["way"]
        )
        for way, count in sorted(self._visits.by_way().items()):
            visits.add_metric([way], count)
        yield visits
        yield from self._of_tunnels(self._tunnels(), self._visits.figures)
        if (batches := self._batches()) is not None:
            text = "Duration of the pump's batches."
            yield _histogram("tunnelmux_pump_batch_seconds", text, {}, batches)

    def _requests(self, figures: VisitorFigures) -> Iterator[Metric]:
        ways = {"pump": figures.by_pump, "h11": figures.by_h11}
        requests = CounterMetricFamily(
            "tunnelmux_http_requests",
            "Finished requests of visitors, by path through the proxy and class of status.",
            labels=["way", "status"],
        )
        content = CounterMetricFamily(
            "tunnelmux_http_bytes",
            "Bytes of content of visitors' requests (in) and of the answers (out).",
            labels=["way", "direction"],
        )
        seconds = HistogramMetricFamily(
            "tunnelmux_http_request_seconds",
            "From the head of a request to the end of its answer.",
            labels=["way"],
        )
        for way, counts in ways.items():
            for status, count in counts.by_class.items():
                requests.add_metric([way, status], count)
            content.add_metric([way, "in"], counts.bytes_in)
            content.add_metric([way, "out"], counts.bytes_out)
            seconds.add_metric([way], _buckets(counts.seconds), counts.seconds.sum)
        yield from (requests, content, seconds)
        reasons = CounterMetricFamily(
            "tunnelmux_http_refusals",
            "Requests that the proxy answered with a Tunnelmux-Reason.",
            labels=["reason"],
        )
        for reason, count in sorted(figures.reasons.items()):
            reasons.add_metric([reason], count)
        yield reasons

    def _relays(self, figures: VisitorFigures) -> Iterator[Metric]:
        relays = CounterMetricFamily(
            "tunnelmux_relays", "Finished connections to TCP ports.", labels=["outcome"]
        )
        for outcome in ("finished", "broken", "refused"):
            relays.add_metric([outcome], figures.relays[outcome])
        yield relays
        moved = CounterMetricFamily(
            "tunnelmux_relay_bytes",
            "Bytes of those connections, from visitors (in) and to them (out).",
            labels=["direction"],
        )
        moved.add_metric(["in"], figures.relayed_in)
        moved.add_metric(["out"], figures.relayed_out)
        yield moved
        passed = CounterMetricFamily(
            "tunnelmux_visitors_passed",
            "Connections passed to other workers (out) and taken from them (in).",
            labels=["direction"],
        )
        passed.add_metric(["in"], figures.taken_over)
        passed.add_metric(["out"], figures.passed_on)
        yield passed

    def _of_tunnels(self, tunnels: TunnelFigures, figures: VisitorFigures) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "tunnelmux_tunnels_refused",
            "Refused agents, by reason; no-handshake: no valid handshake came.",
            labels=["reason"],
        )
        for reason, count in sorted(tunnels.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        failures = CounterMetricFamily(
            "tunnelmux_tls_failures", "TLS handshakes that failed.", labels=["listener"]
        )
        failures.add_metric(["tunnel"], tunnels.tls_failures)
        failures.add_metric(["http"], figures.tls_failures)
        yield failures
        text = "How often a stream waited because its agent had not read (window used up)."
        yield CounterMetricFamily("tunnelmux_window_stalls", text, value=tunnels.window_stalls)
        moved = CounterMetricFamily(
            "tunnelmux_tunnel_bytes",
            "Bytes of the agents' sessions, without TLS and WebSocket framing.",
            labels=["direction"],
        )
        moved.add_metric(["to_agents"], tunnels.bytes_to_agents)
        moved.add_metric(["from_agents"], tunnels.bytes_from_agents)
        yield moved


def _histogram(
    name: str, text: str, labels: Mapping[str, str], histogram: Histogram
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), _buckets(histogram), histogram.sum)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    limits = [(f"{limit:g}", count) for limit, count in histogram.buckets]
    return [*limits, ("+Inf", histogram.count)]
