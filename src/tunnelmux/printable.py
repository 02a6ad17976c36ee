"""Words of devices, visitors and servers that a person sees on a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text as one line, without characters that could move the cursor or hide something."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "�" for char in text)
