"""Chunked bodies (RFC 9112 section 7.1), followed while they pass, without any I/O.

The same body is passed on in its plainest form: each size has at most 15 hexadecimal digits and CRLF,
without the blanks and extensions that may follow it. The rest passes unchanged. Trailer fields are
not read here. Lines end in CRLF and have at most 256 bytes.
The C face for other compiled modules is in `chunks.pxd`; the scanner here is for tests.
"""

from typing import final

def whole_chunks(data: bytes, at: int) -> tuple[bytes, int]:
    """The content of the chunks that are whole in *data* from *at* on, and where what follows begins.
    It ends before the last chunk, and before the first that is not whole or not as it must be."""

@final
class ChunkScanner:
    """One body."""

    def __init__(self) -> None: ...
    def feed(self, data: bytes) -> tuple[int, bytes]:
        """How many bytes of *data* were read, and which of them are passed on. Fewer than all are read
        when the body ends, is malformed or comes to its trailer fields."""
    @property
    def done(self) -> bool:
        """Whether the body is complete."""
    @property
    def at_trailers(self) -> bool:
        """Whether the next byte belongs to a trailer field."""
    @property
    def broken(self) -> bool:
        """Whether the next byte is not allowed there."""
