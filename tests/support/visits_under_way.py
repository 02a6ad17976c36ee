"""Answers that have begun and do not end by themselves: downloads and WebSockets."""

from __future__ import annotations

import contextlib

import trio

from support.visiting import World

__all__ = ["WEBSOCKET", "begun", "is_cut"]

WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def _head(path: str, fields: dict[str, str], host: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()


async def begun(
    world: World,
    path: str,
    fields: dict[str, str],
    mark: bytes,
    host: str = "dev1.localhost",
    stream: trio.abc.Stream | None = None,
) -> trio.abc.Stream:
    """A connection on which an answer has begun that does not end; by default a new one."""
    if stream is None:
        stream = await trio.open_tcp_stream("127.0.0.1", world.this.port)
    await stream.send_all(_head(path, fields, host))
    received = b""
    while mark not in received:
        data = await stream.receive_some()
        assert data, received
        received += data
    return stream


async def is_cut(stream: trio.abc.Stream) -> bool:
    """Wait for the end of what does not end by itself."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    return True
