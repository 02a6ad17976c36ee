"""A proxy with its internal API, an agent behind it, and a small device for it to reach."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h11
import trio
import trio_websocket

from tunnelmux.agent import run_agent
from tunnelmux.backend import ProxyClient
from tunnelmux.config import (
    AgentConfig,
    Device,
    DeviceConfig,
    InternalListener,
    LimitsConfig,
    ProxyConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
    TunnelListener,
)
from tunnelmux.proxy import RunningProxy, run_proxy

__all__ = ["DEVICE_TOKEN", "SECRET", "Site", "running_site"]

SECRET = "the-secret-of-the-back-end"
DEVICE_TOKEN = "token-of-dev1"
FRAME = b"\xff\xd8 a picture, or so \xff\xd9"
FRAME_INTERVAL = 0.05
"""Seconds between two frames of the camera."""


class SmallDevice:
    """An HTTP server with one page of each kind: JSON, echo, MJPEG and WebSocket."""

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        # An agent that is stopped leaves within an exchange.
        with contextlib.suppress(trio.BrokenResourceError):
            await self._serve(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += (piece := await stream.receive_some())
            if not piece:
                return
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        request = connection.next_event()
        assert isinstance(request, h11.Request)
        self.requests += 1
        path = request.target.partition(b"?")[0]
        if path == b"/ws":
            await self._websocket(stream, data)
            return
        body = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Data):
                body += event.data
        if path == b"/camera":
            await self._camera(stream)
        elif path == b"/echo":
            await stream.send_all(answer(b"application/octet-stream", body))
        else:
            await stream.send_all(answer(b"application/json", b'{"status": "fine"}'))
        await stream.aclose()

    async def _camera(self, stream: trio.SocketStream) -> None:
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
            b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
        )
        while True:
            await stream.send_all(
                b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
                % (len(FRAME), FRAME)
            )
            await trio.sleep(FRAME_INTERVAL)

    async def _websocket(self, stream: trio.SocketStream, data: bytes) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, Replayed(stream, data))
            websocket = await request.accept()
            try:
                while True:
                    await websocket.send_message(await websocket.get_message())
            except trio_websocket.ConnectionClosed:
                nursery.cancel_scope.cancel()


class Replayed(trio.abc.Stream):
    """A stream whose first bytes were read already."""

    def __init__(self, stream: trio.SocketStream, data: bytes) -> None:
        self._stream = stream
        self._data = data

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._data:
            data, self._data = self._data, b""
            await trio.lowlevel.checkpoint()
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def answer(kind: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n" % (kind, len(body))
    return head + b"Connection: close\r\n\r\n" + body


class Site:
    """What is running. `start_agent` connects the device once more, replacing its session."""

    def __init__(self, nursery: trio.Nursery, proxy: RunningProxy, device: SmallDevice) -> None:
        self.proxy = proxy
        self.device = device
        self._nursery = nursery
        self._target = ""
        self._agents: list[trio.CancelScope] = []

    @property
    def url(self) -> str:
        return f"http://{self.proxy.internal_address}"

    @property
    def client(self) -> ProxyClient:
        return ProxyClient(self.url, secret=SECRET)

    async def token(self) -> str:
        """That of the device's session now, as the API tells it."""
        with trio.fail_after(30):
            while not (sessions := await self.client.list_sessions()):  # noqa: ASYNC110
                await trio.sleep(
                    0.01
                )  # an agent that was replaced may come back before it is stopped
        [session] = sessions
        return session.token

    async def start(self) -> None:
        [listener] = await self._nursery.start(
            partial(trio.serve_tcp, self.device.serve, 0, host="127.0.0.1")
        )
        self._target = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await self.start_agent()

    async def start_agent(self) -> None:
        """Another agent of the same identity. The one before is stopped once it was replaced."""
        before = await self.proxy.store.find_device("dev1")
        scope = trio.CancelScope()
        self._nursery.start_soon(self._run_agent, scope)
        with trio.fail_after(30):
            while (now := await self.proxy.store.find_device("dev1")) is before or now is None:  # noqa: ASYNC110
                await trio.sleep(0.002)  # no event tells that one replaced another
        for old in self._agents:
            old.cancel()
        self._agents = [scope]

    async def _run_agent(self, scope: trio.CancelScope) -> None:
        config = AgentConfig(
            proxy=ProxyEndpoint(
                url=f"ws://{self.proxy.tunnel_address}/tunnel/connect",
                token=Secret(DEVICE_TOKEN),
            ),
            device=Device(name="dev1"),
            services=[ServiceConfig(name="web", target=self._target)],
        )
        with scope:
            await run_agent(config)


@asynccontextmanager
async def running_site(*, limits: LimitsConfig | None = None) -> AsyncIterator[Site]:
    """A site on loopback ports; what still runs when the block is left is cancelled."""
    config = ProxyConfig(
        tunnel=TunnelListener(listen="127.0.0.1:0"),
        internal=InternalListener(listen="127.0.0.1:0", secret=Secret(SECRET)),
        devices=[DeviceConfig(name="dev1", token=Secret(DEVICE_TOKEN))],
        limits=limits or LimitsConfig(),
    )
    async with trio.open_nursery() as nursery:
        proxy = await nursery.start(partial(run_proxy, config))
        site = Site(nursery, proxy, SmallDevice())
        await site.start()
        yield site
        nursery.cancel_scope.cancel()
