"""Lines out of a stream of bytes that comes in pieces of any size."""

from __future__ import annotations

__all__ = ["LineSplitter"]


class LineSplitter:
    """Cuts what it is fed at line feeds. Each byte is looked at once, however small the pieces.

    The caller bounds what waits.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes of the line that has no end yet."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The lines that are complete now, without their line feeds."""
        first, *more = data.split(b"\n")
        self._rest.extend(first)
        if not more:
            return []
        lines = [self.take(), *(bytes(line) for line in more[:-1])]
        self._rest.extend(more[-1])
        return lines

    def take(self) -> bytes:
        """What there is of the unfinished line; the next one begins behind that."""
        data = bytes(self._rest)
        self._rest = bytearray()
        return data
