"""A channel joined to a connection to a service, with real sockets and a channel that records."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tunnelmux.backend.raw_stream import RawStream
from tunnelmux.gateway.devices import Devices, DeviceSocket
from tunnelmux.gateway.forwarding import Forward
from tunnelmux.http import open_connect
from tunnelmux.limits import IngressLimits
from tunnelmux.transports import memory_stream_pair
from tunnelmux.transports.tcp import take_socket


class Channel:
    """The person's channel as asyncssh has it."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.ends: list[str] = []
        self.is_paused = False
        self.changed = asyncio.Event()

    def is_closing(self) -> bool:
        return bool(self.ends)

    def write(self, data: bytes) -> None:
        assert not self.ends
        self.written += data
        self.changed.set()

    def write_eof(self) -> None:
        self._end("eof")

    def close(self) -> None:
        self._end("close")

    def abort(self) -> None:
        self._end("abort")

    def pause_reading(self) -> None:
        self.is_paused = True
        self.changed.set()

    def resume_reading(self) -> None:
        self.is_paused = False
        self.changed.set()

    def _end(self, how: str) -> None:
        self.ends.append(how)
        self.changed.set()


class Stage:
    def __init__(self, forward: Forward, channel: Channel, service: socket.socket) -> None:
        self.forward, self.channel, self.service = forward, channel, service
        self.overs: list[Forward] = []

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                self.channel.changed.clear()
                await self.channel.changed.wait()

    async def receive(self) -> bytes:
        async with asyncio.timeout(30):
            return await asyncio.get_running_loop().sock_recv(self.service, 1 << 20)

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(30):
            await asyncio.get_running_loop().sock_sendall(self.service, data)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    here.setblocking(False)
    there.setblocking(False)
    return here, there


def joined(test: Callable[[Stage], Awaitable[None]], early: bytes = b"") -> None:
    async def main() -> None:
        here, there = tcp_pair()
        overs: list[Forward] = []
        forward, channel = Forward(overs.append), Channel()
        stage = Stage(forward, channel, there)
        stage.overs = overs
        with there:
            await DeviceSocket(here, early).create_connection(lambda: forward.service)
            forward.connection_made(channel)
            forward.session_started()
            await test(stage)
            forward.cut("the test is over")

    asyncio.run(main())


def test_bytes_go_both_ways_and_what_came_early_is_first() -> None:
    async def test(stage: Stage) -> None:
        await stage.send(b" and more")
        await stage.until(lambda: stage.channel.written == b"early and more")
        stage.forward.data_received(b"asked", None)
        assert await stage.receive() == b"asked"
        assert (stage.forward.sent, stage.forward.received) == (5, 14)

    joined(test, b"early")


@pytest.mark.parametrize("first", ["person", "service"])
def test_each_direction_ends_by_itself(first: str) -> None:
    async def test(stage: Stage) -> None:
        if first == "person":
            stage.forward.eof_received()
            assert await stage.receive() == b""
            await stage.send(b"answer")
            await stage.until(lambda: stage.channel.written == b"answer")
            stage.service.shutdown(socket.SHUT_WR)
        else:
            stage.service.shutdown(socket.SHUT_WR)
            await stage.until(lambda: stage.channel.ends == ["eof"])
            stage.forward.data_received(b"more", None)
            assert await stage.receive() == b"more"
            stage.forward.eof_received()
            assert await stage.receive() == b""
        await stage.until(lambda: stage.channel.ends == ["eof", "close"])
        assert stage.overs == []
        stage.forward.connection_lost(None)
        assert stage.overs == [stage.forward]

    joined(test)


def test_a_service_that_takes_nothing_holds_the_person_back_also_after_its_own_end() -> None:
    async def test(stage: Stage) -> None:
        stage.service.shutdown(socket.SHUT_WR)
        await stage.until(lambda: stage.channel.ends == ["eof"])
        sent = 0
        while not stage.channel.is_paused:
            stage.forward.data_received(bytes(65_536), None)
            sent += 65_536
            assert sent < 1 << 26
            await asyncio.sleep(0)
        while sent:
            sent -= len(await stage.receive())
        await stage.until(lambda: not stage.channel.is_paused)

    joined(test)


def test_a_person_that_takes_nothing_holds_the_service_back() -> None:
    async def test(stage: Stage) -> None:
        stage.forward.pause_writing()
        await stage.send(b"later")
        for _ in range(10):
            await asyncio.sleep(0)
        assert stage.channel.written == b""
        stage.forward.resume_writing()
        await stage.until(lambda: stage.channel.written == b"later")

    joined(test)


def test_a_cut_is_a_reset_and_no_end() -> None:
    async def test(stage: Stage) -> None:
        stage.forward.cut("the lease has ended")
        assert stage.channel.ends == ["abort"]
        with pytest.raises(ConnectionResetError):
            await stage.receive()
        await asyncio.sleep(0)
        assert stage.overs == [stage.forward]  # though the person's ssh has not answered the end
        stage.forward.connection_lost(None)
        assert stage.overs == [stage.forward]

    joined(test)


def test_a_service_that_cuts_is_no_end_for_the_person() -> None:
    async def test(stage: Stage) -> None:
        linger = b"\1\0\0\0\0\0\0\0"
        stage.service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        stage.service.close()
        await stage.until(lambda: stage.channel.ends == ["abort"])
        stage.forward.eof_received()  # harmless now

    joined(test)


def test_what_a_person_sent_before_leaving_arrives() -> None:
    async def test(stage: Stage) -> None:
        sent = bytes(range(256)) * 4096
        stage.forward.data_received(sent, None)
        stage.forward.connection_lost(None)
        received = b""
        while data := await stage.receive():
            received += data
        assert received == sent
        assert stage.overs == [stage.forward]

    joined(test)


async def test_a_socket_is_taken_from_below_with_what_was_read_already() -> None:
    here, there = tcp_pair()
    stream = RawStream(trio.SocketStream(trio.socket.from_stdlib_socket(here)), b"HTTP/1.1 200 ")
    peer = trio.SocketStream(trio.socket.from_stdlib_socket(there))
    async with peer:
        connection = await open_connect(stream, "ssh", IngressLimits(), answer_timeout=30)
        await peer.send_all(b"OK\r\n\r\nSSH-2.0-")
        await connection.wait_answer()
        taken = take_socket(connection)
        assert taken is not None
        sock, early = taken
        with sock:
            await peer.send_all(b"x")
            await trio.lowlevel.wait_readable(sock)
            assert early + sock.recv(100) == b"SSH-2.0-x"


async def test_a_stream_that_is_no_socket_is_carried_by_a_task() -> None:
    near, far = memory_stream_pair()

    class Bridge:
        def spawn(self, function: Any, *args: Any) -> None:
            nursery.start_soon(function, *args)

    async with trio.open_nursery() as nursery:
        bridge: Any = Bridge()
        nowhere: Any = None
        made = Devices(bridge, nowhere, 30)._socket(near)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(made.socket)) as stream:
            await stream.send_all(b"to it")
            assert await far.receive_some() == b"to it"
            await far.send_all(b"back")
            assert await stream.receive_some() == b"back"
            await far.send_eof()
            assert await stream.receive_some() == b""
            await stream.send_eof()
            assert await far.receive_some() == b""
