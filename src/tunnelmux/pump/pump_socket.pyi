"""A connected socket as the pump uses it, plain or under TLS. Linux only."""

from ssl import MemoryBIO, SSLObject
from typing import final

@final
class PumpSocket:
    """One connected, non-blocking stream socket; its opener closes it.

    An error of the socket is raised once all that came before it was read.
    """

    def __init__(
        self, socket: object, tls: tuple[SSLObject, MemoryBIO, MemoryBIO] | None = None
    ) -> None:
        """*socket* is connected, or being connected, and has a `fileno()`.

        With *tls*, all bytes are under TLS: the TLS object, and the BIOs that it reads from and writes
        to. The handshake may still have to be done; reading does it.
        """
    @property
    def socket(self) -> object:
        """The socket, as it was given."""
    @property
    def fd(self) -> int:
        """Its descriptor, when it was given."""
    @property
    def error(self) -> Exception | None:
        """The OSError or ssl.SSLError that broke it; what came before can still be read."""
    def fileno(self) -> int:
        """Its descriptor; -1 when it was closed."""
    def receive(self, max_bytes: int) -> bytes | None:
        """At most *max_bytes* that came; b"" at the peer's end, None when there is nothing now.

        Raises `error` when nothing more will come.
        """
    @property
    def is_secure(self) -> bool:
        """Whether its bytes are under TLS."""
    @property
    def handshake_done(self) -> bool:
        """Whether the handshake is done; always true for a plain socket."""
    def release(self) -> tuple[SSLObject, MemoryBIO, MemoryBIO] | None:
        """Return *tls*, so that other code can go on with it from here; nothing is lost.

        Until that code is done, the pump must not use the socket.
        """
    def send_bare(self, data: bytes) -> None:
        """Send this as it is, past TLS, as far as the kernel takes it now. Never fails."""
    def half_close(self) -> None:
        """Send the end: close_notify (RFC 8446 section 6.1), and FIN. Never fails."""
    def reset(self) -> None:
        """Close the socket so that its peer sees a reset. Harmless when it is closed."""
