"""The head of the PROXY protocol, both versions, as balancers send it and as strangers would."""

from __future__ import annotations

import ipaddress
import socket

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.transports.proxy_protocol import BadProxyHead, parse_head, read_head

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(source: str, *, command: int = 1, more: bytes = b"") -> bytes:
    """A head of version 2 from this address, with TLVs."""
    address = ipaddress.ip_address(source).packed
    family = 0x11 if len(address) == 4 else 0x21
    body = address + address + b"\x30\x39\x08\xae" + more
    return SIGNATURE + bytes([0x20 | command, family]) + len(body).to_bytes(2, "big") + body


GOOD = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 2222\r\n", "192.0.2.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 2222\r\n", "2001:db8::7"),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", "192.0.2.7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    (v2("192.0.2.7"), "192.0.2.7"),
    (v2("2001:db8::7"), "2001:db8::7"),
    (v2("192.0.2.7", more=b"\x04\x00\x03abc" * 90), "192.0.2.7"),
    (v2("192.0.2.7", command=0), None),
    (SIGNATURE + b"\x20\x00\x00\x00", None),
    (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), None),
]

BAD = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 56324 2222\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP4 cam1.example.com 198.51.100.1 56324 2222\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 2222 \xff\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 2222\n",
    b"PROXY UNKNOWN" + b"x" * 200 + b"\r\n",
    SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
    SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
    SIGNATURE + b"\x21\x11\x00\x08" + bytes(8),
    SIGNATURE + b"\x21\x11\xff\xff" + bytes(65535),
    b"",
    b"PRO",
    v2("192.0.2.7")[:-1],
]


async def heard(data: bytes, pieces: int) -> tuple[str | None, bytes]:
    """What is read of a connection that sends this and ends, and what is left behind it."""
    near, far = socket.socketpair()
    with near, trio.socket.from_stdlib_socket(far) as connection:
        near.setblocking(False)

        async def send() -> None:
            for at in range(0, len(data), pieces):
                await trio.lowlevel.wait_writable(near)
                near.sendall(data[at : at + pieces])
                await trio.lowlevel.checkpoint()
            near.shutdown(socket.SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(30):
                source = await read_head(connection)
            rest = b""
            while more := await connection.recv(65536):
                rest += more
        return source, rest


@pytest.mark.parametrize(("head", "source"), GOOD)
@pytest.mark.parametrize("pieces", [1, 7, 10_000])
async def test_a_head_is_read_and_nothing_behind_it(
    head: bytes, source: str | None, pieces: int
) -> None:
    assert await heard(head + b"SSH-2.0-x\r\n", pieces) == (source, b"SSH-2.0-x\r\n")


@pytest.mark.parametrize("data", BAD)
async def test_what_is_no_head_is_refused(data: bytes) -> None:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with near, trio.socket.from_stdlib_socket(far) as connection:
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        with trio.fail_after(30), pytest.raises(BadProxyHead):
            await read_head(connection)


async def test_no_byte_is_asked_for_twice() -> None:
    """A line that comes byte by byte costs two calls for each byte."""
    near, far = socket.socketpair()
    calls = 0
    line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 2222\r\n"
    with near, trio.socket.from_stdlib_socket(far) as connection:

        class Counted:
            async def recv(self, *arguments: int) -> bytes:
                nonlocal calls
                calls += 1
                return await connection.recv(*arguments)

        async def send() -> None:
            for byte in line:
                near.sendall(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_head(Counted()) == "192.0.2.7"  # type: ignore[arg-type]
    assert calls <= 2 * len(line)


@given(st.binary(max_size=64) | st.binary(max_size=40).map(SIGNATURE.__add__))
def test_no_input_raises_anything_else(data: bytes) -> None:
    try:
        source = parse_head(data)
    except BadProxyHead:
        return
    assert source is None or ipaddress.ip_address(source)
