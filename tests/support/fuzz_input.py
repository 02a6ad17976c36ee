"""What a fuzzer's bytes mean: small choices, one after another, and then the rest as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class FuzzInput:
    """Gives out *data* from the front. At its end every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not given out yet."""
        return len(self._data) - self._at

    def number(self, size: int = 1) -> int:
        """An unsigned number of *size* bytes, most significant first, as yamux writes them."""
        return int.from_bytes(self.take(size), "big")

    def choice(self, options: Sequence[T]) -> T:
        """One of the options: one byte chooses."""
        return options[self.number() % len(options)]

    def take(self, size: int) -> bytes:
        """The next *size* bytes, or those that are left."""
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)
