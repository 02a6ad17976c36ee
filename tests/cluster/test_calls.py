"""A back end calls either node about a session of any, by the token that it knows."""

from __future__ import annotations

import pytest
import trio

from support.doors import open_doors
from support.http_rig import Peer
from support.nodes import Nodes, running_nodes
from support.origin import Origin, slow_page
from support.redis_server import RedisServer
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.config import Address, LimitsConfig
from tunnelmux.errors import SessionNotFound
from tunnelmux.limits import InternalLimits
from tunnelmux.sessions import LocalHandle


def caller_of(nodes: Nodes, name: str) -> ProxyClient:
    return ProxyClient(f"http://{nodes[name].internal_address}")


def session_at(nodes: Nodes, name: str) -> LocalHandle:
    handle = nodes[name].store.own_device("dev1")
    assert isinstance(handle, LocalHandle)
    return handle


async def test_a_session_of_another_node_by_its_token(nodes: Nodes, web: Address) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}), caller_of(nodes, "a") as client:
        own = session_at(nodes, "b")
        told = await client.get_session(own.token)
        assert (told.device_id, told.token) == ("dev1", own.token)
        assert told.remote_addr == own.remote_address
        assert (await client.forward_http(own.token, "GET", "/")).body == b"hello\n"
        async with await client.open_stream(own.token, service="web") as stream:
            peer = Peer(stream)
            await peer.send(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            assert (await peer.read_all()).endswith(b"hello\n")

        await client.close_session(own.token)
        assert own.end_reason == "closed through the internal API"
        with pytest.raises(SessionNotFound):
            await client.get_session(own.token)
        await nodes.holds("b")  # its agent has connected again
        assert (await client.forward_http(session_at(nodes, "b").token, "GET", "/")).status == 200
        for token in ("unknown", "odd token\r\nX: y", "x" * 9000):
            with pytest.raises((SessionNotFound, ApiCallFailed)):
                await client.get_session(token)


async def test_a_token_names_one_of_two_sessions(
    redis: RedisServer, origin: Origin, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call goes over that session, though the node that is called has one of the device too;
    and closing it leaves the other."""
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    asked, go_on = slow_page(origin)
    async with (
        open_doors("a", "b") as doors,
        running_nodes(redis, doors=doors) as nodes,
        nodes.agent_at(doors.url("a"), {"web": f"http://{web}"}),
        caller_of(nodes, "a") as client,
    ):
        await nodes.holds("a")
        await nodes.holds("b")
        here, there = session_at(nodes, "a"), session_at(nodes, "b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.forward_http, there.token, "GET", "/slow")
            await asked.wait()
            assert (here.session.stream_count, there.session.stream_count) == (0, 1)
            go_on.set()
        await client.close_session(there.token)
        assert there.is_closed
        assert not here.is_closed


async def test_forwards_of_a_session_elsewhere_have_their_own_limit(
    redis: RedisServer, origin: Origin, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    asked, go_on = slow_page(origin)
    limits = LimitsConfig(internal=InternalLimits(max_forwards_per_session=1))
    async with (
        running_nodes(redis, limits=limits) as nodes,
        nodes.agent("b", {"web": f"http://{web}"}),
        nodes.agent("b", {"web": f"http://{web}"}, "dev2"),
        caller_of(nodes, "a") as client,
    ):
        own, other = session_at(nodes, "b"), nodes["b"].store.own_device("dev2")
        assert other is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.forward_http, own.token, "GET", "/slow")
            await asked.wait()
            with pytest.raises(ApiCallFailed) as refused:
                await client.forward_http(own.token, "GET", "/")
            assert refused.value.code == "TOO_MANY_FORWARDS"
            assert (await client.forward_http(other.token, "GET", "/")).status == 200
            go_on.set()
