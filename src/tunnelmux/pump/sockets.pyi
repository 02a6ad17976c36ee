"""Sockets that come and go by the thousand. Linux only."""

from collections.abc import Iterable
from typing import final

from tunnelmux.pump.data_pump import Owner
from tunnelmux.pump.epoll import Member, Pump
from tunnelmux.pump.pump_socket import PumpSocket

@final
class Acceptor(Member):
    """A listening socket in the pump; `owner.on_news()` is called when a connection is waiting."""

    def __init__(self, pump: Pump, fd: int, owner: Owner) -> None:
        """Watch the non-blocking listening socket *fd*, which stays the caller's to close.

        Raises OSError when that cannot be, ValueError when it is being pumped already.
        """

    def accept(self, limit: int) -> list[tuple[int, int, str]]:
        """Those who wait, *limit* at most: descriptor, address family, and the peer's address as
        HOST:PORT. The descriptors are the caller's to close, do not block and are not inherited.

        When there may be more, the owner is called again in the next batch. Raises OSError when
        the system cannot accept; `again` then tries anew.
        """

    def again(self) -> None:
        """Have the owner called once more in the next batch."""

    def stop(self) -> None:
        """Watch no more. Harmless twice."""

@final
class Goodbye(Member):
    """Ends a connection so that its peer can read all that was sent (RFC 9112 section 9.6): its own
    end is sent, behind what TLS owes, and what comes is thrown away until the peer ends too.
    `owner.on_news()` is called then; the socket is the caller's to close."""

    def __init__(
        self,
        pump: Pump,
        wire: PumpSocket,
        owner: object,
        max_bytes: int,
        instead_of: Member | None = None,
    ) -> None:
        """*wire* is connected. After *max_bytes*, of a peer that goes on, it is over as well. It
        takes the place of *instead_of*, which has the same socket in the pump, or has none."""
    @property
    def is_over(self) -> bool:
        """Whether the peer has ended, or will not be waited for any more."""
    def cancel(self) -> None:
        """Wait no more, without a call back."""

@final
class Dialler:
    """Connects to one address, again and again."""

    def __init__(self, host: str, port: int, options: Iterable[tuple[int, int, int]] = ()) -> None:
        """*host* is an IPv4 or IPv6 address without a scope; *options* are level, name and value
        of what is set on each socket before it connects, if the system has it.

        Raises ValueError for anything that is no address.
        """

    @property
    def family(self) -> int:
        """`socket.AF_INET` or `socket.AF_INET6`."""

    def dial(self) -> int:
        """The descriptor of a socket that is being connected, or is. It does not block and is not
        inherited. Raises OSError when the system would not even begin."""
