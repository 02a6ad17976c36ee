"""A server that answers pairing with values that cannot be is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tunnelmux.agent.pairing import PairingServer
from tunnelmux.errors import ConnectError

WAITING = {"expires_in": 600, "confirm_url": "https://x/pair", "code": "AB12", "secret": "s"}
JOINED = {"device": "d", "label": "dev1", "token": "t", "tunnel_urls": ["wss://x/"]}


def ask_for_code(server: PairingServer) -> Awaitable[Any]:
    return server.request(name="dev1", serial="", fingerprint="SHA256:x")


def use_code(server: PairingServer) -> Awaitable[Any]:
    return server.exchange("AB12", name="dev1", serial="")


@pytest.mark.parametrize(
    ("call", "answer", "key"),
    [
        (ask_for_code, WAITING | {"interval": -1}, "interval"),
        (ask_for_code, WAITING | {"interval": 0}, "interval"),
        (ask_for_code, WAITING | {"interval": 1e300}, "interval"),
        (ask_for_code, WAITING | {"expires_in": -1}, "expires_in"),
        (ask_for_code, WAITING | {"expires_in": 1e300}, "expires_in"),
        (use_code, JOINED | {"token": "\u20ac"}, "token"),
        (use_code, JOINED | {"token": ""}, "token"),
        (use_code, JOINED | {"token": "a\nb"}, "token"),
    ],
)
async def test_values_that_cannot_be_are_refused_in_a_sentence(
    call: Callable[[PairingServer], Awaitable[Any]], answer: dict[str, Any], key: str
) -> None:
    body = json.dumps(answer).encode()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += await stream.receive_some()
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        server = PairingServer(f"http://127.0.0.1:{port}", environ={})
        with pytest.raises(ConnectError, match=rf"cannot be understood.*{key}"):
            await call(server)
        nursery.cancel_scope.cancel()
