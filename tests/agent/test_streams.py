from __future__ import annotations

import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import structlog
import trio

from support.fake_proxy import FakeProxy
from support.streams import next_bytes
from tunnelmux import Session, Stream
from tunnelmux.agent import RunningAgent
from tunnelmux.config import AgentConfig, LimitsConfig, ServiceConfig
from tunnelmux.limits import IngressLimits, Limits

StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]


async def ask(session: Session, request: bytes, *, end: bool = True) -> bytes:
    """Everything that comes back on a new stream for `request`."""
    stream = await session.open_stream()
    await stream.send_all(request)
    if end:
        await stream.send_eof()
    with trio.fail_after(20):
        return b"".join([data async for data in stream])


async def read_head(stream: Stream) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some()
        assert data, received
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def web(name: str) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A web server that answers one request with its name and the request's head."""

    async def serve(stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        body = name.encode() + b"\n" + received
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    return serve


async def busy(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def test_a_connect_by_name_reaches_the_service_without_a_round_trip(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    port = await start_target(echo)
    await start_agent(make_config(ServiceConfig(name="ssh", target=f"tcp://127.0.0.1:{port}")))
    session = await proxy.next_session()
    answer = await ask(session, b"CONNECT ssh HTTP/1.1\r\nHost: ssh\r\n\r\nSSH-2.0-hello")
    head, _, payload = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert payload == b"SSH-2.0-hello"


async def test_a_connect_by_address_needs_a_service_with_exactly_that_target(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    port = await start_target(echo)
    secret = await start_target(echo)
    await start_agent(make_config(ServiceConfig(name="ssh", target=f"tcp://127.0.0.1:{port}")))
    session = await proxy.next_session()
    allowed = await ask(session, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nhi" % port)
    assert allowed.startswith(b"HTTP/1.1 200 ") and allowed.endswith(b"\r\n\r\nhi")
    for address in (b"127.0.0.1:%d" % secret, b"localhost:%d" % port, b"[::1]:%d" % port):
        refused = await ask(session, b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\nhi" % address)
        assert refused.startswith(b"HTTP/1.1 403 ")
        assert b"Tunnelmux-Reason: forbidden\r\n" in refused
        assert address in refused


async def test_half_close_is_kept_end_to_end(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def count(stream: trio.SocketStream) -> None:
        size = sum([len(data) async for data in stream])  # to the visitor's FIN
        await stream.send_all(b"%d bytes" % size)

    port = await start_target(count)
    await start_agent(make_config(ServiceConfig(name="wc", target=f"tcp://127.0.0.1:{port}")))
    session = await proxy.next_session()
    request = b"CONNECT wc HTTP/1.1\r\nHost: wc\r\n\r\n" + bytes(300_000)
    assert (await ask(session, request)).endswith(b"\r\n\r\n300000 bytes")


async def test_a_target_that_resets_is_seen_as_a_reset_not_as_an_end(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def crash(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    port = await start_target(crash)
    await start_agent(make_config(ServiceConfig(name="t", target=f"tcp://127.0.0.1:{port}")))
    session = await proxy.next_session()
    stream = await session.open_stream()
    await stream.send_all(b"CONNECT t HTTP/1.1\r\nHost: t\r\n\r\n")
    await read_head(stream)
    await stream.send_all(b"x")
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def test_requests_go_to_the_named_service_or_to_the_default(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    one, two = await start_target(web("one")), await start_target(web("two"))
    await start_agent(
        make_config(
            ServiceConfig(name="one", target=f"http://127.0.0.1:{one}"),
            ServiceConfig(
                name="two", target=f"http://127.0.0.1:{two}", host="inner.example:81", default=True
            ),
        )
    )
    session = await proxy.next_session()
    named = await ask(
        session,
        b"GET /p?q=1 HTTP/1.1\r\nHost: dev1.localhost\r\nTunnelmux-Service: one\r\n"
        b"X-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n",
        end=False,
    )
    assert b"\r\n\r\none\nGET /p?q=1 HTTP/1.1\r\n" in named
    assert b"Host: dev1.localhost\r\n" in named
    assert b"X-Forwarded-For: 192.0.2.7\r\n" in named
    assert b"Tunnelmux-Service" not in named
    default = await ask(
        session, b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\nConnection: close\r\n\r\n", end=False
    )
    assert b"\r\n\r\ntwo\nGET / HTTP/1.1\r\nHost: inner.example:81\r\n" in default


async def test_a_target_cannot_speak_in_our_name(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def spoof(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(
            b"HTTP/1.1 503 No\r\nTunnelmux-Reason: device-offline\r\nContent-Length: 0\r\n\r\n"
        )

    port = await start_target(spoof)
    await start_agent(make_config(ServiceConfig(name="web", target=f"http://127.0.0.1:{port}")))
    session = await proxy.next_session()
    answer = await ask(session, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 No\r\n")
    assert b"unnelmux" not in answer


async def test_every_request_on_a_kept_alive_stream_is_routed_by_its_own_head(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    one, two = await start_target(web("one")), await start_target(web("two"))
    await start_agent(
        make_config(
            ServiceConfig(name="one", target=f"http://127.0.0.1:{one}"),
            ServiceConfig(name="two", target=f"http://127.0.0.1:{two}"),
        )
    )
    session = await proxy.next_session()
    request = b"GET / HTTP/1.1\r\nHost: h\r\nTunnelmux-Service: %b\r\n\r\n"
    answer = await ask(session, request % b"one" + request % b"two" + request % b"gone")
    assert answer.index(b"\r\n\r\none\n") < answer.index(b"\r\n\r\ntwo\n")
    assert b"HTTP/1.1 404 " in answer[answer.index(b"\r\n\r\ntwo\n") :]


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"CONNECT nope HTTP/1.1\r\nHost: x", 404, "unknown-service"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTunnelmux-Service: nope", 404, "unknown-service"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTunnelmux-Service: refuses", 404, "unknown-service"),
        (b"CONNECT refuses HTTP/1.1\r\nHost: x", 502, "target-refused"),
        (b"GET / HTTP/1.1\r\nHost: x", 502, "target-refused"),
        (b"CONNECT nowhere HTTP/1.1\r\nHost: x", 502, "target-unreachable"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b", 400, "bad-request"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            400,
            "bad-request",
        ),
        (b"\x16\x03\x01\0\0", 400, "bad-request"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a", 431, "head-too-large"),
        (b"GET http://agent.tunnelmux/v2 HTTP/1.1\r\nHost: x", 404, "bad-request"),
        (b"POST http://agent.tunnelmux/v1/info HTTP/1.1\r\nHost: x", 405, "bad-request"),
    ],
)
async def test_refusals_have_a_status_a_reason_and_leave_the_session_alone(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    head: bytes,
    status: int,
    reason: str,
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        closed = reserved.getsockname()[1]
        await start_agent(
            make_config(
                ServiceConfig(name="web", target=f"http://127.0.0.1:{closed}"),
                ServiceConfig(name="refuses", target=f"tcp://127.0.0.1:{closed}"),
                ServiceConfig(name="nowhere", target="tcp://255.255.255.255:9"),
            )
        )
        session = await proxy.next_session()
        answer = await ask(session, head + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"Tunnelmux-Reason: %b\r\n" % reason.encode() in answer
    assert not session.is_closed


@contextmanager
def full_listener() -> Iterator[int]:
    """The port of a listener with a full queue: the kernel drops further connection requests."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


async def test_a_target_that_does_not_take_the_connection_is_a_504(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    with full_listener() as port:
        await start_agent(
            make_config(
                ServiceConfig(name="slow", target=f"tcp://127.0.0.1:{port}"),
                limits=LimitsConfig(ingress=IngressLimits(connect_timeout=0.1)),
            )
        )
        session = await proxy.next_session()
        answer = await ask(session, b"CONNECT slow HTTP/1.1\r\nHost: slow\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"Tunnelmux-Reason: target-timeout\r\n" in answer


async def test_streams_whose_visitors_left_hold_their_place_until_the_target_is_given_up(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    with full_listener() as port, structlog.testing.capture_logs() as logs:
        await start_agent(
            make_config(
                # A name, so that the stream has a task of its own.
                ServiceConfig(name="slow", target=f"tcp://localhost:{port}"),
                limits=LimitsConfig(
                    session=Limits(max_streams=2), ingress=IngressLimits(connect_timeout=0.2)
                ),
            )
        )
        session = await proxy.next_session()
        request = b"CONNECT slow HTTP/1.1\r\nHost: slow\r\n\r\n"
        for _ in range(2):
            stream = await session.open_stream()
            await stream.send_all(request)
            await session.ping()
            stream.reset()
        await session.ping()
        with pytest.raises(trio.BrokenResourceError):
            await ask(session, request)
        await trio.sleep(0.2)
        assert (await ask(session, request)).startswith(b"HTTP/1.1 504 ")
    (reset,) = [line for line in logs if line["event"] == "stream reset"]
    assert "max_streams" in reset["cause"]


async def test_a_target_that_takes_the_request_and_never_answers_is_a_504(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def hang(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    port = await start_target(hang)
    await start_agent(
        make_config(
            ServiceConfig(name="web", target=f"http://127.0.0.1:{port}"),
            limits=LimitsConfig(ingress=IngressLimits(response_timeout=0.1)),
        )
    )
    session = await proxy.next_session()
    answer = await ask(session, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"Tunnelmux-Reason: target-timeout\r\n" in answer


async def test_the_agent_tells_about_itself(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    await start_agent(
        make_config(
            ServiceConfig(name="ssh", target="tcp://127.0.0.1:22"),
            ServiceConfig(name="web", target="http://127.0.0.1:80"),
        )
    )
    session = await proxy.next_session()
    answer = await ask(session, b"GET http://agent.tunnelmux/v1/info HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    info = json.loads(body)
    assert info["name"] == "dev1"
    assert info["version"]
    assert info["uptime"] >= 0
    assert info["services"] == [
        {"name": "ssh", "scheme": "tcp", "default": False, "down": ""},
        {"name": "web", "scheme": "http", "default": True, "down": ""},
    ]


async def test_a_visitor_cannot_reach_the_agent_itself_with_a_host_field(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    port = await start_target(web("the service"))
    await start_agent(make_config(ServiceConfig(name="web", target=f"http://127.0.0.1:{port}")))
    session = await proxy.next_session()
    answer = await ask(
        session, b"GET /v1/info HTTP/1.1\r\nHost: agent.tunnelmux\r\nConnection: close\r\n\r\n"
    )
    assert b"\r\n\r\nthe service\n" in answer


async def test_streams_over_the_limit_are_reset_and_the_rest_go_on(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    port = await start_target(echo)
    await start_agent(
        make_config(
            ServiceConfig(name="echo", target=f"tcp://127.0.0.1:{port}"),
            limits=LimitsConfig(session=Limits(max_streams=2)),
        )
    )
    session = await proxy.next_session()
    served: list[Stream] = []
    for _ in range(2):
        served.append(await session.open_stream())
        await served[-1].send_all(b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n")
        head, _ = await read_head(served[-1])
        assert head.startswith(b"HTTP/1.1 200 ")
    with pytest.raises(trio.BrokenResourceError):
        await ask(session, b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n")
    for stream in served:
        await stream.send_all(b"still here")
        assert await next_bytes(stream, 10) == b"still here"


async def test_a_bug_met_by_one_stream_is_logged_and_resets_that_stream_only(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = await start_target(echo)
    service = ServiceConfig(name="echo", target=f"tcp://localhost:{port}")
    await start_agent(make_config(service))
    session = await proxy.next_session()
    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr("tunnelmux.agent.streams.accept_connect", None)  # stands for any bug
        with pytest.raises(trio.BrokenResourceError):
            await ask(session, b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n")
    assert "stream failed" in [line["event"] for line in logs]
    answer = await ask(session, b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\nfine")
    assert answer.endswith(b"fine")


async def test_each_relay_and_each_request_is_one_line_without_the_query(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    raw, http = await start_target(echo), await start_target(web("w"))
    agent = await start_agent(
        make_config(
            ServiceConfig(name="echo", target=f"tcp://127.0.0.1:{raw}"),
            ServiceConfig(name="web", target=f"http://127.0.0.1:{http}"),
        )
    )
    session = await proxy.next_session()
    await agent.wait_connected()
    with structlog.testing.capture_logs() as logs:
        await ask(session, b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n12345")
        await ask(session, b"GET /a?token=s3cret HTTP/1.1\r\nHost: h\r\n\r\n")
        await ask(session, b"CONNECT nope HTTP/1.1\r\nHost: nope\r\n\r\n")
        await session.ping()
    lines = {line["event"]: line for line in logs}
    assert set(lines) == {"relay ended", "request served", "stream refused"}
    relayed = lines["relay ended"]
    assert (relayed["service"], relayed["outcome"]) == ("echo", "finished")
    assert (relayed["bytes_to_target"], relayed["bytes_from_target"]) == (5, 5)
    assert relayed["stream"] and relayed["duration"] >= 0
    assert (lines["request served"]["path"], lines["request served"]["status"]) == ("/a", 200)
    assert "s3cret" not in repr(logs)
    assert lines["stream refused"]["reason"] == "unknown-service"


async def test_visitors_do_not_fill_the_log(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    port = await start_target(web("w"))
    service = ServiceConfig(name="web", target=f"http://127.0.0.1:{port}")
    await start_agent(make_config(service))
    session = await proxy.next_session()
    long = b"/" + b"a" * 30_000
    with structlog.testing.capture_logs() as logs:
        assert b"200" in await ask(session, b"GET " + long + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        for _ in range(40):
            nope = await ask(session, b"CONNECT nope HTTP/1.1\r\nHost: nope\r\n\r\n")
            assert nope.startswith(b"HTTP/1.1 404 ")
        bad = b"GET / HTTP/1.1\r\nHost: h\r\nTunnelmux-Service: " + b"x" * 9_000
        assert (await ask(session, bad + b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        await session.ping()
    (served,) = (line for line in logs if line["event"] == "request served")
    assert served["path"] == "/" + "a" * 511 + "… (30001 characters)"
    refused = [line for line in logs if line["event"] == "stream refused"]
    assert len(refused) == 30
    assert {line["of"] for line in logs if line["event"] == "lines left out"} == {"stream refused"}
    assert max(len(repr(line)) for line in logs) < 2_000


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["by-the-pump", "by-a-task"])
async def test_visitors_who_reset_what_they_open_do_not_fill_the_log(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    host: str,
) -> None:
    """Each had a line, so that one visitor could fill a small disk."""
    port = await start_target(busy)
    await start_agent(
        make_config(
            ServiceConfig(name="raw", target=f"tcp://{host}:{port}"),
            ServiceConfig(name="web", target=f"http://{host}:{port}", default=True),
        )
    )
    session = await proxy.next_session()
    opened = {
        "relay ended": b"CONNECT raw HTTP/1.1\r\nHost: raw\r\n\r\n",
        "stream lost": b"GET / HT",
        "request served": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
    }
    with structlog.testing.capture_logs() as logs, trio.fail_after(50):
        for event, head in opened.items():
            for _ in range(40):
                stream = await session.open_stream()
                await stream.send_all(head)
                await session.ping()
                stream.reset()
            while event not in {line.get("of") for line in logs}:
                await session.ping()
    count = Counter(line["event"] for line in logs)
    assert [count[event] for event in opened] == [30, 30, 30]


async def test_a_visitor_that_leaves_a_live_page_is_no_warning(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    given_up = trio.Event()

    async def ticking(stream: trio.SocketStream) -> None:
        await read_head(stream)  # type: ignore[arg-type]
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"data: tick\n\n")
                await trio.sleep(0.01)
        given_up.set()

    port = await start_target(ticking)
    await start_agent(make_config(ServiceConfig(name="web", target=f"http://127.0.0.1:{port}")))
    session = await proxy.next_session()
    with structlog.testing.capture_logs() as logs:
        stream = await session.open_stream()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await read_head(stream)
        stream.reset()
        await given_up.wait()
        await session.ping()
        await trio.testing.wait_all_tasks_blocked()
    (line,) = [line for line in logs if line["event"] == "request served"]
    assert line["log_level"] == "info"
    assert "the visitor is gone" in line["cause"]


SITE = b"app--dev1.localhost:8080"


async def particular(stream: trio.SocketStream) -> None:
    """A web server that takes its own pages only, and redirects to its own host."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    assert b"\r\nHost: localhost:8888\r\n" in head
    named = [b"Origin: http://localhost:8888\r\n", b"Destination: http://localhost:8888/b\r\n"]
    if not any(name in head for name in named):
        await stream.send_all(
            b"HTTP/1.1 302 Found\r\nLocation: http://localhost:8888/login\r\n"
            b"Set-Cookie: s=1; Domain=localhost\r\nContent-Length: 0\r\n\r\n"
        )
    elif head.startswith(b"MOVE "):
        await stream.send_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    else:
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\nkernel"
        )


@pytest.mark.parametrize("rewrite", [True, False])
async def test_a_service_with_a_host_of_its_own_is_one_site_for_its_visitors(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    rewrite: bool,
) -> None:
    url = f"http://127.0.0.1:{await start_target(particular)}"
    service = ServiceConfig(name="app", target=url, host="localhost:8888", rewrite=rewrite)
    await start_agent(make_config(service))
    session = await proxy.next_session()
    page = b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % SITE
    answer = await ask(session, page, end=False)
    where = SITE if rewrite else b"localhost:8888"
    assert b"\r\nLocation: http://%b/login\r\n" % where in answer
    move = b"MOVE /a HTTP/1.1\r\nHost: %b\r\nDestination: http://%b/b\r\n" % (SITE, SITE)
    answer = await ask(session, move + b"Connection: close\r\n\r\n", end=False)
    assert answer.startswith(b"HTTP/1.1 201 " if rewrite else b"HTTP/1.1 302 ")
    kernel = b"GET /ws HTTP/1.1\r\nHost: %b\r\nOrigin: http://%b\r\n" % (SITE, SITE)
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    answer = await ask(session, kernel + upgrade)
    assert answer.startswith(b"HTTP/1.1 101 " if rewrite else b"HTTP/1.1 302 ")
    assert answer.endswith(b"kernel") is rewrite
