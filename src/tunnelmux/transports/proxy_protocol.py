"""The head by which a load balancer says who connected to it: HAProxy's PROXY protocol, versions 1
and 2 (proxy-protocol.txt). nginx's `stream`, HAProxy, Traefik and cloud balancers send it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

import trio

__all__ = ["BadProxyHead", "parse_head", "read_head"]

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIRST: Final = 12
# Bytes that tell the two versions apart. No head of either is shorter.

_V1_MOST: Final = 107
# Section 2.1: the longest line, with its CRLF.

_V2_FIXED: Final = 16
_V2_MOST: Final = 2048
# Addresses take at most 216 bytes; the rest is for TLVs, which are not used here.

_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP([46]) (\S+) \S+ \d{1,5} \d{1,5})\r\n"
)

_ADDRESS_BYTES: Final = {1: 4, 2: 16}
# Of version 2's families AF_INET and AF_INET6.


class BadProxyHead(ValueError):
    """What a connection began with is no head of the PROXY protocol."""


def parse_head(data: bytes) -> str | None:
    """The source address that a whole head names. None where it names none: LOCAL and UNKNOWN (a
    balancer's own check), and families other than IPv4 and IPv6. Raises BadProxyHead.
    """
    return _parse_v2(data) if data.startswith(_SIGNATURE) else _parse_v1(data)


async def read_head(connection: trio.socket.SocketType) -> str | None:
    """Read one head, and nothing behind it. What `parse_head` returns. Waits without a deadline:
    callers have one. Raises BadProxyHead and OSError.
    """
    data = await _read_exactly(connection, _FIRST)
    if data == _SIGNATURE:
        data += await _read_exactly(connection, _V2_FIXED - len(data))
        data += await _read_exactly(connection, _v2_length(data))
    elif data.startswith(b"PROXY "):
        data += await _read_line(connection, _V1_MOST - len(data))
    return parse_head(data)


async def _read_exactly(connection: trio.socket.SocketType, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await connection.recv(size - len(data))
        if not piece:
            raise BadProxyHead("the connection ended within the head")
        data += piece
    return data


async def _read_line(connection: trio.socket.SocketType, most: int) -> bytes:
    """The rest of a line. What is peeked at is taken off at once, so no byte is looked at twice."""
    line = b""
    while len(line) < most:
        seen = await connection.recv(most - len(line), socket.MSG_PEEK)
        end = seen.find(b"\n") + 1
        line += await _read_exactly(connection, end or max(len(seen), 1))
        if end:
            return line
    raise BadProxyHead(f"its line is longer than {_V1_MOST} bytes")


def _parse_v1(data: bytes) -> str | None:
    found = _LINE.fullmatch(data)
    if found is None:
        raise BadProxyHead("it is neither a line `PROXY …` nor the signature of version 2")
    family, source = found.groups()
    return None if family is None else _address(source.decode("ascii", "replace"), int(family))


def _v2_length(fixed: bytes) -> int:
    length = int.from_bytes(fixed[14:16], "big")
    if length > _V2_MOST:
        raise BadProxyHead(f"it says that {length} bytes follow; {_V2_MOST} are taken")
    return length


def _parse_v2(data: bytes) -> str | None:
    if len(data) < _V2_FIXED or len(data) != _V2_FIXED + _v2_length(data):
        raise BadProxyHead("it is shorter or longer than it says")
    version, command = divmod(data[12], 16)
    if version != 2 or command > 1:
        raise BadProxyHead(f"its version and command are 0x{data[12]:02x}")
    size = _ADDRESS_BYTES.get(data[13] >> 4)
    if command == 0 or size is None:
        return None
    if len(data) < _V2_FIXED + 2 * size + 4:
        raise BadProxyHead("it is too short for its addresses")
    return _plain(ipaddress.ip_address(data[_V2_FIXED : _V2_FIXED + size]))


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise BadProxyHead("its source is no address") from exc
    if address.version != version or getattr(address, "scope_id", None):
        raise BadProxyHead(f"its source is no address of IPv{version}")
    return _plain(address)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
