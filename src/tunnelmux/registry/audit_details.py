"""Keeps the details of an audit entry small, and says of what was left out how much it was, and its
digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["MOST_TEXT", "count_of", "shortened"]

MOST_TEXT = 4096
"""Characters of all texts of an entry's details: a command's first 4,000, say."""


def shortened(details: dict[str, object]) -> dict[str, object]:
    """The details with their texts cut to `MOST_TEXT` characters in all. Of a text that was cut,
    `NAME_length` and `NAME_sha256` tell the whole."""
    texts = {key: value for key, value in details.items() if isinstance(value, str)}
    left, cut = MOST_TEXT, dict(details)
    # The shortest first: what they leave of their share is for the longer ones.
    for number, key in enumerate(sorted(texts, key=lambda key: len(texts[key]))):
        text, share = texts[key], left // (len(texts) - number)
        left -= min(len(text), share)
        if len(text) > share:
            cut[key] = text[:share]
            cut[f"{key}_length"] = len(text)
            cut[f"{key}_sha256"] = _digest(text)
    return cut


def count_of(name: str, texts: Sequence[str]) -> dict[str, object]:
    """In place of many texts, how many there are and the digest of their lines; nothing if none."""
    return {name: len(texts), f"{name}_sha256": _digest("\n".join(texts))} if texts else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
