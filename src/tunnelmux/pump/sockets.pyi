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
class SocketWatch(Member):
    """Tells its owner once, when there is something to read or an end, and leaves the pump then."""

    def __init__(self, pump: Pump, wire: PumpSocket, owner: object) -> None:
        """*wire* is connected, and not in the pump yet. What TLS owes its peer is sent meanwhile."""
    @property
    def error(self) -> Exception | None:
        """Why it will not be told, when the pump was stopped; else None."""
    def cancel(self) -> None:
        """Leave the pump now."""

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
