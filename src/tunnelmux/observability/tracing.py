"""Spans of visits by OpenTelemetry: imported only where `[otel]` has an endpoint.

A span that has ended goes into a bounded queue, which a thread of its own empties: a receiver that
is slow, or not there, costs spans and never a request.
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
# Spans of one call to the receiver.

_GATHER = 0.2
# Seconds for which spans gather before they are sent together.

_EXPORT = 5.0
# Seconds that one call may take, with what it is tried again.

_NAMES = (b"traceparent", b"tracestate")
_W3C = TraceContextTextMapPropagator()


class _Queue(SpanProcessor):
    """Spans on their way to the receiver; one over `limit` is dropped, and counted."""

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
    """The spans of one request: its own, and those of the steps on its way."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, now: Callable[[], int]) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        self._now = now
        self._waits_since: int | None = None

    def took(self, name: str, since: int, until: int | None = None) -> None:
        """A step that began then, and is over (nanoseconds since the epoch)."""
        child = self._tracer.start_span(name, self._context, start_time=since)
        child.end(self._now() if until is None else until)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A span for the length of the block, also of one that fails."""
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
        """The fields with which the request goes to the service, whose spans are below this one."""
        self._waits_since = self._now()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context)
        kept = [pair for pair in headers if pair[0].lower() not in _NAMES]
        return kept + [(name.encode(), value.encode()) for name, value in carrier.items()]

    def answered(self) -> None:
        """The head of the answer is here."""
        if self._waits_since is not None:
            self.took("first byte", self._waits_since)
            self._waits_since = None

    def end(self, attributes: Mapping[str, str | int | None], problem: str | None) -> None:
        """The request is over; `problem` is what went wrong on this side of the visitor."""
        known = {key: value for key, value in attributes.items() if value is not None}
        self._span.set_attributes(known)
        if problem is not None:
            self._span.set_status(trace.StatusCode.ERROR, problem)
        self._span.end(self._now())


class Tracing:
    """Chooses which requests and connections are seen, and makes their spans."""

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
        """Spans that were sent, that did not fit into the queue, and that no receiver took."""
        queue = self._queue
        return {"sent": queue.sent, "dropped": queue.dropped, "failed": queue.failed}

    def chooses(self, traceparent: bytes = b"") -> bool:
        """Whether what comes with this field is to be seen: its flag says so, or, where there is
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
        """The trace of a request that was chosen and whose head has just come. The first on its
        connection says how many seconds ago that was accepted."""
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
        """Send what is there, and end the thread; waits for 5 s at most."""
        self._provider.shutdown()


def _parent_in(headers: list[Field]) -> Context:
    carrier: dict[str, str] = {}
    for name, value in headers:
        if (key := name.lower()) in _NAMES:
            carrier.setdefault(key.decode(), value.decode("latin-1"))
    return _W3C.extract(carrier)


def open_tracing(endpoint: str, *, ratio: float, queue: int, most: int, service: str) -> Tracing:
    """Traces of this service whose spans go to this OTLP receiver, over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT)
    return Tracing(exporter, ratio=ratio, queue=queue, most=most, service=service)
