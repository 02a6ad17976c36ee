"""A connected socket as the pump uses it, plain or under TLS. Linux only."""

from ssl import MemoryBIO, SSLObject
from typing import final

@final
class PumpSocket:
    """One connected stream socket that does not block; its opener closes it.

    An error of the socket counts once all that came before it was read.
    """

    def __init__(
        self, socket: object, tls: tuple[SSLObject, MemoryBIO, MemoryBIO] | None = None
    ) -> None:
        """*socket* is connected, or being connected, and has a `fileno()`.

        With *tls*, all that is under it: the object, what it reads from and what it writes to. The
        handshake may still have to be made, and is made by reading.
        """
    @property
    def socket(self) -> object:
        """The socket, as it was given."""
    @property
    def fd(self) -> int:
        """Its descriptor, when it was given."""
    @property
    def error(self) -> Exception | None:
        """What broke it, an OSError or an ssl.SSLError; what came before can still be read."""
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
    def is_shaken(self) -> bool:
        """Whether the handshake is done; of a plain socket, always."""
    def release(self) -> tuple[SSLObject, MemoryBIO, MemoryBIO] | None:
        """What it was given as *tls*, for others to go on with from here; nothing is lost.

        The socket is not to be used by the pump again before that.
        """
    def send_bare(self, data: bytes) -> None:
        """Send this as it is, past TLS, as far as the kernel takes it now. Never fails."""
    def half_close(self) -> None:
        """Send the end: close_notify (RFC 8446 section 6.1), and FIN. Never fails."""
    def reset(self) -> None:
        """Close the socket so that its peer sees a reset. Harmless when it is closed."""
