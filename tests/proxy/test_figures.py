"""What /metrics and the log say of visitors' traffic, carried in the pump and by h11."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from structlog.typing import EventDict

from support.carried_http import OK, get, rig
from support.guarded import Guarded, guarded
from support.proxies import agent_of, proxy_config, running
from tunnelmux.errors import ConnectError
from tunnelmux.proxy import RunningProxy
from tunnelmux.proxy.visitors import long_visits
from tunnelmux.pump.counts import Histogram, RequestCounts
from tunnelmux.relay import abort


def samples(proxy: RunningProxy) -> dict[str, float]:
    """Each sample of /metrics, as `name{label="value"}` with its labels in order."""
    found = {}
    text = proxy._internal.metrics.render().body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def until(proxy: RunningProxy, name: str, value: float) -> dict[str, float]:
    """The samples, once that one has this value: what is over is counted a moment later."""
    with trio.fail_after(20):
        while (found := samples(proxy)).get(name) != value:
            await trio.lowlevel.checkpoint()
    return found


POST = b"POST /2 HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 3\r\n\r\nabc"


async def test_requests_are_counted_by_status_and_by_who_carried_them() -> None:
    async with rig() as target:
        await target.first_exchange()  # by h11
        peer, _ = await target.ask(get("/1"))
        await peer.send(OK + b"ok")
        await target.visitor.read_until(b"ok")
        await target.visitor.send(POST)
        await peer.read_until(b"abc")
        await peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")
        await target.visitor.read_until(b"gone")
        await target.visitor.send(b"GET / HTTP/1.1\r\nHost: none.localhost\r\n\r\n")
        await target.visitor.read_until(b'"reason":"unknown-device"}\n')
        found = await until(
            target.proxy, 'tunnelmux_http_requests_total{status="4xx",way="h11"}', 1
        )
    assert found['tunnelmux_http_requests_total{status="2xx",way="h11"}'] == 1
    assert found['tunnelmux_http_requests_total{status="2xx",way="pump"}'] == 1
    assert found['tunnelmux_http_requests_total{status="4xx",way="pump"}'] == 1
    assert found['tunnelmux_http_bytes_total{direction="in",way="pump"}'] == 3
    assert found['tunnelmux_http_bytes_total{direction="out",way="pump"}'] == 6
    assert found['tunnelmux_http_refusals_total{reason="unknown-device"}'] == 1
    assert found['tunnelmux_http_request_seconds_count{way="pump"}'] == 2
    assert found['tunnelmux_http_request_seconds_bucket{le="+Inf",way="pump"}'] == 2
    assert 0 < found['tunnelmux_http_request_seconds_sum{way="pump"}'] < 60
    assert found["tunnelmux_pump_batch_seconds_count"] > 2
    assert found['tunnelmux_tunnel_bytes_total{direction="to_agents"}'] > 100
    assert found['tunnelmux_visits_by_way{way="http"}'] == 1
    assert found["tunnelmux_window_stalls_total"] == 0


async def test_a_visitor_who_leaves_is_counted_and_is_no_problem() -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            peer, _ = await target.ask(get("/1"))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
            await target.visitor.read_until(b"ok")
            await abort(target.visitor.stream)
            await until(target.proxy, 'tunnelmux_http_requests_total{status="2xx",way="pump"}', 1)
            # By h11 as well: an answer that has not begun.
            target.visitor = await target.new_visitor()
            upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
            await target.visitor.send(get("/2", upgrade))
            peer = await target.connection()
            await peer.read_head()
            await abort(target.visitor.stream)
            await until(target.proxy, 'tunnelmux_http_requests_total{status="none",way="h11"}', 1)
    for path in ("/1", "/2"):
        [line] = [line for line in logs if line.get("path") == path and line["event"] == "request"]
        assert line["ended"] == "the visitor left"
        assert "problem" not in line
        assert line["log_level"] == "info"


async def test_refused_agents_are_counted_by_reason() -> None:
    async with running(proxy_config()) as proxy:
        for device in ("stranger", "other"):
            with pytest.raises(ConnectError):
                async with agent_of(proxy, device):
                    pass
        async with await trio.open_tcp_stream(*proxy.tunnel_address) as stranger:
            await stranger.send_all(b"what is this?\r\n\r\n")
            assert await stranger.receive_some()
        found = await until(proxy, 'tunnelmux_tunnels_refused_total{reason="no-handshake"}', 1)
        assert found['tunnelmux_tunnels_refused_total{reason="unauthorized"}'] == 2


async def test_no_stranger_makes_another_series() -> None:
    """Hosts, services, paths, methods and claimed devices: the labels are those of ours."""
    methods = ("GET", "POST", "PURGE", "X-ODD")

    async def stir(this: Guarded, name: str) -> None:
        for method in methods:
            for host in (f"{name}.localhost", f"{name}--dev1.localhost", "dev1.localhost"):
                await this.ask(f"/{name}?{name}", host=host, method=method)
        with pytest.raises(ConnectError):
            async with agent_of(this.proxy, name):
                pass

    async with guarded() as this:
        await this.warm_up({})
        await stir(this, "first")
        known = samples(this.proxy).keys()
        for number in range(5):
            await stir(this, f"name-{number}")
        assert samples(this.proxy).keys() == known
        assert not any("first" in name or "dev1" in name for name in known)
        assert len(known) < 400


def told_of(logs: list[EventDict]) -> list[EventDict]:
    """The lines about what lasts; the first exchange may do so on a busy machine."""
    first = {line["stream"] for line in logs if line.get("path") == "/first"}
    return [line for line in logs if line["event"] == "long visit" and line["stream"] not in first]


async def test_a_visit_that_lasts_has_a_line_before_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(long_visits, "_LONG", 0.05)
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            peer = None
            for number in (1, 2):
                if peer is None:
                    peer, _ = await target.ask(get("/1"))
                else:
                    await target.visitor.send(get("/2"))
                    await peer.read_head()
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                with trio.fail_after(20):
                    while len(told_of(logs)) < number:
                        await trio.lowlevel.checkpoint()
                await peer.send(b"ok")
                await target.visitor.read_until(b"ok")
            # Waiting for the next request is nothing that lasts.
            await trio.sleep(0.2)
            await until(target.proxy, 'tunnelmux_http_requests_total{status="2xx",way="pump"}', 2)
    told = told_of(logs)
    assert len(told) == 2
    ends = [line for line in logs if line["event"] == "request" and line["path"] in ("/1", "/2")]
    for line, end in zip(told, ends, strict=True):
        assert (line["way"], line["device"]) == ("http", "dev1")
        assert (line["stream"], line["visitor"]) == (end["stream"], end["visitor"])
        assert line["seconds"] <= end["seconds"] + 0.06


async def test_a_visit_that_lasts_is_of_whom_a_trusted_proxy_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By h11 and in the pump, and in the list of visits."""
    monkeypatch.setattr(long_visits, "_LONG", 0.05)
    head = b"GET %s HTTP/1.1\r\nHost: dev1.localhost\r\nX-Forwarded-For: %s\r\n%s\r\n"
    asked = {
        "203.0.113.7": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "203.0.113.8": b"",
    }
    with capture_logs() as logs:
        async with guarded(trusted=("127.0.0.1",)) as this:
            await this.warm_up({})
            streams = []
            for address, more in asked.items():
                streams.append(await trio.open_tcp_stream("127.0.0.1", this.port))
                path = b"/ws" if more else b"/endless"
                await streams[-1].send_all(head % (path, address.encode(), more))
                assert await streams[-1].receive_some()
            with trio.fail_after(30):
                while not asked.keys() <= {line["visitor"] for line in told_of(logs)}:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert asked.keys() <= {visit.asked_by for visit in this.proxy.visits}
            for stream in streams:
                await trio.aclose_forcefully(stream)


def test_a_histogram_counts_what_is_not_above_each_limit() -> None:
    histogram = Histogram(0.1, 1)
    for value in (0.05, 0.1, 0.5, 7):
        histogram.observe(value)
    assert histogram.buckets == [(0.1, 2), (1.0, 3)]
    assert (histogram.count, histogram.sum) == (4, pytest.approx(7.65))
    for limits in ((), (2, 1), tuple(range(25))):
        with pytest.raises(ValueError, match="1 to 24 limits"):
            Histogram(*limits)


def test_statuses_that_are_none_have_a_class_of_their_own() -> None:
    counts = RequestCounts(1.0)
    for status in (0, 99, 101, 204, 304, 404, 599, 600, -1):
        counts.add(status, 1, 2, 0.5)
    assert counts.by_class == {"none": 4, "1xx": 1, "2xx": 1, "3xx": 1, "4xx": 1, "5xx": 1}
    assert (counts.bytes_in, counts.bytes_out, counts.seconds.count) == (9, 18, 9)


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_trace_context_passes_through_in_the_pump_and_by_h11() -> None:
    """W3C Trace Context section 2.1: who takes no part in a trace passes both fields on."""
    fields = f"traceparent: {TRACE}\r\ntracestate: vendor=1\r\n"
    async with rig() as target:
        for path in ("/by-h11", "/in-the-pump"):
            peer, head = await target.ask(get(path, fields))
            assert f"\r\ntraceparent: {TRACE}\r\n".encode() in head
            assert b"\r\ntracestate: vendor=1\r\n" in head
            await peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"ok")
            await peer.end()
            await target.visitor.read_until(b"ok")
        await until(target.proxy, 'tunnelmux_http_requests_total{status="2xx",way="pump"}', 1)
