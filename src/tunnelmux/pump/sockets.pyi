"""Sockets that come and go by the thousand. Linux only."""

from collections.abc import Iterable
from typing import final

from tunnelmux.pump.data_pump import Owner
from tunnelmux.pump.epoll import Member, Pump
from tunnelmux.pump.pump_socket import PumpSocket

@final
class BareSocket:
    """A stream socket that does not block and is not inherited, without what Python keeps of one:
    an object that asks the kernel for its address when it is made. Closed when nothing refers to it.
    """

    def fileno(self) -> int:
        """Its descriptor; -1 once it was closed, or detached."""

    def close(self) -> None:
        """Close it. Harmless twice."""

    def reset(self) -> None:
        """Close it so that its peer sees a reset. Harmless when it is closed."""

    def detach(self) -> int:
        """The descriptor, which is the caller's to close from now on."""

    @property
    def family(self) -> int:
        """`socket.AF_INET` or `socket.AF_INET6`."""

@final
class Acceptor(Member):
    """A listening socket in the pump; `owner.on_news()` is called when a connection is waiting."""

    def __init__(self, pump: Pump, fd: int, owner: Owner) -> None:
        """Watch the non-blocking listening socket *fd*, which stays the caller's to close.

        Raises OSError when that cannot be, ValueError when it is being pumped already.
        """

    def accept(self, limit: int) -> list[tuple[BareSocket, str]]:
        """Those who wait, *limit* at most, each with the peer's address as HOST:PORT.

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

    def dial(self) -> BareSocket:
        """A socket that is being connected, or is. Raises OSError when the system would not even
        begin."""
