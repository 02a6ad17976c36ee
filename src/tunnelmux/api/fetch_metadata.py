"""What a browser says of the page that made it send a request (W3C Fetch Metadata).

Pages of devices are of the same site as this server where both are below one domain, and so a
browser sends the session's cookie with what they ask for. They cannot read the answers. But each
costs its person something: places for events, guesses of codes, entries in the audit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["field_of", "is_of_own_page", "is_opened_by_person"]

Fields = Iterable[Any]
"""The fields of an ASGI request: pairs of bytes, the names in lower case."""


def is_of_own_page(fields: Fields, *, unknown: bool) -> bool:
    """Whether a page of this server sent it, or a person who typed the address. `unknown` is the
    answer where the browser does not tell; only with it may the address have been typed."""
    site = field_of(fields, b"sec-fetch-site")
    if site is not None:
        return site == "same-origin" or (unknown and site == "none")
    origin, host = field_of(fields, b"origin"), field_of(fields, b"host")
    if origin is None:
        return unknown
    # Not parsed as a URL: an origin can be text that is none.
    return bool(host) and origin.partition("://")[2] == host


def is_opened_by_person(fields: Fields) -> bool:
    """Whether the answer is a page in a tab of its own, and not in another page's frame, nor
    fetched ahead for it."""
    if field_of(fields, b"sec-purpose") is not None:
        return False
    mode = field_of(fields, b"sec-fetch-mode")
    target = field_of(fields, b"sec-fetch-dest")
    return mode == "navigate" and target in {None, "document"}


def field_of(fields: Fields, name: bytes) -> str | None:
    """The first value of a field; the name is in lower case."""
    return next((value.decode("latin-1") for key, value in fields if key == name), None)
