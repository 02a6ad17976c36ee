"""The metrics of tunnelmux-api for Prometheus, and their listener.

They have a separate listener without authentication, because the scraper is no user; they tell
nothing about a tenant. No label names a device, a person or a path: a request counts under its
route's template, or under `none` without a route.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunnelmux import __version__
from tunnelmux.api import server
from tunnelmux.api.problems import Refused
from tunnelmux.errors import RegistryError
from tunnelmux.transports.admission import Admission

__all__ = ["Measured", "Metrics", "serve_metrics"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_ANSWERS = {
    "http.response.start",
    "websocket.http.response.start",
    "websocket.accept",
    "websocket.close",
}

_GRACE = 1.0
# Seconds that a scrape in progress gets at the end.


class Metrics:
    """The metrics of one API.

    `followers` returns how many callers follow events now, `registry_failures` how many calls of
    the registry have failed so far, by kind. Both are called at each scrape.
    """

    def __init__(
        self, followers: Callable[[], int], registry_failures: Callable[[], Mapping[str, int]]
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(followers, registry_failures))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "tunnelmux_api_requests",
            "Requests, by method, route and class of status.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tunnelmux_api_request_seconds",
            "Time until the answer began.",
            ["route"],
            registry=self._registry,
        )
        self._sign_ins = Counter(
            "tunnelmux_api_sign_ins",
            "Sign-ins by people, by outcome.",
            ["outcome"],
            registry=self._registry,
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note one request whose answer begins with `status`, after so many seconds."""
        method = method if method in _METHODS or method == "WS" else "other"
        self._requests.labels(method, route, f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)

    @contextlib.contextmanager
    def counting_sign_in(self) -> Iterator[Callable[[str], None]]:
        """Count a sign-in by its outcome: the one that the block gives, or the code of its
        refusal."""
        try:
            yield lambda outcome: self._sign_ins.labels(outcome).inc()
        except Refused as exc:
            self._sign_ins.labels(exc.code).inc()
            raise
        except RegistryError:
            self._sign_ins.labels("registry_failed").inc()
            raise

    def render(self, accept: str) -> Response:
        """All metrics in the text format that a scraper's `Accept` asks for."""
        encode, content_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"content-type": content_type})


class _Now(Collector):
    def __init__(
        self, followers: Callable[[], int], registry_failures: Callable[[], Mapping[str, int]]
    ) -> None:
        self._followers = followers
        self._registry_failures = registry_failures

    def collect(self) -> Iterator[Metric]:
        text = "Callers that follow events now."
        yield GaugeMetricFamily("tunnelmux_api_event_followers", text, value=self._followers())
        failures = CounterMetricFamily(
            "tunnelmux_api_registry_failures",
            "Calls of the registry that it did not answer, or that failed.",
            labels=["kind"],
        )
        for kind, count in self._registry_failures().items():
            failures.add_metric([kind], count)
        yield failures
        info = GaugeMetricFamily("tunnelmux_build_info", "Always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


class Measured:
    """An ASGI application around another one, which counts the answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        begun = trio.current_time()
        is_answered = False

        async def counted(message: Message) -> None:
            nonlocal is_answered
            if not is_answered and message["type"] in _ANSWERS:
                is_answered = True
                seconds = trio.current_time() - begun
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.count_request(
                    scope.get("method", "WS"), route, _status_of(message), seconds
                )
            await send(message)

        await self._app(scope, receive, counted)


def _status_of(message: Message) -> int:
    """The status for the caller: closing a WebSocket before it opened is a 403 (ASGI 3.0)."""
    if message["type"] == "websocket.accept":
        return 101
    if message["type"] == "websocket.close":
        return 403
    status: int = message["status"]
    return status


@contextlib.asynccontextmanager
async def serve_metrics(metrics: Metrics, listener: socket.socket) -> AsyncIterator[None]:
    """Answer `GET /metrics` on this listener while the block runs."""

    async def scrape(request: Request) -> Response:
        return metrics.render(request.headers.get("accept", ""))

    app = Starlette(routes=[Route("/metrics", scrape)])
    async with server.serve(app, listener, _admission(), grace=_GRACE):  # type: ignore[arg-type]
        yield


def _admission() -> Admission:
    # Few scrapers read metrics, each with a connection or two.
    return Admission("metrics.listen", limit=64, per_address=32)
