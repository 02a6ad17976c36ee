"""Words of devices, visitors and servers that a person sees on a terminal."""

from __future__ import annotations

__all__ = ["LONGEST_SAID", "printable", "said"]

LONGEST_SAID = 1024
"""Characters of what another side says that a person is told: twice as many as the longest sentence
of our own. A message may have 256 KiB, and four times as many bytes once it is printable: as a part
of one packet, that ends the person's whole connection."""


def printable(text: str) -> str:
    """The text as one line, without characters that could move the cursor or hide something."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "�" for char in text)


def said(text: str) -> str:
    """The same of a text of any length, for a person to be told: the first LONGEST_SAID of it."""
    return printable(text[:LONGEST_SAID])
