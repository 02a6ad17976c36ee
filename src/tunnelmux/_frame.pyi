"""The 12-byte yamux frame header and the arithmetic of the two flow-control windows."""

from typing import Final, NamedTuple, final

HEADER_SIZE: Final = 12
PROTOCOL_VERSION: Final = 0

TYPE_DATA: Final = 0
TYPE_WINDOW_UPDATE: Final = 1
TYPE_PING: Final = 2
TYPE_GO_AWAY: Final = 3

FLAG_SYN: Final = 1
FLAG_ACK: Final = 2
FLAG_FIN: Final = 4
FLAG_RST: Final = 8

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1
GO_AWAY_INTERNAL_ERROR: Final = 2

class Header(NamedTuple):
    """One frame header (yamux spec.md, "Framing")."""

    version: int
    type: int
    flags: int
    stream_id: int
    length: int

def encode_header(type: int, flags: int, stream_id: int, length: int) -> bytes:
    """The 12 bytes of a header with version 0.

    Raises OverflowError when a field does not fit its width (8, 16, 32, 32 bits).
    """

def decode_header(data: bytes) -> Header:
    """The fields of the first 12 bytes of *data*, unchecked.

    Raises ValueError when there are fewer than 12.
    """

@final
class SendWindow:
    """How many bytes the peer still lets us send on one stream."""

    def __init__(self, credit: int = ...) -> None: ...
    @property
    def credit(self) -> int:
        """Bytes that may be sent now."""
    def grant(self, delta: int) -> bool:
        """Add *delta* bytes; False, and nothing changed, if the sum would pass 2**32 - 1."""
    def spend(self, size: int) -> None:
        """Take *size* bytes. Raises ValueError when there is less credit than that."""

@final
class ReceiveWindow:
    """How many bytes the peer may still send us on one stream, and when to give it more."""

    def __init__(self, target: int = ..., credit: int = ...) -> None: ...
    @property
    def target(self) -> int:
        """Bytes we want outstanding: credit given and bytes unread, together."""
    @property
    def credit(self) -> int:
        """Bytes the peer may still send."""
    @property
    def unread(self) -> int:
        """Bytes received that the application has not consumed."""
    def accept(self, size: int) -> bool:
        """Count *size* bytes announced by the peer; False, and nothing changed, if over the credit."""
    def consume(self, size: int) -> None:
        """The application took *size* bytes. Raises ValueError when fewer are unread."""
    def update_due(self) -> bool:
        """Whether an update is worth sending: half the target can be given, or less than one
        16 KiB frame of credit is left and at least one frame can be given."""
    def take_update(self) -> int:
        """The delta to announce now (0 if none); the credit is raised in the same step, so that
        what we believe and what is on the wire cannot differ."""
    def resize(self, target: int) -> None:
        """Aim for another target. A smaller one withholds credit; nothing is ever taken back."""
