"""Socket.IO peers by hand, that send what a test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import wsproto
from wsproto import events

from support.socketio_peers import API_KEY, PROXY_ID

__all__ = ["AUTH", "exchange", "fake_server", "joined", "opened", "websocket"]

AUTH = json.dumps({"proxyId": PROXY_ID, "apiKey": API_KEY})


async def exchange(
    port: int,
    method: str = "GET",
    query: str = "",
    body: str | bytes | None = None,
    path: str = "/socket.io/",
    source: str | None = None,
    fields: str = "",
) -> tuple[int, str]:
    """One HTTP exchange on a connection of its own: status and body."""
    content = body if isinstance(body, bytes) else (body or "").encode()
    head = f"{method} {path}?{query} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}"
    if body is not None:
        head += f"Content-Length: {len(content)}\r\n"
    stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=source)
    async with stream:
        with trio.fail_after(20):
            await stream.send_all(head.encode() + b"\r\n" + content)
            answer = b"".join([data async for data in stream])
    status, _, answered = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), answered.decode()


async def opened(port: int, version: int = 4) -> str:
    """The sid of a polling session that nobody has joined anything on."""
    status, body = await exchange(port, query=f"EIO={version}&transport=polling")
    assert status == 200
    return str(json.loads(body[body.index("{") :])["sid"])


async def joined(port: int) -> str:
    """The query of a polling session, of version 4, whose agent was let in."""
    sid = await opened(port)
    query = f"EIO=4&transport=polling&sid={sid}"
    assert await exchange(port, "POST", query, f"40/proxy,{AUTH}") == (200, "ok")
    status, body = await exchange(port, "GET", query)
    assert (status, body[:9]) == (200, "40/proxy,")
    return query


Send = Callable[[str | bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def websocket(
    port: int, query: str = "EIO=4&transport=websocket", client: str | None = None
) -> AsyncIterator[tuple[Send, Receive]]:
    """A WebSocket by hand: `send(text)`, `receive()` gives what comes, or the close code.
    A *client* is whom it says that it is there for, as a load balancer does."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    async with stream:
        target = f"/socket.io/?{query}"
        headers = [(b"X-Forwarded-For", client.encode())] if client is not None else []
        opening = events.Request(host="h", target=target, extra_headers=headers)
        await stream.send_all(connection.send(opening))

        async def send(data: str | bytes) -> None:
            message: events.Event = events.BytesMessage(data=data)  # type: ignore[arg-type]
            if isinstance(data, str):
                message = events.TextMessage(data=data)
            await stream.send_all(connection.send(message))

        pending: list[events.Event] = []
        while not pending:
            with trio.fail_after(20):
                connection.receive_data(await stream.receive_some(65536) or None)
            pending.extend(connection.events())

        async def receive() -> str | int | None:
            with trio.fail_after(20):
                while True:
                    for event in pending:
                        pending.remove(event)
                        if isinstance(event, events.TextMessage):
                            return event.data
                        if isinstance(event, events.CloseConnection):
                            return event.code
                        if isinstance(event, events.RejectConnection):
                            return event.status_code
                    data = await stream.receive_some(65536)
                    if not data:
                        return None
                    connection.receive_data(data)
                    pending.extend(connection.events())

        yield send, receive


@asynccontextmanager
async def fake_server(*bodies: bytes, status: str = "200 OK") -> AsyncIterator[int]:
    """A server that answers request after request with these bodies, and then never."""
    left = list(bodies)

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        if not left:
            await trio.sleep_forever()
        body = left.pop(0)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(trio.serve_listeners, handle, listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()
