"""Connections that one process passes to another: what they say first, and the way they go."""

import socket
from collections.abc import Sequence
from typing import Any, Final, final

from tunnelmux.pump.epoll import Member, Pump
from tunnelmux.pump.sockets import BareSocket

MOST_AT_ONCE: Final = 32
"""Connections that may go with one message."""

def first_words(
    pump: Pump, socket: BareSocket, *, is_secure: bool
) -> tuple[bytes, bytes, bytes] | None:
    """What a connection says first, as `FirstLook.said`, if a look at it now tells. None where more
    has to come first: a `FirstLook` waits for that."""

@final
class FirstLook(Member):
    """Looks at the first bytes of a connection, and leaves them to be read."""

    def __init__(self, pump: Pump, socket: BareSocket, *, is_secure: bool) -> None:
        """Look at once. *is_secure* says that a TLS ClientHello is to come, and no request."""
    @property
    def is_over(self) -> bool:
        """Whether it has seen a whole head or ClientHello, or gave that up: after 8 KiB, after 32
        looks, or because nothing more will come."""
    @property
    def said(self) -> tuple[bytes, bytes, bytes]:
        """What it has seen, once it is over, as from `names_in_head`; of a ClientHello, the
        `server_name` and two empty ones."""
    def wait(self, owner: Any) -> None:
        """Look again as more comes, and call `owner.on_news()` when it is over. The connection is
        in the pump until `stop`, or until a member takes this one's place there."""
    def stop(self) -> None:
        """Look no more. Harmless twice, and when it never waited."""

def names_in_head(seen: bytes) -> tuple[bytes, bytes, bytes]:
    """Host, `Tunnelmux-Device` and `Tunnelmux-Service` of the first request; absent ones are
    empty."""

def server_name(seen: bytes) -> bytes:
    """The host name that a TLS ClientHello asks for (RFC 6066 section 3); empty where it says none,
    or is not whole."""

@final
class Passage(Member):
    """One end of the way between two processes: messages, and with them connections."""

    def __init__(self, pump: Pump, socket: socket.socket, owner: Any) -> None:
        """*socket* is of the kind SOCK_SEQPACKET and stays the caller's to close, after `stop`.
        `owner.on_news()` is called when something came, and when there is room again."""
    def send(self, message: bytes, connections: Sequence[BareSocket | socket.socket] = ()) -> bool:
        """Send 1 to 4,096 bytes, and pass the connections with them, `MOST_AT_ONCE` at most, which
        stay open here as well and must not be in a pump. False where the way is full. Raises
        OSError when the other process has ended."""
    def receive(self, limit: int) -> list[tuple[bytes, list[BareSocket]]] | None:
        """What came, *limit* messages at most, each with its connections in the order in which they
        were sent. The last ones are missing where no descriptor was left for them. None instead of
        a list when the other process has ended."""
    def stop(self) -> None:
        """Watch no more. Harmless twice."""
