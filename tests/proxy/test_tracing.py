"""Spans of visitors' requests: their parents, their steps, and a receiver that is slow or real."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import h11
import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.guarded import guarded
from tunnelmux.config import OtelConfig
from tunnelmux.errors import ConfigError
from tunnelmux.observability.tracing import Tracing
from tunnelmux.proxy.traces import tracing_from

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SEEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
NOT_SEEN = {"traceparent": f"00-{TRACE}-{PARENT}-00"}

STEPS = {"accept", "route", "stream open", "first byte"}


async def spans_of(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    with trio.fail_after(30):
        while len(exporter.get_finished_spans()) < count:  # noqa: ASYNC110  a thread tells nobody
            await trio.sleep(0.01)
    return list(exporter.get_finished_spans())


@asynccontextmanager
async def traced(ratio: float = 1.0) -> AsyncIterator[tuple]:  # type: ignore[type-arg]
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, ratio=ratio, queue=100)
    async with guarded() as this:
        this.proxy._http.trace(tracing)
        yield this, exporter, tracing
    await trio.to_thread.run_sync(tracing.close)


async def test_a_request_has_its_steps_below_it_and_the_service_too() -> None:
    async with traced() as (this, exporter, _):
        answer = await this.ask("/x?secret=1", SEEN)
        assert answer.status == 200
        spans = await spans_of(exporter, 5)
        [whole] = [span for span in spans if span.name == "GET"]
        steps = [span for span in spans if span is not whole]
        assert {span.name for span in steps} == STEPS
        assert f"{whole.context.trace_id:032x}" == TRACE
        assert f"{whole.parent.span_id:016x}" == PARENT
        for step in steps:
            assert step.parent.span_id == whole.context.span_id
            assert whole.start_time <= step.start_time <= step.end_time <= whole.end_time
        # What the service does stands below what the proxy does.
        assert answer.seen["traceparent"] == [f"00-{TRACE}-{whole.context.span_id:016x}-01"]
        assert answer.seen["tracestate"] == ["vendor=1"]
        assert whole.attributes["http.response.status_code"] == 200
        assert whole.attributes["tunnelmux.device"] == "dev1"
        assert whole.attributes["url.path"] == "/x"


async def test_the_second_request_of_a_connection_was_not_accepted_again() -> None:
    async with traced() as (this, exporter, _):
        visitor = await this.visitor()
        async with visitor.stream:
            for _ in range(3):
                assert (await visitor.ask("/x", SEEN)).status == 200
        spans = await spans_of(exporter, 13)
        assert [span.name for span in spans].count("accept") == 1
        assert [span.name for span in spans].count("first byte") == 3


async def test_the_parents_flag_and_the_ratio_decide_what_is_seen() -> None:
    async with traced(ratio=0.0) as (this, exporter, tracing):
        for _ in range(3):
            answer = await this.ask("/x", NOT_SEEN)
            assert answer.seen["traceparent"] == [NOT_SEEN["traceparent"]]
            assert "traceparent" not in (await this.ask("/x")).seen
        assert (await this.ask("/x", SEEN)).status == 200
        assert len(await spans_of(exporter, 5)) == 5
        assert tracing.counts["dropped"] == 0
    async with traced(ratio=1.0) as (this, exporter, _):
        answer = await this.ask("/x")
        [whole] = [span for span in await spans_of(exporter, 5) if span.name == "GET"]
        assert whole.parent is None
        assert f"{whole.context.trace_id:032x}" in answer.seen["traceparent"][0]


async def test_a_refusal_has_its_reason() -> None:
    async with traced() as (this, exporter, _):
        assert (await this.ask("/x", SEEN, host="nowhere.localhost")).status == 404
        spans = await spans_of(exporter, 3)
        [whole] = [span for span in spans if span.name == "GET"]
        assert whole.attributes["error.type"] == "unknown-device"
        assert whole.attributes["http.response.status_code"] == 404
        assert whole.status.is_unset  # the visitor's own doing


async def test_without_it_what_a_visitor_says_passes_through() -> None:
    async with guarded() as this:
        for _ in range(3):  # by h11, then in the pump
            answer = await this.ask("/x", SEEN)
            assert answer.seen["traceparent"] == [SEEN["traceparent"]]
            assert answer.seen["tracestate"] == ["vendor=1"]


class Stuck(SpanExporter):
    """A receiver that takes nothing until it is let go."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.go_on = threading.Event()
        self.spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.set()
        assert self.go_on.wait(60)
        self.spans += len(spans)
        return SpanExportResult.FAILURE


async def test_a_receiver_that_is_stuck_costs_spans_and_no_request() -> None:
    exporter = Stuck()
    tracing = Tracing(exporter, ratio=1.0, queue=10)
    async with guarded() as this:
        this.proxy._http.trace(tracing)
        this.proxy._tracing = tracing
        assert (await this.ask("/x")).status == 200
        assert await trio.to_thread.run_sync(exporter.called.wait, 30)
        for _ in range(4):
            assert (await this.ask("/x")).status == 200
        counts = tracing.counts
        assert counts["dropped"] >= 5  # of 20, 10 wait
        assert this.proxy._gauges()["tunnelmux_spans_lost"][1] >= counts["dropped"]
        exporter.go_on.set()
    counts = tracing.counts
    assert counts["sent"] == 0
    assert counts["failed"] == exporter.spans > 0


@pytest.mark.slow
async def test_a_real_receiver_gets_them_by_otlp_over_http() -> None:
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    async def receive(stream: trio.SocketStream) -> None:
        server, body = h11.Connection(h11.SERVER), b""
        while True:
            event = server.next_event()
            if event is h11.NEED_DATA:
                server.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                path = event.target.decode()
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                got.append((path, ExportTraceServiceRequest.FromString(body)))
                answer = h11.Response(status_code=200, headers=[("Content-Length", "0")])
                await stream.send_all(server.send(answer) + server.send(h11.EndOfMessage()))
                server.start_next_cycle()
                body = b""
            else:
                return

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, receive, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        otel = OtelConfig(endpoint=f"http://127.0.0.1:{port}/v1/traces", ratio=0.0)
        async with guarded(otel=otel) as this:
            assert (await this.ask("/x", SEEN)).status == 200
            assert (await this.ask("/x", NOT_SEEN)).status == 200
            with trio.fail_after(30):
                while not got:  # noqa: ASYNC110
                    await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    spans = []
    for path, request in got:
        assert path == "/v1/traces"
        for resource in request.resource_spans:
            [name] = [a.value for a in resource.resource.attributes if a.key == "service.name"]
            assert name.string_value == "tunnelmux-proxy"
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == STEPS | {"GET"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tunnelmux.observability.tracing", None)
    with pytest.raises(ConfigError, match=r"install tunnelmux\[otel\]"):
        tracing_from(OtelConfig(endpoint="http://127.0.0.1:4318/v1/traces"))
    assert tracing_from(OtelConfig()) is None
