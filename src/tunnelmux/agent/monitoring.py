"""The agent's listener for monitoring, on this machine only: `GET /metrics` and `GET /healthz`.

Imported where [metrics] asks for it: nothing else in an agent needs prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, Protocol

import msgspec
import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import tunnelmux
from tunnelmux.agent.figures import AgentFigures
from tunnelmux.agent.health import HealthChecks
from tunnelmux.agent.local_http import LocalHttp, send_content
from tunnelmux.agent.sessions import SessionNow
from tunnelmux.config import Address
from tunnelmux.config.rules import names_this_machine
from tunnelmux.http import Refusal, Refused, RequestHead, ServerConnection
from tunnelmux.limits import IngressLimits
from tunnelmux.observability.spans import spans_lost
from tunnelmux.transports.tcp import bound_addresses, open_listeners

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing

__all__ = ["Monitored", "MonitoringListener"]

_MOST_CALLERS = 16
# Concurrent connections. A scraper has one or two; visitors never connect here.

_JSON = b"application/json"


class Monitored(Protocol):
    """The interface of a running agent for monitoring."""

    figures: AgentFigures

    @property
    def health(self) -> HealthChecks:
        """The results of health checks."""

    @property
    def name(self) -> str:
        """The device's name."""

    @property
    def is_draining(self) -> bool:
        """Whether it is draining."""

    @property
    def has_proxy(self) -> bool:
        """Whether a proxy is configured."""

    @property
    def main_server_is_connected(self) -> bool | None:
        """Whether the connection to the main server is up; None without one."""

    @property
    def sessions_now(self) -> list[SessionNow]:
        """The sessions with the proxy that are up."""

    @property
    def streams_now(self) -> int:
        """Live streams."""

    @property
    def tracing(self) -> Tracing | None:
        """What makes spans, if anything does."""

    def command_figures(self) -> dict[str, object]:
        """The counters of commands for /v1/info."""


class MonitoringListener:
    """Answers requests on one address, while `run` runs."""

    def __init__(
        self, agent: Monitored, listeners: list[trio.SocketListener], limits: IngressLimits
    ) -> None:
        self._agent = agent
        self._listeners = listeners
        self._http = LocalHttp(self._answer, limits, most_callers=_MOST_CALLERS, keep=False)
        self._registry = CollectorRegistry()
        self._registry.register(_Now(agent))
        ProcessCollector(registry=self._registry)
        self._routes: dict[str, Callable[[], tuple[int, bytes, bytes]]] = {
            "/metrics": self._metrics,
            "/healthz": self._health,
        }

    @classmethod
    async def open(
        cls, agent: Monitored, address: Address, limits: IngressLimits
    ) -> MonitoringListener:
        """Listen on the address. Raises ConfigError when that fails."""
        return cls(agent, await open_listeners(address.host, address.port), limits)

    @property
    def address(self) -> Address:
        """The address it listens on, with the port that the system chose for 0."""
        return Address(*bound_addresses(self._listeners)[0])

    async def run(self) -> NoReturn:
        """Serve until cancelled; then the listener is closed."""
        await self._http.serve(self._listeners)
        raise AssertionError("it serves until it is cancelled")

    async def aclose(self) -> None:
        """Stop listening, if `run` was not started."""
        for listener in self._listeners:
            await listener.aclose()

    async def _answer(self, server: ServerConnection, request: RequestHead) -> None:
        if not names_this_machine(request.host.decode("latin-1")):
            message = "Ask for 127.0.0.1 or localhost: other names are nothing for this machine."
            raise Refused(Refusal(403, "forbidden", message))
        route = self._routes.get(request.path.partition("?")[0])
        if route is None:
            raise Refused(Refusal(404, "bad-request", "Only /metrics and /healthz are here."))
        if request.method not in {b"GET", b"HEAD"}:
            allow = [(b"Allow", b"GET, HEAD")]
            raise Refused(Refusal(405, "bad-request", "Use GET or HEAD here.", headers=allow))
        status, content_type, body = route()
        # One request per connection: two per minute are no reason to keep any.
        fields = [(b"Cache-Control", b"no-store"), (b"Connection", b"close")]
        await send_content(server, request, status, body, content_type, fields)

    def _metrics(self) -> tuple[int, bytes, bytes]:
        return 200, CONTENT_TYPE_LATEST.encode("ascii"), generate_latest(self._registry)

    def _health(self) -> tuple[int, bytes, bytes]:
        content = describe_health(self._agent)
        status = 200 if content["status"] == "up" else 503
        return status, _JSON, msgspec.json.format(msgspec.json.encode(content)) + b"\n"


def describe_health(agent: Monitored) -> dict[str, object]:
    """The answer of /healthz: `status` is up, down or draining."""
    figures = agent.figures
    is_up = figures.is_up or not agent.has_proxy
    if agent.main_server_is_connected is not None:
        is_up = is_up and agent.main_server_is_connected
    status = "draining" if agent.is_draining else "up" if is_up else "down"
    content: dict[str, object] = {"status": status, "device": agent.name}
    if agent.has_proxy:
        session: dict[str, object] = {"up": figures.is_up, "since": _time(figures.changed_at)}
        if not figures.is_up:
            session["why"] = figures.why
        content["session"] = session
        content["sessions"] = [
            {"node": now.node or None, "proxy": now.url, "since": _time(now.since)}
            for now in agent.sessions_now
        ]
    if agent.main_server_is_connected is not None:
        content["main_server"] = {"up": agent.main_server_is_connected}
    return content | {
        "reconnects": figures.reconnects,
        "streams": agent.streams_now,
        "bytes": {"to_proxy": figures.bytes_to_proxy, "from_proxy": figures.bytes_from_proxy},
        "services": [
            {
                "service": health.service.name,
                "up": not health.down,
                "since": _time(health.since) if health.since is not None else None,
                **({"why": health.down} if health.down else {}),
            }
            for health in agent.health
        ],
        "target_failures": [
            {
                "service": failure.service,
                "reason": failure.reason,
                "count": count,
                "last": _time(figures.last_failures[failure]),
            }
            for failure, count in sorted(figures.target_failures.items())
        ],
        "commands": agent.command_figures(),
    }


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class _Now(Collector):
    """A collector that reads the counters at each request only."""

    def __init__(self, agent: Monitored) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        yield from self._session()
        yield from self._traffic()
        yield from self._commands()
        if self._agent.tracing is not None:
            text = "Spans that no receiver got, since the start."
            lost = spans_lost(self._agent.tracing)
            yield GaugeMetricFamily("tunnelmux_agent_spans_lost", text, value=lost)
        info = GaugeMetricFamily("tunnelmux_build_info", "Always 1.", labels=["version"])
        info.add_metric([tunnelmux.__version__], 1)
        yield info

    def _session(self) -> Iterator[Metric]:
        agent, figures = self._agent, self._agent.figures
        if agent.has_proxy:
            text = "1 while there is a session with the proxy."
            yield GaugeMetricFamily("tunnelmux_agent_session_up", text, value=figures.is_up)
            text = "Sessions with the proxy that are up: two where it has several nodes."
            yield GaugeMetricFamily("tunnelmux_agent_sessions_up", text, value=figures.sessions_now)
            text = "When the present session began or the last one ended."
            moment = figures.changed_at.timestamp()
            yield GaugeMetricFamily(
                "tunnelmux_agent_session_changed_timestamp_seconds", text, value=moment
            )
        if agent.main_server_is_connected is not None:
            text = "1 while the connection to the main server is up."
            value = agent.main_server_is_connected
            yield GaugeMetricFamily("tunnelmux_agent_main_server_up", text, value=value)
        text = "Sessions with the proxy that were made."
        yield CounterMetricFamily("tunnelmux_agent_sessions", text, value=figures.sessions)
        failures = CounterMetricFamily(
            "tunnelmux_agent_connect_failures",
            "Attempts to make a session that failed: the proxy's reason, unreachable, or "
            "configuration (a token file that cannot be read).",
            labels=["reason"],
        )
        for reason, count in sorted(figures.connect_failures.items()):
            failures.add_metric([reason], count)
        yield failures

    def _traffic(self) -> Iterator[Metric]:
        figures = self._agent.figures
        text = "Live streams."
        yield GaugeMetricFamily("tunnelmux_agent_streams", text, value=self._agent.streams_now)
        text = "Streams that were served, including live ones."
        yield CounterMetricFamily("tunnelmux_agent_streams_served", text, value=figures.streams)
        moved = CounterMetricFamily(
            "tunnelmux_agent_bytes", "Bytes of sessions with the proxy.", labels=["direction"]
        )
        moved.add_metric(["to_proxy"], figures.bytes_to_proxy)
        moved.add_metric(["from_proxy"], figures.bytes_from_proxy)
        yield moved
        text = "How often a stream waited because the proxy had not read."
        stalls = figures.window_stalls
        yield CounterMetricFamily("tunnelmux_agent_window_stalls", text, value=stalls)
        relays = CounterMetricFamily(
            "tunnelmux_agent_relays",
            "Ended raw connections to targets; they also carry the requests that the proxy reads.",
            labels=["outcome"],
        )
        for outcome in ("finished", "broken"):
            relays.add_metric([outcome], figures.relays[outcome])
        yield relays
        requests = CounterMetricFamily(
            "tunnelmux_agent_requests",
            "Requests that the agent itself forwarded, by class of status.",
            labels=["status"],
        )
        for status, count in sorted(figures.requests.items()):
            requests.add_metric([status], count)
        yield requests
        up = GaugeMetricFamily(
            "tunnelmux_agent_service_up",
            "1 while the target of a service with a check is up.",
            labels=["service"],
        )
        for health in self._agent.health:
            up.add_metric([health.service.name], not health.down)
        yield up
        failures = CounterMetricFamily(
            "tunnelmux_agent_target_failures",
            "Requests and connections that a service's target refused, broke or did not answer.",
            labels=["service", "reason"],
        )
        for failure, count in sorted(figures.target_failures.items()):
            failures.add_metric([failure.service, failure.reason], count)
        yield failures

    def _commands(self) -> Iterator[Metric]:
        figures = self._agent.command_figures()
        gauges = {
            "running": ("tunnelmux_agent_commands_running", "Commands that run now."),
            "connections": ("tunnelmux_agent_ssh_connections", "Open SSH connections."),
        }
        counters = {
            "commands": ("tunnelmux_agent_commands", "Commands that were started."),
            "refused": ("tunnelmux_agent_commands_refused", "Refused commands."),
            "connects": ("tunnelmux_agent_ssh_connects", "SSH connections that were made."),
            "connect_failures": ("tunnelmux_agent_ssh_connect_failures", "SSH logins that failed."),
            "reused": ("tunnelmux_agent_commands_reused", "Commands on a kept connection."),
            "not_killed": (
                "tunnelmux_agent_commands_not_killed",
                "Commands that may still run after their timeout.",
            ),
        }
        for key, (name, text) in gauges.items():
            if key in figures:
                yield GaugeMetricFamily(name, text, value=_number(figures[key]))
        for key, (name, text) in counters.items():
            if key in figures:
                yield CounterMetricFamily(name, text, value=_number(figures[key]))


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
