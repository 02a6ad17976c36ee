"""An HTTP proxy for CONNECT on a real port, which knows names that nobody else resolves."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tunnelmux.transports import bound_addresses, serve_connections

__all__ = ["ConnectProxy", "connect_proxy"]


@dataclass
class ConnectProxy:
    """`answer`, when it is set, is sent in place of a connection."""

    port: int = 0
    names: dict[str, str] = field(default_factory=dict)
    """What the names it connects to resolve to; others are tried as they are."""
    answer: bytes = b""
    ssl_context: ssl.SSLContext | None = None
    heads: list[str] = field(default_factory=list)
    """The heads of all requests."""

    @property
    def asked(self) -> list[str]:
        """What it was to connect to, in order."""
        return [head.split()[1] for head in self.heads]

    async def handle(self, connection: trio.SocketStream) -> None:
        client: trio.abc.Stream = connection
        if self.ssl_context is not None:
            client = trio.SSLStream(connection, self.ssl_context, server_side=True)
        with contextlib.suppress(trio.BrokenResourceError, OSError):
            await self._serve(client)

    async def _serve(self, client: trio.abc.Stream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = await client.receive_some(1)
            if not data:
                return
            head += data
        self.heads.append(head.decode("latin-1"))
        if self.answer:
            await client.send_all(self.answer)
            await client.aclose()
            return
        host, _, port = self.asked[-1].rpartition(":")
        async with await trio.open_tcp_stream(self.names.get(host, host), int(port)) as server:
            # HTTP/1.0, as many of them still say.
            await client.send_all(b"HTTP/1.0 200 Connection established\r\nVia: 1.0 test\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy, client, server, nursery.cancel_scope)
                nursery.start_soon(_copy, server, client, nursery.cancel_scope)


async def _copy(source: trio.abc.Stream, target: trio.abc.Stream, over: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some():
            await target.send_all(data)
    over.cancel()


@asynccontextmanager
async def connect_proxy(
    answer: bytes = b"",
    *,
    names: dict[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[ConnectProxy]:
    """A proxy on the loopback interface for the length of the block."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = ConnectProxy(bound_addresses(listeners)[0][1], names or {}, answer, ssl_context)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_connections, proxy.handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
