"""Short-lived sockets, accepted and connected at little cost. Linux only."""

from collections.abc import Iterable
from typing import final

from tunnelmux.pump.data_pump import Owner
from tunnelmux.pump.epoll import Member, Pump
from tunnelmux.pump.pump_socket import PumpSocket

@final
class BareSocket:
    """A non-blocking stream socket that child processes do not inherit. It costs less than Python's
    socket object, which asks the kernel for its address when it is made. Closed when nothing refers
    to it.
    """

    def fileno(self) -> int:
        """Its descriptor; -1 once it was closed, or detached."""

    def close(self) -> None:
        """Close it. Harmless twice."""

    def reset(self) -> None:
        """Close it so that its peer sees a reset. Harmless when it is closed."""

    def detach(self) -> int:
        """Return the descriptor; the caller has to close it from now on."""

    @property
    def family(self) -> int:
        """`socket.AF_INET` or `socket.AF_INET6`."""

def adopted(fd: int) -> BareSocket:
    """The socket with this descriptor, which it owns from now on."""

@final
class Acceptor(Member):
    """A listening socket in the pump; `owner.on_news()` is called when a connection is waiting."""

    def __init__(self, pump: Pump, fd: int, owner: Owner) -> None:
        """Watch the non-blocking listening socket *fd*, which the caller has to close.

        Raises OSError when the system cannot watch it, ValueError when it is in the pump already.
        """

    def accept(self, limit: int) -> list[tuple[BareSocket, str]]:
        """Accept the waiting connections, *limit* at most, each with the peer's address as HOST:PORT.

        When there may be more, the owner is called again in the next batch. Raises OSError when
        the system cannot accept; call `again` to try once more.
        """

    def again(self) -> None:
        """Call the owner once more in the next batch."""

    def stop(self) -> None:
        """Stop watching. Harmless twice."""

@final
class LingeringClose(Member):
    """Closes a connection so that its peer can read all that was sent (RFC 9112 section 9.6). It sends
    the end, behind what TLS still has to send, and throws away what comes until the peer ends too.
    `owner.on_news()` is called then; the caller has to close the socket."""

    def __init__(
        self,
        pump: Pump,
        wire: PumpSocket,
        owner: object,
        max_bytes: int,
        instead_of: Member | None = None,
    ) -> None:
        """*wire* is connected. When the peer goes on sending, it is over after *max_bytes*. It takes
        the place of *instead_of*, a member with the same socket, if one is given."""
    @property
    def is_over(self) -> bool:
        """Whether the peer has ended, or is no longer waited for."""
    def cancel(self) -> None:
        """Stop waiting, without a call of `on_news`."""

@final
class Dialler:
    """Connects to one address, as often as needed."""

    def __init__(self, host: str, port: int, options: Iterable[tuple[int, int, int]] = ()) -> None:
        """*host* is an IPv4 or IPv6 address without a scope. *options* are socket options (level, name
        and value), set before each connect; one that the system does not have is left out.

        Raises ValueError when *host* is no address.
        """

    def dial(self) -> BareSocket:
        """A socket that is connected, or being connected. Raises OSError when the system refuses to
        begin."""
