"""Connections looked at without reading, and passed between processes."""

from __future__ import annotations

import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tunnelmux.pump.epoll import Pump
from tunnelmux.pump.passing import (
    MOST_AT_ONCE,
    FirstLook,
    Passage,
    first_words,
    names_in_head,
    server_name,
)
from tunnelmux.pump.sockets import Acceptor, BareSocket
from tunnelmux.transports.tcp import python_socket

HEAD = b"GET / HTTP/1.1\r\nHost: dev1.example.org\r\n\r\n"


class Told:
    """An owner that counts how often it was called."""

    times = 0

    def on_news(self) -> None:
        self.times += 1


def run(pump: Pump) -> None:
    """One batch, and its owners told."""
    for member in pump.batch(0.0):
        member.owner.on_news()


@contextmanager
def visiting(pump: Pump) -> Iterator[tuple[socket.socket, BareSocket]]:
    """A visitor, and the connection that was accepted for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as visitor:
        listener.setblocking(False)
        acceptor = Acceptor(pump, listener.fileno(), Told())
        visitor.connect(listener.getsockname())
        [(local, _)] = acceptor.accept(1)
        acceptor.stop()
        yield visitor, local
        local.close()


@contextmanager
def joined(pump: Pump, owner: object, other: object) -> Iterator[tuple[Passage, Passage]]:
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours, theirs:
        passages = Passage(pump, ours, owner), Passage(pump, theirs, other)
        yield passages
        for passage in passages:
            passage.stop()


# -- looking --------------------------------------------------------------------------------------


def test_what_is_there_is_seen_at_once_and_left() -> None:
    pump = Pump()
    with visiting(pump) as (visitor, local):
        visitor.sendall(HEAD + b"more")
        look = FirstLook(pump, local, is_secure=False)
        assert (look.is_over, look.said) == (True, (b"dev1.example.org", b"", b""))
        assert first_words(pump, local, is_secure=False) == look.said
        with python_socket(local) as connection:
            assert connection.recv(100) == HEAD + b"more"


def test_a_head_in_pieces_is_waited_for_and_told_of_once() -> None:
    pump, owner = Pump(), Told()
    with visiting(pump) as (visitor, local):
        look = FirstLook(pump, local, is_secure=False)
        look.wait(owner)
        for part in (HEAD[:10], HEAD[10:-1]):
            assert first_words(pump, local, is_secure=False) is None
            visitor.sendall(part)
            run(pump)
            assert (look.is_over, owner.times) == (False, 0)
        visitor.sendall(HEAD[-1:])
        run(pump)
        assert (look.said, owner.times) == ((b"dev1.example.org", b"", b""), 1)
        look.stop()
        assert pump.count == 0


@pytest.mark.parametrize("case", ["drips", "is long", "leaves", "speaks no TLS"])
def test_one_that_never_says_enough_is_not_looked_at_for_ever(case: str) -> None:
    pump, owner = Pump(), Told()
    with visiting(pump) as (visitor, local):
        look = FirstLook(pump, local, is_secure=case == "speaks no TLS")
        look.wait(owner)
        if case == "drips":
            visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(32):
                visitor.sendall(b"x")
                run(pump)
        elif case == "is long":
            visitor.sendall(b"x" * 10_000)
            while not look.is_over:
                run(pump)
        elif case == "leaves":
            visitor.sendall(b"GET")
            visitor.shutdown(socket.SHUT_WR)
            run(pump)
        else:
            visitor.sendall(b"GET")
            run(pump)
        assert (look.is_over, look.said, owner.times) == (True, (b"", b"", b""), 1)
        look.stop()


def client_hello(name: str | None) -> bytes:
    """What Python's TLS sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_client_hello_is_waited_for() -> None:
    pump, hello = Pump(), client_hello("dev1.example.org")
    with visiting(pump) as (visitor, local):
        visitor.sendall(hello[:-1])
        look = FirstLook(pump, local, is_secure=True)
        assert not look.is_over
        look.wait(Told())
        visitor.sendall(hello[-1:])
        run(pump)
        assert look.said == (b"dev1.example.org", b"", b"")
        look.stop()


def test_server_names() -> None:
    hello = client_hello("dev1.example.org")
    assert server_name(hello) == b"dev1.example.org"
    assert server_name(client_hello(None)) == b""
    for size in range(len(hello)):  # cut anywhere, it may say a part of the name
        assert b"dev1.example.org".startswith(server_name(hello[:size]))
    for index in range(len(hello)):  # broken anywhere, it may say something else
        assert isinstance(server_name(hello[:index] + b"\xff" + hello[index + 1 :]), bytes)
    assert server_name(HEAD) == b""


def test_names_in_a_head() -> None:
    head = b"GET / HTTP/1.1\r\nHOST:\t x \r\ntunnelmux-device: dev1\r\nTunnelmux-Service:web\r\n"
    assert names_in_head(head + b"\r\n") == (b"x", b"dev1", b"web")
    assert names_in_head(head + b"Host: ") == (b"x", b"dev1", b"web")  # cut
    assert names_in_head(b"GET / HTTP/1.1\r\nA: b\r\n\r\nHost: x\r\n\r\n") == (b"", b"", b"")


# -- passing --------------------------------------------------------------------------------------


def test_a_connection_is_passed_with_all_that_was_said_on_it() -> None:
    pump, owner = Pump(), Told()
    with visiting(pump) as (visitor, local), joined(pump, Told(), owner) as (ours, theirs):
        visitor.sendall(HEAD)
        assert ours.send(b"http 192.0.2.1:1", [local])
        local.close()
        run(pump)
        received = theirs.receive(10)
        assert received is not None
        [(message, [passed])] = received
        assert (message, owner.times) == (b"http 192.0.2.1:1", 1)
        assert not os.get_inheritable(passed.fileno())
        with python_socket(passed) as connection:
            assert connection.family == socket.AF_INET
            assert connection.recv(100) == HEAD
            connection.sendall(b"answer")
        assert visitor.recv(100) == b"answer"
        assert visitor.recv(100) == b""  # no descriptor of it is left anywhere


def test_what_was_passed_and_never_taken_is_not_left_open() -> None:
    pump = Pump()
    with visiting(pump) as (visitor, local):
        with joined(pump, Told(), Told()) as (ours, _):
            assert ours.send(b"http", [local])
            local.close()
        visitor.settimeout(10)
        assert visitor.recv(100) == b""


def test_a_way_that_is_full_says_so_and_is_ready_again_later() -> None:
    pump, owner = Pump(), Told()
    with joined(pump, owner, Told()) as (ours, theirs):
        count = 0
        while ours.send(b"%d" % count):
            count += 1
        run(pump)
        owner.times = 0
        taken: list[bytes] = []
        while len(taken) < count:
            received = theirs.receive(64)
            assert received is not None
            taken += [message for message, _ in received]
        assert taken == [b"%d" % number for number in range(count)]
        run(pump)
        assert owner.times == 1
        assert ours.send(b"again")


def test_what_was_said_before_the_end_is_heard() -> None:
    pump = Pump()
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours:
        passage, other = Passage(pump, ours, Told()), Passage(pump, theirs, Told())
        assert passage.send(b"never read")  # so that the end is a reset
        assert other.send(b"one")
        assert other.send(b"two")
        other.stop()
        theirs.close()
        assert passage.receive(10) == [(b"one", []), (b"two", [])]
        assert passage.receive(10) is None
        with pytest.raises(OSError, match=r"."):
            passage.send(b"too late")
        passage.stop()


def test_messages_that_cannot_be() -> None:
    with joined(Pump(), Told(), Told()) as (ours, _):
        for message in (b"", b"x" * 4097):
            with pytest.raises(OSError, match=r"(?i)message too long"):
                ours.send(message)


def test_connections_that_go_together_keep_their_order() -> None:
    pump = Pump()
    with joined(pump, Told(), Told()) as (ours, theirs), ExitStack() as stack:
        given = [stack.enter_context(socket.socket()) for _ in range(MOST_AT_ONCE)]
        for number, one in enumerate(given):
            one.bind(("127.0.0.1", 0))
            assert number == 0 or one.getsockname() != given[number - 1].getsockname()
        assert ours.send(b"x" * 4096, given)
        received = theirs.receive(10)
        assert received is not None
        [(message, passed)] = received
        assert message == b"x" * 4096
        taken = [stack.enter_context(python_socket(one)) for one in passed]
        assert [one.getsockname() for one in taken] == [one.getsockname() for one in given]
        with pytest.raises(OSError, match=r"(?i)invalid argument"):
            ours.send(b"one more", [*given, given[0]])


def test_the_last_connections_are_missing_where_no_descriptor_is_left() -> None:
    pump = Pump()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with joined(pump, Told(), Told()) as (ours, theirs), ExitStack() as stack:
        given = [stack.enter_context(socket.socket()) for _ in range(3)]
        assert ours.send(b"three", given)
        # Room for one more: the lowest free number, and no gap above it.
        fillers = [os.dup(given[0].fileno())]
        stack.callback(lambda: [os.close(one) for one in fillers])
        highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
        while fillers[-1] <= highest:
            fillers.append(os.dup(given[0].fileno()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 2, hard))
        try:
            received = theirs.receive(10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert received is not None
        [(message, passed)] = received
        assert (message, len(passed)) == (b"three", 1)
        passed[0].close()
