"""Sessions over real sockets, carried by a pump or by Trio streams, and what is relayed on them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial

import trio
import trustme

from support.streams import socket_pair, tls_pair, websocket_pair
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.pump.data_pump import DataPump, open_pump
from tunnelmux.relay import RelayResult, relay

WAYS = ["pump-tcp", "pump-websocket", "pump-wss", "streams-tcp", "streams-websocket"]
"""How bytes can get from a relay's socket to the other session and back."""


@cache
def tls_contexts(*, tickets: bool = True) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, with an authority of their own. Without session tickets a client
    that sends only leaves nothing unread, which would make its close a reset."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if not tickets:
        server.num_tickets = 0
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def carried_sessions(
    way: str, *, limits: Limits | None = None, server_limits: Limits | None = None
) -> AsyncIterator[tuple[Session, Session]]:
    """A client and a server session on one real connection, carried in that way."""
    carrier, _, transport = way.partition("-")
    async with AsyncExitStack() as stack:
        pump: DataPump | None = None
        if carrier == "pump":
            pump = await stack.enter_async_context(open_pump())
        nursery = await stack.enter_async_context(trio.open_nursery())
        pair: tuple[trio.abc.Stream, trio.abc.Stream]
        if transport == "wss":
            pair = await tls_pair(*tls_contexts())
        else:
            pair = await socket_pair()
        if transport != "tcp":
            pair = await websocket_pair(nursery, pair)
        enter = stack.enter_async_context
        client = await enter(open_session(pair[0], is_client=True, limits=limits, pump=pump))
        server = await enter(
            open_session(pair[1], is_client=False, limits=server_limits or limits, pump=pump)
        )
        if pump is not None:
            while client.tunnel is None or server.tunnel is None:
                await trio.lowlevel.checkpoint()
        yield client, server


@dataclass
class Relayed:
    """A stream with a relay at each end: what goes into `near` comes out of `far`, and back."""

    near: trio.SocketStream
    far: trio.SocketStream
    near_result: RelayResult
    far_result: RelayResult
    near_scope: trio.CancelScope
    far_scope: trio.CancelScope
    over: trio.Event
    secure: trio.SSLStream[trio.abc.Stream] | None = None
    """What comes out of `far` too, where the near socket is under TLS: use it in its place."""

    async def end(self) -> None:
        """End both directions in order, and wait for both relays."""
        await self.near.send_eof()
        await self.far.send_eof()
        with trio.fail_after(20):
            await self.over.wait()


@asynccontextmanager
async def relayed(
    client: Session, server: Session, opening: trio.Lock | None = None, *, tls: bool = False
) -> AsyncIterator[Relayed]:
    """Two relays that join two sockets by a stream of the sessions; both are cut at the end.

    Who begins several at once gives them one lock, so that each gets its own stream's two ends.
    With *tls*, the near socket is a visitor's under TLS.
    """
    secure: trio.SSLStream[trio.abc.Stream] | None = None
    near_local: trio.abc.Stream
    if tls:
        secure, near_local = await tls_pair(*tls_contexts())
        assert isinstance(secure.transport_stream, trio.SocketStream)
        near = secure.transport_stream
    else:
        near, near_local = await socket_pair()
    far, far_local = await socket_pair()
    async with opening or trio.Lock():
        ours = await client.open_stream()
        theirs = await server.accept_stream()
    one = Relayed(
        near,
        far,
        RelayResult(),
        RelayResult(),
        trio.CancelScope(),
        trio.CancelScope(),
        trio.Event(),
        secure,
    )

    async def run() -> None:
        async with trio.open_nursery() as relays:
            relays.start_soon(_run, one.near_scope, partial(relay, ours, near_local), one, "near")
            relays.start_soon(_run, one.far_scope, partial(relay, far_local, theirs), one, "far")
        one.over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield one
        finally:
            nursery.cancel_scope.cancel()
            near.socket.close()
            far.socket.close()


async def _run(scope: trio.CancelScope, start: partial, one: Relayed, side: str) -> None:  # type: ignore[type-arg]
    with scope:
        await start(result=one.near_result if side == "near" else one.far_result)
