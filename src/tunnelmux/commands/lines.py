"""Split a stream of bytes into lines, in pieces of any size."""

from __future__ import annotations

__all__ = ["LineSplitter"]


class LineSplitter:
    """Splits its input at line feeds. Each byte is scanned once, even when the pieces are small.
    The caller must limit the bytes that wait.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes of the unfinished line."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Add bytes; returns the lines that are complete now, without their line feeds."""
        first, *more = data.split(b"\n")
        self._rest.extend(first)
        if not more:
            return []
        lines = [self.take(), *(bytes(line) for line in more[:-1])]
        self._rest.extend(more[-1])
        return lines

    def take(self) -> bytes:
        """Remove and return the bytes of the unfinished line."""
        data = bytes(self._rest)
        self._rest = bytearray()
        return data
