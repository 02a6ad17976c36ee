"""RFC 6455 data framing: binary payload out of frames and into frames, without any I/O.

This handles data frames only. Control frames come out unchanged, for a WebSocket library to check and
answer.
"""

from typing import Final, final

OPCODE_CONTINUATION: Final = 0
OPCODE_TEXT: Final = 1
OPCODE_BINARY: Final = 2
OPCODE_CLOSE: Final = 8
OPCODE_PING: Final = 9
OPCODE_PONG: Final = 10

def encode_binary(payload: bytes | bytearray | memoryview, mask: bytes | None = None) -> bytes:
    """One unfragmented binary message (RFC 6455 section 5.2), masked with the 4 bytes *mask*.

    A client must mask, with unpredictable bytes (section 5.3); a server must not.
    Raises ValueError when *mask* has another length.
    """

def apply_mask(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    """*data* XORed with the 4 bytes *mask* over and over (section 5.3); twice gives it back."""

@final
class FrameReader:
    """Takes the payload of binary messages out of a byte stream of frames."""

    def __init__(self, *, masked: bool) -> None:
        """*masked* is whether the peer must mask: True when it is the client."""
    def receive_data(self, data: bytes | bytearray | memoryview) -> bytes:
        """The payload in *data*, which may be cut anywhere; message boundaries are dropped.

        After a protocol violation it returns nothing more; `error` says what it was.
        """
    @property
    def masked(self) -> bool:
        """Whether the peer must mask."""
    @property
    def has_control(self) -> bool:
        """Whether `take_control` has something to return."""
    def take_control(self) -> bytes:
        """The control frames that came since the last call, as they were on the wire: the latest
        Ping, the latest Pong and the Close, in this order (RFC 6455 section 5.5.3)."""
    @property
    def error(self) -> tuple[int, str] | None:
        """The close code (section 7.4.1) and a sentence about what the peer did wrong, or None."""
    @property
    def close(self) -> tuple[int, str] | None:
        """Code and reason of the peer's Close frame; 1005 and "" when it held none."""
    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not ended."""
    @property
    def steps(self) -> int:
        """Bytes looked at or copied: at most three for each byte, however the frames were cut."""
