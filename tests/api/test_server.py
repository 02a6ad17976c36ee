"""What api/server.py takes of anycorn's inner parts is there, and is what it takes it for.

A version of anycorn that moves one of them fails here, and not on the first connection.
"""

from __future__ import annotations

import contextlib
import inspect
import socket
from typing import Any

import anycorn
import pytest
import trio
import trio_websocket
from anycorn.protocol.h11 import H11Protocol
from anycorn.tcp_server import TCPServer
from anycorn.typing import ConnectionState, LifespanState
from anycorn.worker_context import AnyioSingleTask, WorkerContext

from tunnelmux.api import server
from tunnelmux.config import Address
from tunnelmux.transports.admission import Admission


def test_the_look_for_another_protocol_is_replaced() -> None:
    assert H11Protocol._check_protocol is server._stay_with_http_1
    assert "self._check_protocol(" in inspect.getsource(H11Protocol)


def test_a_connection_is_served_by_these_parts() -> None:
    parameters = list(inspect.signature(TCPServer.__init__).parameters)
    assert parameters == ["self", "app", "config", "context", "state", "stream"]
    assert inspect.iscoroutinefunction(TCPServer._read_data)
    assert "self._read_data()" in inspect.getsource(TCPServer.run)
    assert "self.idle_task" in inspect.getsource(TCPServer.__init__)
    assert inspect.iscoroutinefunction(AnyioSingleTask.stop)
    assert ConnectionState(LifespanState()) == {}
    assert WorkerContext(None).terminated is not None


def test_the_settings_exist() -> None:
    known = vars(anycorn.Config()) | vars(anycorn.Config)
    for name in (
        "websocket_permessage_deflate",
        "include_server_header",
        "h11_max_incomplete_size",
        "keep_alive_timeout",
        "wsgi_max_body_size",
        "websocket_max_message_size",
        "max_app_queue_size",
    ):
        assert name in known, name


async def test_a_message_of_a_websocket_has_so_many_bytes() -> None:
    received: list[int] = []

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            received.append(len(message["bytes"]))

    listener = server.listen("api.listen", Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with listener, trio.fail_after(30):
        async with (
            server.serve(application, listener, Admission("x"), grace=0, max_message=2048),
            await trio.open_tcp_stream("127.0.0.1", port) as stream,
            trio.open_nursery() as nursery,
        ):
            websocket = await trio_websocket.wrap_client_stream(nursery, stream, "x", "/")
            await websocket.send_message(bytes(2048))
            await websocket.send_message(bytes(2049))
            with pytest.raises(trio_websocket.ConnectionClosed) as ended:
                await websocket.get_message()
    reason = ended.value.reason
    assert reason is not None
    assert reason.code == 1009
    assert received == [2048]


async def test_a_crowd_at_the_door_is_taken_in_many_at_once() -> None:
    """Each connection behind it would else wait for as many turns of the scheduler."""

    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    listener = server.listen("api.listen", Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    admission, turns = Admission("x", limit=256, per_address=256), 0
    with listener, contextlib.ExitStack() as crowd, trio.fail_after(30):
        for _ in range(100):
            crowd.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port))))
        async with server.serve(application, listener, admission, grace=0):
            while len(admission) < 100:
                await trio.lowlevel.checkpoint()
                turns += 1
    assert turns < 20


async def test_a_request_in_many_pieces_of_a_stranger_is_served() -> None:
    bodies: list[bytes] = []

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        bodies.append(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    listener = server.listen("api.listen", Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with listener, trio.fail_after(30):
        async with (
            server.serve(application, listener, Admission("x"), grace=0),
            await trio.open_tcp_stream("127.0.0.1", port) as stream,
        ):
            for byte in b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello":
                await stream.send_all(bytes([byte]))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
    assert bodies == [b"hello"]


async def _nothing(_scope: Any, _receive: Any, send: Any) -> None:
    """Answers 204."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_it_ends_with_its_last_connection() -> None:
    """A program that waited out its grace at each stop would be killed by systemd."""

    listener = server.listen("api.listen", Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with listener, trio.fail_after(30):
        async with server.serve(_nothing, listener, Admission("x"), grace=3600):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")


async def test_a_listener_that_blocks_does_not_stop_the_program() -> None:
    """It may come from elsewhere, as in the demo."""

    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(30):
        port = listener.getsockname()[1]
        async with (
            server.serve(_nothing, listener, Admission("x"), grace=0),
            await trio.open_tcp_stream("127.0.0.1", port) as stream,
        ):
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
