"""Visitors whose device another process of this proxy has: how to tell, and the way there.

A visitor may be served by any process: one that is not where the device is takes a hop. So what is
read here is a hint, which need not be judged: it decides what a request costs, not where it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from tunnelmux.wire import DEVICE_FIELD, SERVICE_FIELD

if TYPE_CHECKING:
    import trio

    from tunnelmux.pump.sockets import BareSocket

__all__ = ["HandsOver", "WayThere", "names_in_head", "server_name"]

_HOST, _DEVICE, _SERVICE = b"host", DEVICE_FIELD.lower(), SERVICE_FIELD.lower()
_HANDSHAKE_RECORD, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0


class WayThere(Protocol):
    """The way to another process."""

    def pass_on(self, slot: str, local: BareSocket, remote: str) -> bool:
        """Pass a connection that came to the listener of that slot, and of which nothing was read.
        It must not be in the pump, and is the way's to close if the answer is true. False where no
        more can be passed now."""


class HandsOver(Protocol):
    """Knows the ways to the other processes."""

    def way_to(self, device: str) -> WayThere | Literal["here", "unknown"]:
        """The way to the process that has the device's session; `here` where this one is as good as
        any, `unknown` where `find_way` would tell."""

    async def find_way(self, device: str) -> None:
        """Ask who has the device, and make the way there. Returns within a few seconds."""

    def pass_later(
        self, nursery: trio.Nursery, device: str, slot: str, local: BareSocket, remote: str
    ) -> bool:
        """Find the way, then pass the connection, or serve it here. False, and nothing done, where
        too many wait for that already."""


def names_in_head(seen: bytes) -> tuple[bytes, bytes, bytes]:
    """Host, `Tunnelmux-Device` and `Tunnelmux-Service` of the first request; absent ones are
    empty."""
    head, end, _ = seen.partition(b"\r\n\r\n")
    found = {}
    for line in (head + end[:2]).split(b"\r\n")[1:-1]:  # what follows the last end is not whole
        name, _, value = line.partition(b":")
        found[name.lower()] = value.strip(b" \t")
    return found.get(_HOST, b""), found.get(_DEVICE, b""), found.get(_SERVICE, b"")


def server_name(seen: bytes) -> bytes:
    """The host name that a TLS ClientHello asks for (RFC 6066 section 3); empty where it says none,
    or is not whole."""
    if len(seen) < 6 or seen[0] != _HANDSHAKE_RECORD or seen[5] != _CLIENT_HELLO:
        return b""
    # RFC 8446 section 4.1.2: version, random, session id, cipher suites, compression methods.
    hello = _Reader(seen[9 : 5 + int.from_bytes(seen[3:5])])
    hello.skip(34)
    hello.block(1)
    hello.block(2)
    hello.block(1)
    extensions = _Reader(hello.block(2))
    while extensions.has_more:
        kind = extensions.number(2)
        content = extensions.block(2)
        if kind == _SERVER_NAME:
            names = _Reader(_Reader(content).block(2))
            return names.block(2) if names.number(1) == _HOST_NAME else b""
    return b""


class _Reader:
    """Reads numbers and blocks; behind the end are zeros and empty blocks."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def has_more(self) -> bool:
        return self._at < len(self._data)

    def skip(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.skip(size))

    def block(self, size: int) -> bytes:
        return self.skip(self.number(size))
