"""A visitor at any node reaches a device at any other, and nothing reaches the wrong one."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pytest
import structlog
import trio

from support.http_rig import Peer
from support.nodes import Nodes, running_nodes
from support.origin import Origin, numbered_blocks, reply, serving, slow_page
from support.redis_server import RedisServer
from support.wire import INITIAL_WINDOW, data, pack
from tunnelmux.backend import ProxyClient
from tunnelmux.commands import CommandRequest
from tunnelmux.config import Address, LimitsConfig
from tunnelmux.config.groups import GroupConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Stream
from tunnelmux.proxy.cluster.hops import Hops, ThereHandle
from tunnelmux.proxy.cluster.server import HopServer
from tunnelmux.proxy.visitors.ingress_tcp import TcpIngressServer
from tunnelmux.relay import relay, reset_socket
from tunnelmux.sessions import OwnHandle
from tunnelmux.yamux.engine import Engine


async def test_http_of_a_device_on_another_node(nodes: Nodes, web: Address) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}):
        for service in (None, "web", None):
            answer = await nodes.get("a", service=service)
            assert (answer.status, answer.body) == (200, b"hello\n")
        assert (await nodes.get("a", service="camera")).reason == "unknown-service"
        assert (await nodes.get("a", device="dev2")).reason == "device-offline"


async def test_a_group_reaches_over_nodes(nodes: Nodes) -> None:
    """And a visitor does not notice that the one device it can reach at its own node is gone."""

    def named(name: str) -> Origin:
        async def page(peer: Peer, _head: bytes) -> None:
            await peer.send(reply(name.encode()))

        origin = Origin()
        origin.pages[b"/"] = page
        return origin

    groups = [GroupConfig(name="shop", devices=["dev1", "dev2"])]
    for node in ("a", "b"):
        await nodes[node].reload(nodes.config(node, groups=groups))
    async with (
        serving(named("dev1").handle) as one,
        serving(named("dev2").handle) as two,
        nodes.agent("b", {"web": f"http://{two}"}, "dev2"),
    ):
        async with nodes.agent("a", {"web": f"http://{one}"}):
            got = {(await nodes.get("a", device="shop")).body for _ in range(60)}
            assert got == {b"dev1", b"dev2"}
        assert {(await nodes.get("a", device="shop")).body for _ in range(4)} == {b"dev2"}


async def test_a_large_body_comes_whole_both_ways(
    nodes: Nodes, origin: Origin, web: Address
) -> None:
    size = 8 << 20
    blocks = b"".join(numbered_blocks(size))

    async def echo(peer: Peer, head: bytes) -> None:
        assert b"content-length: %d" % size in head.lower()
        await peer.send(reply(await peer.read_exactly(size)))

    origin.pages[b"/echo"] = echo
    async with nodes.agent("b", {"web": f"http://{web}"}):
        answer = await nodes.get("a", "/echo", method="POST", body=blocks)
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(blocks).digest()


async def test_tcp_and_its_half_close(nodes: Nodes) -> None:
    async def until_its_end(stream: trio.SocketStream) -> None:
        data = b""
        async with stream:
            async for part in stream:
                data += part
            await stream.send_all(b"heard " + data)

    async with (
        serving(until_its_end) as target,
        nodes.agent("b", {"ssh": f"tcp://{target}"}),
    ):
        [address] = nodes["a"].tcp_addresses
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(address.host, address.port) as visitor:
                await visitor.send_all(b"all of this")
                await visitor.send_eof()
                assert await Peer(visitor).read_all() == b"heard all of this"


async def test_tcp_over_a_known_way_needs_no_task_and_loses_nothing_when_the_way_is_stale(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_task: list[str] = []
    handle = TcpIngressServer.handle

    async def spy(self: TcpIngressServer, *args: Any) -> None:
        by_task.append(args[0])
        await handle(self, *args)

    monkeypatch.setattr(TcpIngressServer, "handle", spy)

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for part in stream:
                await stream.send_all(part)

    async def visit() -> None:
        [address] = nodes["a"].tcp_addresses
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(address.host, address.port) as visitor:
                await visitor.send_all(b"first words")
                assert await Peer(visitor).read_exactly(11) == b"first words"
                await visitor.send_all(b"more" * 50_000)
                await visitor.send_eof()
                assert await Peer(visitor).read_all() == b"more" * 50_000

    async with serving(echo) as target:
        services = {"ssh": f"tcp://{target}"}
        async with nodes.agent("b", services):
            await visit()
            by_task.clear()  # the first one, who looked the device up
            await visit()
            assert by_task == []
            stale = nodes["a"].store.live_device("dev1")
        async with nodes.agent("b", services):
            assert nodes["a"].store.live_device("dev1") is stale
            await visit()
            assert by_task == ["dev1"]


async def test_requests_over_a_hop_are_carried_by_the_pump(
    nodes: Nodes, origin: Origin, web: Address
) -> None:
    async def kept_open(peer: Peer, head: bytes) -> None:
        while True:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await peer.read_head()

    origin.pages[b"/kept"] = kept_open
    request = b"GET /kept HTTP/1.1\r\nHost: web--dev1.localhost\r\n\r\n"
    async with nodes.agent("b", {"web": f"http://{web}"}):
        assert (await nodes.get("a")).status == 200  # the way is known from now on
        address = nodes["a"].http_address
        assert address is not None
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                visitor = Peer(stream)
                for _ in range(5):
                    await visitor.send(request)
                    assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 ")
                    assert await visitor.read_exactly(2) == b"hi"
        assert nodes["a"].visits.figures.by_pump.by_class["2xx"] >= 5

        # A leg whose session is over is no way: the device is looked for again.
        before = nodes["b"].store.own_device("dev1")
        assert before is not None
        await before.close()
        assert (await nodes.get("a")).status == 200


async def test_a_new_visitor_costs_the_node_of_the_device_no_task(
    nodes: Nodes, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[bytes] = []
    serve = HopServer._serve_stream

    async def spy(self: HopServer, stream: Stream, from_worker: bool) -> None:
        served.append(stream._engine_stream.peek(8))
        await serve(self, stream, from_worker)

    monkeypatch.setattr(HopServer, "_serve_stream", spy)
    async with nodes.agent("b", {"web": f"http://{web}"}):
        assert (await nodes.get("a")).status == 200
        served.clear()  # the question about the device, and the request by h11
        for _ in range(5):
            assert (await nodes.get("a", method="POST", body=b"x")).status == 200
        assert served == []


async def test_a_cut_of_the_target_is_a_cut_for_the_visitor(nodes: Nodes) -> None:
    async def cut(stream: trio.SocketStream) -> None:
        await stream.send_all(b"as far as this")
        await stream.receive_some(1)
        reset_socket(stream.socket)

    async with serving(cut) as target, nodes.agent("b", {"ssh": f"tcp://{target}"}):
        [address] = nodes["a"].tcp_addresses
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(address.host, address.port) as visitor:
                assert await Peer(visitor).read_exactly(14) == b"as far as this"
                await visitor.send_all(b"x")
                with pytest.raises(trio.BrokenResourceError):
                    while await visitor.receive_some():
                        pass
                    pytest.fail("the cut looked like an end")


async def test_a_cut_of_the_visitor_is_a_cut_for_the_target(nodes: Nodes) -> None:
    heard: list[bytes] = []
    cut = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        try:
            while data := await stream.receive_some():
                if data.startswith(b"SSH-2.0-"):
                    return  # the agent, which asks an SSH server for its keys
                heard.append(data)
                await stream.send_all(b"heard")
        except trio.BrokenResourceError:
            cut.set()

    async with serving(listen) as target, nodes.agent("b", {"ssh": f"tcp://{target}"}):
        [address] = nodes["a"].tcp_addresses
        with trio.fail_after(30):
            visitor = await trio.open_tcp_stream(address.host, address.port)
            await visitor.send_all(b"as far as this")
            assert await Peer(visitor).read_exactly(5) == b"heard"
            reset_socket(visitor.socket)
            await cut.wait()
        assert heard == [b"as far as this"]


async def test_so_many_streams_go_to_one_node_and_no_more(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    limits = LimitsConfig(ingress=IngressLimits(max_hop_streams=2))

    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()

    async with (
        running_nodes(redis, limits=limits) as nodes,
        serving(silent) as target,
        nodes.agent("b", {"ssh": f"tcp://{target}", "web": f"http://{target}"}),
    ):
        [address] = nodes["a"].tcp_addresses
        visitors = [await trio.open_tcp_stream(address.host, address.port) for _ in range(2)]
        there = await nodes["a"].store.find_device("dev1")
        assert isinstance(there, ThereHandle)
        with trio.fail_after(30):
            while there.hop_streams < 2:  # noqa: ASYNC110  nothing is sent to these visitors
                await trio.sleep(0.02)
        assert (await nodes.get("a")).reason == "device-busy"
        for visitor in visitors:
            await visitor.aclose()
        with trio.fail_after(30):
            while there.hop_streams:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert (await nodes.get("a", device="dev1", service="camera")).reason == "unknown-service"


async def test_a_command_reaches_a_device_on_another_node(nodes: Nodes, web: Address) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}):
        address = nodes["a"].internal_address
        assert address is not None
        async with ProxyClient(f"http://{address}") as client:
            request = CommandRequest(
                command_id="c1", host="127.0.0.1", username="nobody", command="id"
            )
            [result] = await client.exec_results(["dev1"], request)
        # Its agent's own answer: it runs no commands.
        assert result.result.reason == "forbidden"


async def test_a_device_that_moves_is_found_where_it_is(nodes: Nodes, web: Address) -> None:
    target = {"web": f"http://{web}"}
    async with nodes.agent("b", target):
        assert (await nodes.get("a")).status == 200
    async with nodes.agent("a", target):
        assert (await nodes.get("a")).status == 200
        assert (await nodes.get("b")).status == 200
    async with nodes.agent("b", target):
        assert (await nodes.get("a")).status == 200


async def test_another_agent_with_the_token_supersedes_the_session_elsewhere(
    nodes: Nodes, web: Address
) -> None:
    async with nodes.agent("a", {"web": f"http://{web}"}):
        old = nodes["a"].store.own_device("dev1")
        assert isinstance(old, OwnHandle)
        async with nodes.agent("b", {"web": f"http://{web}"}):
            with trio.fail_after(30):
                while not old.is_closed:  # noqa: ASYNC110  the directory tells with a beat
                    await trio.sleep(0.02)
        assert "replaced by a new connection" in old.end_reason


async def test_summaries_say_which_node_it_is(nodes: Nodes, web: Address) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}):
        here = await nodes["b"].store.find_device("dev1")
        there = await nodes["a"].store.find_device("dev1")
        assert here is not None
        assert there is not None
        for handle in (here, there):
            summary = handle.summary()
            assert summary.proxy_node_id == "b"
            assert summary.proxy_internal_url == f"http://{nodes['b'].internal_address}"
        assert there.summary().remote_addr == here.summary().remote_addr
        assert there.credential == here.credential


async def test_visitors_are_told_that_the_node_of_a_device_is_gone(
    redis: RedisServer, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    limits = LimitsConfig(ingress=IngressLimits(reconnect_wait=0.1))
    async with running_nodes(redis, limits=limits) as nodes:
        async with nodes.agent("b", {"web": f"http://{web}"}):
            assert (await nodes.get("a")).status == 200
            nodes.stop("b")
            with trio.fail_after(30):
                while nodes.known_to("a") != {"a"}:  # noqa: ASYNC110  no event says so
                    await trio.sleep(0.02)
        for _ in range(2):  # it stays so
            said = (await nodes.get("a")).body.decode()
            assert "Device dev1 is offline: it was last seen on " in said
            assert " GMT (node b, which had it, is gone since " in said
        said = (await nodes.get("a", device="dev2")).body.decode()
        assert "it is not connected, and it is not known when it was" in said
        async with nodes.agent("a", {"web": f"http://{web}"}):
            pass
        said = (await nodes.get("a")).body.decode()
        assert "is gone since" not in said


async def test_a_device_that_sends_single_bytes_to_a_visitor_who_has_left_ends_no_hop(
    nodes: Nodes,
) -> None:
    """As many frames as the window has bytes are under way then, for a stream that is gone."""
    hops: Hops = nodes["a"].store.hops  # type: ignore[attr-defined]
    engine = Engine(is_client=True, limits=hops._limits)
    stream = engine.open_stream(0.0)
    stream.send(b"CONNECT")
    engine.data_to_send(0.0)
    stream.reset()
    engine.data_to_send(0.0)
    engine.receive_data(pack(data(1, b"x")) * INITIAL_WINDOW, 0.0)
    assert not engine.is_closed


async def test_a_visitor_waits_for_a_device_whose_node_was_killed(
    nodes: Nodes, web: Address
) -> None:
    target = {"web": f"http://{web}"}
    async with trio.open_nursery() as nursery:
        async with nodes.agent("b", target):
            assert (await nodes.get("a")).status == 200
            nodes.stop("b")
            answers = []

            async def visit() -> None:
                answers.append((await nodes.get("a")).status)

            nursery.start_soon(visit)
            await trio.sleep(0.2)
        async with nodes.agent("a", target):
            while not answers:  # noqa: ASYNC110  bounded by the visit's own time
                await trio.sleep(0.02)
        assert answers == [200]


@pytest.mark.slow
async def test_a_node_that_drains_finishes_what_runs_and_its_device_moves(
    nodes: Nodes, origin: Origin, web: Address
) -> None:
    asked, go_on = slow_page(origin)
    answers: dict[str, int] = {}

    async def visit(path: str) -> None:
        answers[path] = (await nodes.get("a", path)).status

    target = {"web": f"http://{web}"}
    with trio.fail_after(60):
        async with trio.open_nursery() as visitors, nodes.agent("b", target):
            visitors.start_soon(visit, "/slow")
            await asked.wait()
            visitors.start_soon(nodes["b"].drain, 30)
            membership = nodes["a"].store.membership  # type: ignore[attr-defined]
            while "b" in membership.nodes:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.02)
            async with nodes.agent("a", target):
                assert (await nodes.get("a")).status == 200
                assert answers == {}
                go_on.set()
                while not answers:  # noqa: ASYNC110
                    await trio.sleep(0.02)
        assert answers == {"/slow": 200}


@pytest.mark.slow
async def test_devices_of_a_node_that_drains_are_reached_while_a_visitor_takes_his_time(
    nodes: Nodes, origin: Origin, web: Address
) -> None:
    asked, go_on = slow_page(origin)
    answers: dict[str, int] = {}
    turn = ["b", "a"]

    async def visit(path: str) -> None:
        answers[path] = (await nodes.get("a", path)).status

    async def balance(stream: trio.SocketStream) -> None:
        address = nodes[turn.pop(0) if len(turn) > 1 else "a"].tunnel_address
        assert address is not None
        await relay(stream, await trio.open_tcp_stream(address.host, address.port))

    async with (
        serving(balance) as balancer,
        nodes.agent("b", {"web": f"http://{web}"}, at=balancer),
    ):
        async with trio.open_nursery() as visitors:
            visitors.start_soon(visit, "/slow")
            await asked.wait()
            visitors.start_soon(nodes["b"].drain, 300)
            await nodes.holds("a")
            assert (await nodes.get("a")).status == 200
            assert answers == {}, "it goes on over the session before"
            go_on.set()
        assert answers == {"/slow": 200}
        assert (await nodes.get("a")).status == 200


@pytest.mark.slow
async def test_without_redis_what_was_known_is_reached(
    nodes: Nodes, web: Address, redis: RedisServer
) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}):
        assert (await nodes.get("a")).status == 200
        redis.kill()
        try:
            membership = nodes["a"].store.membership  # type: ignore[attr-defined]
            with trio.fail_after(30):
                while not membership.is_away:  # noqa: ASYNC110  no event says so
                    await trio.sleep(0.02)
            assert (await nodes.get("a")).status == 200
            assert (await nodes.get("b")).status == 200
        finally:
            redis.start()
        with trio.fail_after(30):
            while redis.command("HLEN", "tunnelmux:nodes") != b":2\r\n":  # noqa: ASYNC110  no event says so
                await trio.sleep(0.02)
        assert (await nodes.get("a")).status == 200


async def test_who_is_no_node_gets_nowhere(nodes: Nodes) -> None:
    from tunnelmux.proxy.cluster.identity import NodeIdentity

    node = nodes["a"].store.membership.me  # type: ignore[attr-defined]
    host, _, port = node.address.rpartition(":")
    stranger = NodeIdentity.made_for("a")
    with structlog.testing.capture_logs() as logs, trio.fail_after(30):
        tls = trio.SSLStream(
            await trio.open_tcp_stream(host, int(port)),
            stranger.client_context(node.certificate),
            server_hostname="a",
        )
        with pytest.raises(trio.BrokenResourceError):
            await tls.do_handshake()
            # In TLS 1.3 a client learns of the refusal with its first read.
            await tls.receive_some()
        await trio.aclose_forcefully(tls)
        while not any(line["event"] == "hop refused" for line in logs):  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_silent_strangers_at_the_door_of_nodes_give_way_to_a_node(
    redis: RedisServer, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each of them had a task for ten seconds, and nothing bounded how many there were."""
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    limits = LimitsConfig(ingress=IngressLimits(max_handshakes=4))
    async with (
        running_nodes(redis, limits=limits) as nodes,
        nodes.agent("b", {"web": f"http://{web}"}),
    ):
        node = nodes["b"].store.membership.me  # type: ignore[attr-defined]
        host, _, port = node.address.rpartition(":")
        with structlog.testing.capture_logs() as logs, trio.fail_after(30):
            strangers = [await trio.open_tcp_stream(host, int(port)) for _ in range(10)]
            for stranger in strangers[:6]:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stranger.receive_some() == b""
            assert (await nodes.get("a")).body == b"hello\n"
        line = next(line for line in logs if line["event"] == "connections gave way")
        assert line["listener"] == "cluster"
        for stranger in strangers:
            await trio.aclose_forcefully(stranger)
