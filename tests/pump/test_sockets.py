"""Sockets accepted and connected by the pump."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from tunnelmux.config import Address
from tunnelmux.proxy.visitors.listeners import ListenerPlan, ListenerSet
from tunnelmux.pump.data_pump import open_pump
from tunnelmux.pump.epoll import Pump
from tunnelmux.pump.sockets import Acceptor, BareSocket, Dialler
from tunnelmux.transports.tcp import OPTIONS, python_socket

LOOPBACK = pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)


class Told:
    """An owner that counts how often it was called."""

    times = 0

    def on_news(self) -> None:
        self.times += 1


@contextmanager
def listening(family: int = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind((host, 0))
        listener.listen()
        yield listener


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    gc.collect()  # sockets of earlier tests would give their descriptors back in between
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_epoll_that_fails_is_an_error_that_says_why() -> None:
    """Its -1 once left a function as if an exception had been set, which is a SystemError."""
    pump = Pump()
    with Path(os.devnull).open() as other:
        os.dup2(other.fileno(), pump.fileno())  # no epoll any more, and still the pump's to close
    with pytest.raises(OSError, match="Invalid argument") as caught:
        pump.batch(0.0)
    assert caught.value.errno == errno.EINVAL


# -- accepting ------------------------------------------------------------------------------------


@LOOPBACK
def test_who_waits_is_accepted_with_the_address_python_would_give(family: int, host: str) -> None:
    with listening(family, host) as listener, socket.socket(family) as visitor:
        acceptor = Acceptor(Pump(), listener.fileno(), Told())
        visitor.connect(listener.getsockname())
        [(bare, remote)] = acceptor.accept(10)
        fd = bare.fileno()
        with python_socket(bare) as accepted:
            assert accepted.family == family
            assert remote == str(Address(*visitor.getsockname()[:2]))
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
            visitor.sendall(b"hello")
            accepted.setblocking(True)
            assert accepted.recv(5) == b"hello"
        assert acceptor.accept(10) == []


def test_the_owner_is_called_until_nobody_waits() -> None:
    pump, told = Pump(), Told()
    with listening() as listener:
        acceptor = Acceptor(pump, listener.fileno(), told)
        visitors = [socket.create_connection(listener.getsockname()) for _ in range(5)]
        calls = []
        while members := pump.batch(0.0):
            assert members == [acceptor]
            arrived = acceptor.accept(2)
            calls.append(len(arrived))
            for bare, _remote in arrived:
                bare.close()
        assert calls == [2, 2, 1]
        acceptor.stop()
        acceptor.stop()
        with socket.create_connection(listener.getsockname()):
            assert pump.batch(0.0) == []
        for visitor in visitors:
            visitor.close()


def test_who_came_before_descriptors_ran_out_is_served_and_the_rest_later() -> None:
    pump = Pump()
    with listening() as listener:
        acceptor = Acceptor(pump, listener.fileno(), Told())
        with socket.create_connection(listener.getsockname()) as visitor:
            with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
                acceptor.accept(10)
            acceptor.again()
            assert pump.batch(0.0) == [acceptor]
            [(bare, remote)] = acceptor.accept(10)
            bare.close()
            assert remote == str(Address(*visitor.getsockname()))


@asynccontextmanager
async def pumped_listener(
    take: Callable[[BareSocket, str], bool],
    handle: Callable[[trio.SocketStream, str], Awaitable[None]],
) -> AsyncIterator[Address]:
    """The address of a listener in a pump, which asks `take` about each connection."""
    async with open_pump() as pump, trio.open_nursery() as nursery:
        listeners = ListenerSet(nursery, pump)
        plan = ListenerPlan(
            key="test.listen",
            address=Address("127.0.0.1", 0),
            handler=handle,
            nursery=nursery,
            take=take,
        )
        assert await listeners.apply({"test": plan}) == []
        address = listeners.address("test")
        assert address is not None
        with trio.fail_after(20):
            yield address
        listeners.close()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(*address)


async def test_a_listener_in_the_pump_survives_what_goes_wrong_with_one_connection() -> None:
    served: list[str] = []
    answers = iter([True, ValueError("a bug"), False])

    def take(bare: BareSocket, _remote: str) -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        if answer:
            connection = python_socket(bare)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            connection.send(b"taken")
            connection.close()
        return answer

    async def handle(stream: trio.SocketStream, remote: str) -> None:
        served.append(remote)
        await stream.send_all(b"in a task")

    got = []
    with capture_logs() as logs:
        async with pumped_listener(take, handle) as address:
            for _ in range(3):
                async with await trio.open_tcp_stream(*address) as visitor:
                    got.append(b"".join([data async for data in visitor]))
    assert got == [b"taken", b"", b"in a task"]
    assert len(served) == 1
    errors = [line["event"] for line in logs if line["log_level"] == "error"]
    assert errors == ["unhandled error in connection"]


async def test_a_listener_in_the_pump_waits_until_there_are_descriptors_again() -> None:
    def take(connection: BareSocket, _remote: str) -> bool:
        connection.close()
        return True

    async def handle(_stream: trio.SocketStream, _remote: str) -> None:
        raise AssertionError("it was taken")

    async with pumped_listener(take, handle) as address:
        with trio.socket.socket() as visitor:
            with capture_logs() as logs, no_descriptor_left():
                await visitor.connect(tuple(address))
                while not logs:
                    await trio.lowlevel.checkpoint()
            assert await visitor.recv(1) == b"", "it was not let in afterwards"
        assert all(line["event"].startswith("no connection can be accepted") for line in logs)


def test_a_bare_socket_ends_as_it_is_told_and_never_twice() -> None:
    with listening() as listener:
        acceptor = Acceptor(Pump(), listener.fileno(), Told())
        for end, seen in (("close", b""), ("reset", None), ("forget", b""), ("become", b"mine")):
            with socket.create_connection(listener.getsockname(), timeout=30) as visitor:
                [(bare, _remote)] = acceptor.accept(10)
                number = bare.fileno()
                if end == "close":
                    bare.close()
                elif end == "reset":
                    bare.reset()
                elif end == "forget":
                    del bare
                else:
                    with python_socket(bare) as own:
                        assert (own.fileno(), bare.fileno()) == (number, -1)
                        bare.close()
                        bare.reset()
                        own.sendall(b"mine")
                if seen is None:
                    with pytest.raises(ConnectionResetError):
                        visitor.recv(9)
                else:
                    assert visitor.recv(9) == seen
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(number)
                if end != "forget":
                    assert bare.fileno() == -1
                    bare.close()
                    bare.reset()


# -- connecting -----------------------------------------------------------------------------------


@LOOPBACK
def test_a_connection_with_the_options_that_were_asked_for(family: int, host: str) -> None:
    with listening(family, host) as listener:
        dialler = Dialler(host, listener.getsockname()[1], OPTIONS)
        for _ in range(2):
            with python_socket(dialler.dial()) as local:
                assert local.family == family
                assert not os.get_inheritable(local.fileno())
                for level, option, value in OPTIONS:
                    assert local.getsockopt(level, option) == value
                listener.setblocking(True)
                accepted, remote = listener.accept()
                assert remote[:2] == local.getsockname()[:2]
                accepted.close()


@pytest.mark.parametrize("name", ["localhost", "fe80::1%lo", "", "1.2.3", "127.0.0.1\0"])
def test_what_is_no_address_has_to_be_looked_up_by_somebody_else(name: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        Dialler(name, 80)


def test_what_cannot_even_begin_says_why() -> None:
    with pytest.raises(OSError, match=r"unreachable|not permitted|Permission"):
        Dialler("255.255.255.255", 80).dial()
    dialler = Dialler("127.0.0.1", 80)
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        dialler.dial()


def test_more_options_than_are_kept_are_refused() -> None:
    with pytest.raises(ValueError, match="17 options"):
        Dialler("127.0.0.1", 80, OPTIONS[:1] * 17)
