"""Bad input of every kind: one clear error each, and the session beside it does not notice."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest
import trio
import trio_websocket

from support.daemons import DaemonSet
from support.http_rig import Peer
from support.origin import Origin, reply, serving
from support.proxies import free_port
from support.tunnels import Tunnel
from support.wire import ACK, GO_AWAY, INITIAL_WINDOW, SYN, FrameReader, data, update
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes

PROBLEM_LEVELS = {"warning", "error", "critical"}


# -- what a person typed --------------------------------------------------------------------


async def test_wrong_token_ends_the_agent_with_status_3_and_a_sentence(
    tunnel: Tunnel, web: Address
) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    wrong = "0123456789abcdef" * 4
    tunnel.daemons.secrets.add(wrong)
    configuration = tunnel.agent_file({"web": f"http://{web}"}, device="dev2", token=wrong)
    agent = await tunnel.daemons.start("agent", configuration)
    assert await agent.wait() == 3
    (sentence,) = agent.output.splitlines()
    assert sentence.startswith("tunnelmux-agent: error: ")
    assert "no device has this token" in sentence
    assert "check proxy.token" in sentence
    refused = await tunnel.proxy.logged("tunnel refused")
    assert (refused["status"], refused["reason"]) == (401, "unauthorized")
    await tunnel.still_works()


@pytest.mark.parametrize(
    ("program", "text", "said"),
    [
        (
            "proxy",
            '[tunnel]\nlisten = "127.0.0.1:0"\nlisten_backlog = 7\n',
            ": tunnel.listen_backlog: is not a known key",
        ),
        (
            "agent",
            '[proxy]\nurl = "ws://127.0.0.1:1/"\ntokn = "x"\n[device]\nname = "dev1"\n',
            ': proxy.tokn: is not a known key: did you mean "token"?',
        ),
        ("agent", "[proxy\n", ": line 1 is not TOML (expected ']' at the end of a table"),
    ],
)
async def test_a_file_with_a_mistake_is_one_line_and_status_2(
    daemons: DaemonSet, program: str, text: str, said: str
) -> None:
    daemon = await daemons.start(program, text)
    assert await daemon.wait() == 2
    (sentence,) = daemon.output.splitlines()
    assert sentence.startswith(f"tunnelmux-{program}: error: {daemons.file(daemon.name)}")
    assert said in sentence


async def test_a_port_in_use_is_one_line_and_status_2(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        proxy = await tunnel.daemons.start("proxy", tunnel.proxy_file(http=address))
        assert await proxy.wait() == 2
    (*_, sentence) = proxy.output.splitlines()
    assert sentence.startswith("tunnelmux-proxy: error: ingress.http.listen: ")
    assert address in sentence
    assert "choose another port" in sentence
    assert [line["level"] for line in proxy.events if line["level"] in PROBLEM_LEVELS] == []


# -- what a target does ---------------------------------------------------------------------


TARGETS: dict[str, tuple[int, str, bool]] = {
    "refusing": (502, "target-refused", True),
    "silent": (504, "target-timeout", False),
    "rubbish": (502, "target-broke", False),
    "hanging-up": (502, "target-broke", False),
    "undeclared": (404, "unknown-service", True),
}
"""What visitors get, and whether it is the agent that says so: what a target answers on a raw
connection the proxy judges."""


async def test_targets_that_do_not_answer(tunnel: Tunnel, web: Address) -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            with pytest.raises(trio.BrokenResourceError):  # cut, its time being up
                while await stream.receive_some():
                    pass

    async def say_rubbish(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")

    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()

    async with (
        serving(say_nothing) as silent,
        serving(say_rubbish) as rubbish,
        serving(hang_up) as hanging_up,
    ):
        await tunnel.start_proxy(more="[limits]\nresponse_timeout = 2.0")
        services = {
            "web": f"http://{web}",
            "refusing": f"http://127.0.0.1:{free_port()}",
            "silent": f"http://{silent}",
            "rubbish": f"http://{rubbish}",
            "hanging-up": f"http://{hanging_up}",
        }
        agent = await tunnel.start_agent(services)
        answers = {}
        for name, (_, _, by_agent) in TARGETS.items():
            answer = await tunnel.fetch(service=name)
            answers[name] = (answer.status, answer.reason, by_agent)
            await tunnel.still_works()
        assert answers == TARGETS
        for name, (status, reason, by_agent) in TARGETS.items():
            await tunnel.proxy.logged("request", service=name, status=status, reason=reason)
            if by_agent:
                await agent.logged("stream refused", level="warning", reason=reason)
                said = [line for line in agent.events if f'"{name}"' in str(line.get("cause"))]
                assert {line["event"] for line in said} == {"stream refused"}, name
    assert len([line for line in tunnel.proxy.events if line["event"] == "session started"]) == 1


async def test_a_refused_tcp_target_is_a_reset_and_one_line(tunnel: Tunnel, web: Address) -> None:
    await tunnel.start_proxy(tcp=[("127.0.0.1:0", "dev1", "ssh"), ("127.0.0.1:0", "dev1", "db")])
    services = {"web": f"http://{web}", "ssh": f"tcp://127.0.0.1:{free_port()}"}
    await tunnel.start_agent(services)
    for index, reason in enumerate(("target-refused", "unknown-service")):
        visitor = await tunnel.visit(await tunnel.at_tcp(index))
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            assert await visitor.receive_some()
        await visitor.aclose()
        line = await tunnel.proxy.logged("relay", reason=reason)
        assert "the device refused" in str(line["problem"])
        await tunnel.still_works()


# -- what a visitor sends -------------------------------------------------------------------

LONG = b"POST / HTTP/1.1\r\nHost: dev1.localhost\r\n%s"

BAD_REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "rubbish": (b"\x16\x03\x01\x00\xee\x01\x00\r\n\r\n", 400, "bad-request"),
    "words": (b"hello there\r\n\r\n", 400, "bad-request"),
    "two hosts": (
        b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\nHost: dev2.localhost\r\n\r\n",
        400,
        "bad-request",
    ),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
    "length and chunked": (
        LONG % b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad-request",
    ),
    "two lengths": (
        LONG % b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        400,
        "bad-request",
    ),
    "a head over the limit": (
        b"GET / HTTP/1.1\r\nHost: dev2.localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        431,
        "head-too-large",
    ),
    "a device nobody knows": (
        b"GET / HTTP/1.1\r\nHost: dev9.localhost\r\n\r\n",
        404,
        "unknown-device",
    ),
    "a device that never came": (
        b"GET / HTTP/1.1\r\nHost: dev2.localhost\r\n\r\n",
        503,
        "device-offline",
    ),
    "two devices": (
        b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\nTunnelmux-Device: dev2\r\n\r\n",
        400,
        "bad-request",
    ),
}


async def test_bad_requests_are_answered_and_reach_nobody(
    tunnel: Tunnel, web: Address, origin: Origin
) -> None:
    served = 0

    async def count(peer, head):
        nonlocal served
        served += 1
        await peer.send(reply(b"hello\n"))

    origin.pages[b"/"] = count
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    answers = {}
    for number, (name, (request, _, _)) in enumerate(BAD_REQUESTS.items()):
        visitor = Peer(await tunnel.visit())
        with trio.fail_after(30):
            await visitor.send(request)
            head = await visitor.read_head()
            line = await tunnel.proxy.logged("request", visitor=name_of(visitor))
        await visitor.stream.aclose()
        assert head.startswith(b"HTTP/1.1 %d " % line["status"]), name
        assert b"Tunnelmux-Reason: " + str(line["reason"]).encode() in head, name
        assert line["problem"], name
        answers[name] = (line["status"], line["reason"])
        assert served == number, f"{name} reached a device"
        await tunnel.still_works()
    assert answers == {name: (status, reason) for name, (_, status, reason) in BAD_REQUESTS.items()}


# -- what comes to the tunnel port ----------------------------------------------------------


async def test_what_is_no_agent_is_one_line_and_nothing_more(tunnel: Tunnel, web: Address) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    strangers = {
        "a browser": b"GET /tunnel/connect HTTP/1.1\r\nHost: proxy.example.com\r\n\r\n",
        "another path": b"GET / HTTP/1.1\r\nHost: proxy.example.com\r\n\r\n",
        "rubbish": b"\x00\x01\x02\x03" * 100 + b"\r\n\r\n",
        "ssh": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "a huge head": b"GET /tunnel/connect HTTP/1.1\r\nX: " + b"x" * 20_000,
    }
    for name, said in strangers.items():
        stranger = Peer(await tunnel.visit(tunnel.at_tunnel))
        with trio.fail_after(30):
            await stranger.send(said)
            answer = await stranger.read_head()
            line = await tunnel.proxy.logged("tunnel handshake failed", remote=name_of(stranger))
        assert answer.startswith(b"HTTP/1.1 4"), name
        assert line["cause"], name
        lines = [line for line in tunnel.proxy.events if line.get("remote") == name_of(stranger)]
        assert len(lines) == 1, name
        await stranger.stream.aclose()
        await tunnel.still_works()


async def test_a_tls_hello_to_a_plain_tunnel_port_is_one_line(tunnel: Tunnel, web: Address) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    context = ssl.create_default_context()
    with trio.fail_after(30):
        stranger = trio.SSLStream(
            await tunnel.visit(tunnel.at_tunnel), context, server_hostname="proxy.example.com"
        )
        with pytest.raises(trio.BrokenResourceError):
            await stranger.do_handshake()
        await trio.aclose_forcefully(stranger)
        assert (await tunnel.proxy.logged("tunnel handshake failed"))["cause"]
    await tunnel.still_works()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "version"),
        (b"\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "type"),
        ("text", "text"),
    ],
)
async def test_an_agent_that_speaks_no_yamux_loses_its_own_session(
    tunnel: Tunnel, web: Address, message: bytes | str, said: str
) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    with trio.fail_after(30):
        async with tunnel.dial("dev2") as websocket:
            await tunnel.proxy.logged("session started", device="dev2")
            await websocket.send_message(message)
            with pytest.raises(trio_websocket.ConnectionClosed):
                while True:
                    await websocket.get_message()
        ended = await tunnel.proxy.logged("session ended", device="dev2")
    assert said in str(ended["reason"])
    await tunnel.still_works()


async def test_an_agent_that_overruns_its_window_loses_its_own_session(
    tunnel: Tunnel, web: Address
) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    told = []
    with trio.fail_after(20):
        async with tunnel.dial("dev2") as websocket:
            await tunnel.proxy.logged("session started", device="dev2")
            visitor = Peer(await tunnel.visit())
            await visitor.send(b"GET / HTTP/1.1\r\nHost: dev2.localhost\r\n\r\n")
            reader = FrameReader()
            frames = []
            while not frames:
                frames = reader.feed(await websocket.get_message())
            opened = frames[0]
            assert opened.flags & SYN
            accept = update(opened.stream_id, flags=ACK).pack()
            await websocket.send_message(accept)
            # One byte more than every stream may send unasked, in one frame. The proxy may say so
            # before it has read all of it.
            too_much = data(opened.stream_id, bytes(INITIAL_WINDOW + 1)).pack()
            with contextlib.suppress(trio_websocket.ConnectionClosed):
                await websocket.send_message(too_much)
            with contextlib.suppress(trio_websocket.ConnectionClosed):
                while True:
                    told += reader.feed(await websocket.get_message())
            answer = await visitor.read_head()
            await visitor.stream.aclose()
        ended = await tunnel.proxy.logged("session ended", device="dev2")
    assert [frame.length for frame in told if frame.type == GO_AWAY] == [1]
    assert ended["level"] == "warning"
    assert "window" in str(ended["reason"])
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"Tunnelmux-Reason: tunnel-lost\r\n" in answer
    await tunnel.still_works()


async def test_an_agent_whose_proxy_is_something_else_says_so_and_tries_again(
    tunnel: Tunnel, web: Address
) -> None:
    tunnel.at_tunnel = web  # a web server
    agent = await tunnel.daemons.start("agent", tunnel.agent_file({"web": f"http://{web}"}))
    line = await agent.logged("not connected")
    assert "404" in str(line["cause"])
    assert agent.status is None


def name_of(peer: Peer) -> str:
    """How the logs of the other side call this connection."""
    assert isinstance(peer.stream, trio.SocketStream)
    return str(Address(*peer.stream.socket.getsockname()))
