"""A target that takes a connection and says nothing: the visitor is told what its agent finds."""

from __future__ import annotations

import re
import ssl

import pytest
import trio
import trustme

from support.http_rig import Peer
from support.origin import serving
from support.proxies import proxy_config, running
from support.registered import agent_at
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig

GET = b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\n%s\r\n"


@pytest.mark.parametrize(
    "more", [b"", b"TE: trailers\r\nConnection: TE\r\n"], ids=["in the pump", "by h11"]
)
async def test_an_http_target_that_speaks_tls_is_said_so(more: bytes) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    handshakes = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal handshakes
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        async with stream:
            try:
                await tls.do_handshake()
                handshakes += 1
            except trio.BrokenResourceError:
                return

    with trio.fail_after(30):
        async with serving(serve) as target, running(proxy_config()) as proxy:
            config = AgentConfig(
                device=Device(name="dev1"),
                proxy=ProxyEndpoint(
                    url=f"ws://{proxy.tunnel_address}/tunnel/connect", token=Secret("token-of-dev1")
                ),
                services=[ServiceConfig(name="web", target=f"http://{target}")],
            )
            assert proxy.http_address is not None
            async with agent_at(config):
                for _ in range(3):
                    async with await trio.open_tcp_stream(*proxy.http_address) as stream:
                        await stream.send_all(GET % more)
                        visitor = Peer(stream)
                        head = await visitor.read_head()
                        assert b" 502 " in head
                        size = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
                        answer = await visitor.read_exactly(size)
                    assert b"it speaks TLS: write https://" in answer
        assert handshakes == 1  # it was tried once in a minute


async def test_one_that_is_silent_for_another_reason_is_not_said_to() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()

    with trio.fail_after(30):
        async with serving(hang_up) as target, running(proxy_config()) as proxy:
            config = AgentConfig(
                device=Device(name="dev1"),
                proxy=ProxyEndpoint(
                    url=f"ws://{proxy.tunnel_address}/tunnel/connect", token=Secret("token-of-dev1")
                ),
                services=[ServiceConfig(name="web", target=f"http://{target}")],
            )
            assert proxy.http_address is not None
            async with agent_at(config):
                async with await trio.open_tcp_stream(*proxy.http_address) as stream:
                    await stream.send_all(GET % b"")
                    answer = await Peer(stream).read_all()
                assert b"the target closed the connection without an answer" in answer
