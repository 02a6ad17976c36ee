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
from tunnelmux.observability.spans import tracing_from
from tunnelmux.observability.tracing import Tracing

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
    tracing = Tracing(exporter, ratio=ratio, queue=100, service="tests")
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


async def test_only_chosen_requests_leave_the_pump() -> None:
    """Chance is asked once for each request, whoever has it first, and each finds its way back."""
    asked: list[float] = []

    def chance() -> float:
        asked.append(1.0)
        return 0.0 if len(asked) % 4 == 0 else 1.0

    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, ratio=0.5, queue=200, service="tests", chance=chance)
    async with guarded() as this:
        await this.warm_up({})
        figures = this.proxy.visits.figures
        carried = figures.by_pump.by_class["2xx"]
        this.proxy._http.trace(tracing)
        visitor = await this.visitor()
        async with visitor.stream:
            for number in range(1, 13):
                assert (await visitor.ask(f"/{number}")).status == 200
            assert (await visitor.ask("/seen", SEEN)).status == 200
            assert (await visitor.ask("/not-seen", NOT_SEEN)).status == 200
        assert len(asked) == 12
        assert figures.by_pump.by_class["2xx"] == carried + 10
    await trio.to_thread.run_sync(tracing.close)
    spans = [span for span in exporter.get_finished_spans() if span.name == "GET"]
    paths = [span.attributes["url.path"] for span in spans]
    assert paths == ["/4", "/8", "/12", "/seen"]


async def test_the_accepting_belongs_to_the_first_request_of_a_connection_only() -> None:
    for first in (True, False):
        chances = iter([0.0, 1.0] if first else [1.0, 0.0])
        exporter = InMemorySpanExporter()
        tracing = Tracing(exporter, ratio=0.5, queue=200, service="tests", chance=chances.__next__)
        async with guarded() as this:
            await this.warm_up({})
            this.proxy._http.trace(tracing)
            visitor = await this.visitor()
            async with visitor.stream:
                for _ in range(2):
                    assert (await visitor.ask("/x")).status == 200
        await trio.to_thread.run_sync(tracing.close)
        names = {span.name for span in exporter.get_finished_spans()}
        assert ("accept" in names) is first


@pytest.mark.parametrize("flag", [b"00", b"01"])
def test_a_traceparent_decides_and_a_broken_one_does_not(flag: bytes) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, ratio=0.5, queue=1, service="tests", chance=lambda: 0.0)
    start = f"00-{TRACE}-{PARENT}-".encode()
    assert tracing.chooses(start + flag) is (flag == b"01")
    for broken in (b"", b"x", start + b"x", start.replace(b"b7", b"BB") + flag, start + b"1"):
        assert tracing.chooses(broken)
    tracing.close()


def test_so_many_are_seen_in_a_second() -> None:
    """Whoever asks for it: a flag is a visitor's word."""
    now = 5_000_000_000
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, ratio=1.0, queue=1, service="tests", most=3, now=lambda: now)
    seen = f"00-{TRACE}-{PARENT}-01".encode()
    assert [tracing.chooses(seen) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not tracing.chooses()
    now += 1_000_000_000
    assert tracing.chooses()
    tracing.close()


@pytest.mark.parametrize("in_pump", [True, False])
async def test_a_connection_to_a_tcp_port_has_a_span(
    in_pump: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_pump:  # as where there is no pump
        relayed = "tunnelmux.proxy.visitors.ingress_tcp._RelayedVisit.open"
        monkeypatch.setattr(relayed, lambda *_: False)
    exporter, agents = InMemorySpanExporter(), InMemorySpanExporter()
    tracing = Tracing(exporter, ratio=1.0, queue=100, service="tests")
    of_agent = Tracing(agents, ratio=1.0, queue=100, service="tests")
    async with guarded(tcp="web") as this:
        this.proxy._tcp.tracing = tracing
        this.agent._streams.tracing = of_agent
        [address] = this.proxy.tcp_addresses
        visitor = await trio.open_tcp_stream("127.0.0.1", address.port)
        async with visitor:
            await visitor.send_all(b"GET /x HTTP/1.1\r\n\r\n")
            assert await visitor.receive_some()
        expected = {"TCP", "stream open"} if in_pump else {"TCP"}
        spans = await spans_of(exporter, len(expected))
        assert {span.name for span in spans} == expected
        [whole] = [span for span in spans if span.name == "TCP"]
        assert whole.attributes["tunnelmux.device"] == "dev1"
        assert whole.attributes["tunnelmux.service"] == "web"
        assert whole.attributes["tunnelmux.bytes_in"] == 19
        assert whole.attributes["tunnelmux.bytes_out"] > 0
        assert whole.status.is_unset
        for span in spans:
            assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
        spans = await spans_of(agents, 2)
        [at_agent] = [span for span in spans if span.name == "CONNECT"]
        assert at_agent.attributes["tunnelmux.service"] == "web"
        assert at_agent.attributes["tunnelmux.bytes_to_target"] == 19
        assert {span.name for span in spans} == {"CONNECT", "target connect"}
    for one in (tracing, of_agent):
        await trio.to_thread.run_sync(one.close)


async def test_what_an_agent_does_stands_below_what_the_proxy_does() -> None:
    """On a raw stream, and where the agent reads the request itself."""
    proxys, agents = InMemorySpanExporter(), InMemorySpanExporter()
    tracing = Tracing(proxys, ratio=0.0, queue=100, service="proxy")
    of_agent = Tracing(agents, ratio=0.0, queue=100, service="agent")
    async with guarded(named_sites=("named",)) as this:
        await this.warm_up({})
        this.proxy._http.trace(tracing)
        this.agent._streams.tracing = of_agent
        for host in ("web--dev1.localhost", "named--dev1.localhost"):
            assert (await this.ask("/x", SEEN, host=host)).status == 200
            assert (await this.ask("/x", NOT_SEEN, host=host)).status == 200
        spans = await spans_of(agents, 4)
    below = {span.name: span for span in spans if span.name != "target connect"}
    for one in (tracing, of_agent):
        await trio.to_thread.run_sync(one.close)
    wholes = [span for span in proxys.get_finished_spans() if span.name == "GET"]
    assert len(wholes) == 2
    assert set(below) == {"CONNECT", "GET"}
    for name, whole in zip(("CONNECT", "GET"), wholes, strict=True):
        assert below[name].parent.span_id == whole.context.span_id
        assert below[name].context.trace_id == whole.context.trace_id
        [step] = [one for one in spans if one.parent.span_id == below[name].context.span_id]
        assert step.name == "target connect"


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
    tracing = Tracing(exporter, ratio=1.0, queue=10, service="tests")
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
        tracing_from(OtelConfig(endpoint="http://127.0.0.1:4318/v1/traces"), "tests")
    assert tracing_from(OtelConfig(), "tests") is None
