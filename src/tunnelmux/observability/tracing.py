"""Spans of visits by OpenTelemetry: imported only where `[otel]` has an endpoint.

Ended spans go into a bounded queue that a separate thread empties: with a slow or missing receiver
spans are lost, but requests are not delayed.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["RequestTrace", "Tracing", "open_tracing"]

Field = tuple[bytes, bytes]

_BATCH = 512
# Spans per call to the receiver.

_GATHER = 0.2
# Seconds for which spans are collected before they are sent together.

_EXPORT = 5.0
# Seconds that one call may take, retries included.

_NAMES = (b"traceparent", b"tracestate")
_W3C = TraceContextTextMapPropagator()


class _Queue(SpanProcessor):
    """Spans waiting for the receiver; those over `limit` are dropped and counted."""

    def __init__(self, exporter: SpanExporter, limit: int) -> None:
        self.dropped = 0
        self.failed = 0
        self.sent = 0
        self._exporter = exporter
        self._limit = limit
        self._spans: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._export_all, name="otel", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        with self._changed:
            if self._is_closed or len(self._spans) >= self._limit:
                self.dropped += 1
                return
            self._spans.append(span)
            self._changed.notify()

    def _export_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._spans or self._is_closed)
                if not self._spans:
                    return
                if not self._is_closed and len(self._spans) < _BATCH:
                    self._changed.wait_for(lambda: self._is_closed, timeout=_GATHER)
                batch = [self._spans.popleft() for _ in range(min(_BATCH, len(self._spans)))]
            try:
                is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
            except Exception:  # noqa: BLE001  an error of the exporter costs these spans only
                is_sent = False
            if is_sent:
                self.sent += len(batch)
            else:
                self.failed += len(batch)

    def shutdown(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_EXPORT)
        self._exporter.shutdown()


class RequestTrace:
    """The span of one request, and those of its steps."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, now: Callable[[], int]) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        self._now = now
        self._waits_since: int | None = None

    def took(self, name: str, since: int, until: int | None = None) -> None:
        """Add a step that began at that time (nanoseconds since the epoch) and ends now."""
        child = self._tracer.start_span(name, self._context, start_time=since)
        child.end(self._now() if until is None else until)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A span for the block, also when the block fails."""
        since = self._now()
        try:
            yield
        finally:
            self.took(name, since)

    @property
    def traceparent(self) -> bytes:
        """The field by which what others do stands below this."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context)
        return carrier["traceparent"].encode()

    def goes_on(self, headers: list[Field]) -> list[Field]:
        """The request's fields with the trace context, so that the service's spans become children
        of this one.
        """
        self._waits_since = self._now()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context)
        kept = [pair for pair in headers if pair[0].lower() not in _NAMES]
        return kept + [(name.encode(), value.encode()) for name, value in carrier.items()]

    def answered(self) -> None:
        """Record the head of the answer."""
        if self._waits_since is not None:
            self.took("first byte", self._waits_since)
            self._waits_since = None

    def end(self, attributes: Mapping[str, str | int | None], problem: str | None) -> None:
        """End the request's span; `problem` is a failure on the proxy's or the device's side."""
        known = {key: value for key, value in attributes.items() if value is not None}
        self._span.set_attributes(known)
        if problem is not None:
            self._span.set_status(trace.StatusCode.ERROR, problem)
        self._span.end(self._now())


class Tracing:
    """Chooses the requests and connections that are sampled, and makes their spans."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        ratio: float,
        queue: int,
        service: str,
        most: int = 1000,
        now: Callable[[], int] = time.time_ns,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Of what comes within a second, *most* are chosen."""
        self._queue = _Queue(exporter, queue)
        self._now = now
        self._ratio = ratio
        self._most = most
        self._second = self._chosen = 0  # how many of this second were chosen
        self._chance = chance
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # those begin here that were chosen
            resource=Resource({"service.name": service}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._queue)
        self._tracer = self._provider.get_tracer("tunnelmux")

    @property
    def counts(self) -> dict[str, int]:
        """Counts of spans: sent, dropped from the queue, and not accepted by the receiver."""
        queue = self._queue
        return {"sent": queue.sent, "dropped": queue.dropped, "failed": queue.failed}

    def chooses(self, traceparent: bytes = b"") -> bool:
        """Whether a request with this field gets spans: its flag says so, or, where there is
        none or no sound one, chance; and there is room for it in this second."""
        if not self._is_wanted(traceparent):
            return False
        second = self._now() // 1_000_000_000
        if second != self._second:
            self._second, self._chosen = second, 0
        self._chosen += 1
        return self._chosen <= self._most

    def _is_wanted(self, traceparent: bytes) -> bool:
        if traceparent:
            parent = _parent_in([(b"traceparent", traceparent)])
            context = trace.get_current_span(parent).get_span_context()
            if context.is_valid:
                return context.trace_flags.sampled
        return self._chance() < self._ratio

    def begin(
        self, method: bytes, headers: list[Field], *, arrived_ago: float | None = None
    ) -> RequestTrace:
        """The trace of a sampled request whose head has just arrived. For the first request of a
        connection, *arrived_ago* is the seconds since the connection was accepted.
        """
        parent = _parent_in(headers)
        now = self._now()
        began = now - int((arrived_ago or 0.0) * 1e9)
        span = self._tracer.start_span(
            method.decode("ascii", "replace"),
            parent,
            kind=trace.SpanKind.SERVER,
            start_time=began,
        )
        found = RequestTrace(self._tracer, span, self._now)
        if arrived_ago is not None:
            found.took("accept", began, now)
        return found

    def tell(
        self,
        name: str,
        seconds: float,
        attributes: Mapping[str, str | int | None],
        *,
        steps: Mapping[str, float] | None = None,
        parent: bytes = b"",
        problem: str | None = None,
    ) -> None:
        """One span of something that has just ended and took so long. *steps* began with it and
        ended after so many seconds each; *parent* is a `traceparent`."""
        ended = self._now()
        began = ended - int(seconds * 1e9)
        above = _parent_in([(b"traceparent", parent)]) if parent else Context()
        span = self._tracer.start_span(name, above, kind=trace.SpanKind.SERVER, start_time=began)
        told = RequestTrace(self._tracer, span, self._now)
        for step, took in (steps or {}).items():
            told.took(step, began, min(began + int(took * 1e9), ended))
        told.end(attributes, problem)

    def close(self) -> None:
        """Send the queued spans and end the thread; waits at most 5 s."""
        self._provider.shutdown()


def _parent_in(headers: list[Field]) -> Context:
    carrier: dict[str, str] = {}
    for name, value in headers:
        if (key := name.lower()) in _NAMES:
            carrier.setdefault(key.decode(), value.decode("latin-1"))
    return _W3C.extract(carrier)


def open_tracing(endpoint: str, *, ratio: float, queue: int, most: int, service: str) -> Tracing:
    """A Tracing whose spans go to this OTLP receiver over HTTP, under this service's name."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT)
    return Tracing(exporter, ratio=ratio, queue=queue, most=most, service=service)
