"""Chunked bodies (RFC 9112 section 7.1), read along while they pass, without any I/O.

What goes on is the same body in its plainest form: a size of at most 15 hexadecimal digits and CRLF,
without the blanks and extensions that may stand behind a size. All else passes as it is, but for
trailer fields, which are not read here. Lines end in CRLF and have at most 256 bytes.
The C face for other compiled modules is in `chunks.pxd`; this one is for tests.
"""

from typing import final

@final
class ChunkScanner:
    """One body."""

    def __init__(self) -> None: ...
    def feed(self, data: bytes) -> tuple[int, bytes]:
        """How many bytes of *data* were read, and what goes on of them. Fewer than all were read when
        the body ended, broke or came to its trailer fields."""
    @property
    def done(self) -> bool:
        """Whether the body is complete."""
    @property
    def at_trailers(self) -> bool:
        """Whether the next byte belongs to a trailer field."""
    @property
    def broken(self) -> bool:
        """Whether the next byte must not stand there."""
