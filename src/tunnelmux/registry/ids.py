"""Identifiers, times and cursors of the registry's lists."""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from tunnelmux.errors import RegistryRefused

__all__ = [
    "MAX_PAGE",
    "Clock",
    "Page",
    "decode_cursor",
    "encode_cursor",
    "format_time",
    "is_id",
    "new_id",
    "utc_now",
]

T = TypeVar("T")

Clock = Callable[[], datetime]

MAX_PAGE = 200
"""Records in one page of any list; a request for more gets this many. A page of devices is then
about 100 KiB of JSON, and no transaction takes longer than some milliseconds."""

_RANDOM_BITS = 74


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A part of a list, and the cursor of the next part."""

    items: list[T]
    next: str | None
    """The value of `after` for the next page; None at the end."""


def new_id() -> str:
    """A UUIDv7 as text (RFC 9562 section 5.7): ids made later sort later, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    chance = secrets.randbits(_RANDOM_BITS)
    high, low = chance >> 62, chance & ((1 << 62) - 1)
    return str(uuid.UUID(int=(milliseconds << 80) | (7 << 76) | (high << 64) | (2 << 62) | low))


def is_id(text: str) -> bool:
    """Whether this is a UUID in its one usual form: lower case, with hyphens."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: `2026-11-27T20:15:00.000000Z`.

    The length is fixed, so that times can be compared as text.
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def encode_cursor(*key: str | int) -> str:
    """The sort key of a page's last record as opaque text."""
    text = json.dumps(key, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode("ascii").rstrip("=")


def decode_cursor(cursor: str, *kinds: type[str | int]) -> list[str | int]:
    """The sort key in a cursor, with values of these types; raises RegistryRefused `bad_cursor`."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        key = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or [type(value) for value in key] != list(kinds):
        raise RegistryRefused(
            "the cursor is not one that this list gave out: begin again without one",
            code="bad_cursor",
            field="after",
        )
    return key
