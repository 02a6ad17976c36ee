"""A queue of bytes that holds its memory only while it holds bytes."""

from typing import final

@final
class ByteRing:
    """Bytes in, bytes out, in order. Grows by doubling, frees its memory when it falls empty.

    Its user bounds it: it has no limit of its own.
    """

    def __len__(self) -> int:
        """Bytes held."""
    @property
    def capacity(self) -> int:
        """Bytes of memory held: less than twice the most that was held since it was last empty,
        and 0 when it is empty (small rings keep up to 64)."""
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a copy of *data*. Raises MemoryError."""
    def read(self, max_bytes: int) -> bytes:
        """Take up to *max_bytes* from the front."""
    def clear(self) -> None:
        """Forget everything."""
