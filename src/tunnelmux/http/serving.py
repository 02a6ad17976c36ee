"""Serve the requests of one connection, each routed by its own head."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tunnelmux.http.connection import ServerConnection, VisitorGone
from tunnelmux.http.exchange import Exchange, Upstream, forward
from tunnelmux.http.head import RequestHead
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits

__all__ = ["Route", "serve_requests", "while_visitor_stays"]

Route = Callable[[RequestHead], Awaitable[Upstream]]
"""Returns the destination of a request, or raises Refused. Called for every request."""

Connect = Callable[[ServerConnection, RequestHead], Awaitable[None]]
"""Takes over a connection that began with CONNECT, and closes it."""

Leave = Callable[[RequestHead], bool]
"""Whether this request, and those after it, are served elsewhere."""

_METHODS = b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"


async def serve_requests(
    server: ServerConnection,
    route: Route,
    limits: IngressLimits,
    record: Callable[[Exchange], None],
    *,
    connect: Connect | None = None,
    leave: Leave | None = None,
) -> bool:
    """Serve requests until the connection is over, and close it; or until `leave` says that one is
    served elsewhere. True in that case: the server still holds that request.

    `record` is called once per request, after it, also when it was refused or cancelled. A CONNECT
    goes to `connect`; without that it is refused. `leave` is asked about all others first.
    The sender's failures end the connection quietly; raises only what `route` and `connect` raise
    on top of Refused.
    """
    try:
        while (goes_on := await _serve_one(server, route, limits, record, connect, leave)) is True:
            pass
    except VisitorGone:
        await server.abort()
    except BaseException:
        await server.abort()
        raise
    else:
        return goes_on is None
    return False


@asynccontextmanager
async def while_visitor_stays(server: ServerConnection) -> AsyncIterator[None]:
    """Answer within the block, which is cancelled when the visitor leaves. Raises VisitorGone then,
    and when the block itself raises it.
    """
    gone: VisitorGone | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal gone
            try:
                await server.watch()
            except VisitorGone as exc:
                gone = exc
                nursery.cancel_scope.cancel(reason="the visitor is gone")

        nursery.start_soon(watch)
        try:
            yield
        except VisitorGone as exc:
            gone = exc
        nursery.cancel_scope.cancel(reason="the answer is over")
    if gone is not None:
        raise gone


async def _serve_one(
    server: ServerConnection,
    route: Route,
    limits: IngressLimits,
    record: Callable[[Exchange], None],
    connect: Connect | None,
    leave: Leave | None,
) -> bool | None:
    """Serve one request. True if the connection can go on; None when another part continues with
    this request.
    """
    try:
        request = await server.read_request()
    except Refused as exc:
        server.forget_request()
        await _refuse(server.send_refusal, exc.refusal, Exchange(), record)
        await server.close()  # after the record: it waits for the visitor to leave
        return False
    if request is None:
        await server.close()
        return False
    if request.method == b"CONNECT" and connect is not None:
        await connect(server, request)
        return False
    if leave is not None and leave(request):
        return None
    exchange = Exchange(request=request)
    try:
        upstream = await _route(route, request)
    except Refused as exc:
        await _refuse(server.send_refusal, exc.refusal, exchange, record)
    else:
        try:
            await forward(server, request, upstream, limits, exchange)
        finally:
            record(exchange)
    if not server.reusable:
        await server.close()
    return server.reusable


async def _route(route: Route, request: RequestHead) -> Upstream:
    if request.method == b"CONNECT":
        message = "CONNECT is not for visitors: TCP services have ports of their own here."
        raise Refused(Refusal(405, "bad-request", message, headers=[(b"Allow", _METHODS)]))
    return await route(request)


async def _refuse(
    send: Callable[[Refusal], Awaitable[None]],
    refusal: Refusal,
    exchange: Exchange,
    record: Callable[[Exchange], None],
) -> None:
    exchange.status, exchange.reason = refusal.status, refusal.reason
    exchange.problem = refusal.message
    try:
        await send(refusal)
    finally:
        record(exchange)
