"""Bytes that count how many of them are searched or copied: work in steps, not in seconds."""

from __future__ import annotations

from typing import Any, Self

__all__ = ["CountedBytes", "Work"]


class Work:
    """What was done with the bytes that count here."""

    def __init__(self) -> None:
        self.bytes = 0


class CountedBytes(bytes):
    """Whatever is made of it by adding and splitting counts as well."""

    work: Work

    def __new__(cls, data: bytes, work: Work) -> Self:
        made = super().__new__(cls, data)
        made.work = work
        return made

    def _count(self, data: bytes) -> CountedBytes:
        self.work.bytes += len(data)
        return CountedBytes(data, self.work)

    def __add__(self, other: Any) -> CountedBytes:
        return self._count(bytes(self) + other)

    def __radd__(self, other: Any) -> CountedBytes:
        return self._count(other + bytes(self))

    def __contains__(self, other: Any) -> bool:
        self.work.bytes += len(self)
        return super().__contains__(other)

    def find(self, *args: Any) -> int:
        self.work.bytes += len(self)
        return super().find(*args)

    def split(self, *args: Any, **kwargs: Any) -> list[bytes]:
        self.work.bytes += len(self)
        return [CountedBytes(part, self.work) for part in super().split(*args, **kwargs)]

    def partition(self, sep: Any) -> tuple[bytes, bytes, bytes]:
        self.work.bytes += len(self)
        head, middle, tail = super().partition(sep)
        return CountedBytes(head, self.work), middle, CountedBytes(tail, self.work)
