"""Connected pairs of streams, in memory and over real sockets."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import trio

from tunnelmux.transports import (
    WebSocketStream,
    memory_stream_pair,
    parse_url,
    read_upgrade,
)
from tunnelmux.transports.tls import start_client_tls
from tunnelmux.transports.websocket import start_websocket_client, start_websocket_server

__all__ = ["TUNNEL_URL", "next_bytes", "socket_pair", "tls_pair", "websocket_pair"]

TUNNEL_URL = parse_url("ws://proxy.example.com:3800/tunnel/connect")


async def next_bytes(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """The next *count* bytes, in however many pieces they come; fewer when the stream ends."""
    data = b""
    while len(data) < count and (piece := await stream.receive_some(count - len(data))):
        data += piece
    return data


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """(client, server) of one real TCP connection on the loopback interface."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        client = await trio.open_tcp_stream("127.0.0.1", port)
        server = await listener.accept()
    return client, server


async def tls_pair(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> tuple[trio.SSLStream[trio.abc.Stream], trio.SSLStream[trio.SocketStream]]:
    """(client, server) of one TLS connection over real sockets, both handshakes done."""
    client, server = await socket_pair()
    secured = trio.SSLStream(server, server_context, server_side=True, https_compatible=True)
    result: list[trio.SSLStream[trio.abc.Stream]] = []

    async def run_client() -> None:
        result.append(await start_client_tls(client, client_context, "127.0.0.1", where="test"))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_client)
            nursery.start_soon(secured.do_handshake)
    except BaseException:
        await trio.aclose_forcefully(server)
        raise
    return result[0], secured


async def websocket_pair(
    nursery: trio.Nursery,
    pair: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
    *,
    capacity: int | None = None,
    accept_headers: Sequence[tuple[bytes, bytes]] = (),
) -> tuple[WebSocketStream, WebSocketStream]:
    """(client, server) of one WebSocket over `pair`, or over memory streams of that capacity."""
    below_client, below_server = pair or memory_stream_pair(capacity)
    result: list[WebSocketStream] = []

    async def serve() -> None:
        request = await read_upgrade(below_server, path=TUNNEL_URL.path)
        result.append(await start_websocket_server(nursery, request, headers=accept_headers))

    async with trio.open_nursery() as starting:
        starting.start_soon(serve)
        client = await start_websocket_client(nursery, below_client, TUNNEL_URL)
    return client, result[0]
