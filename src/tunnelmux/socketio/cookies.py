"""The cookies of one Socket.IO connection (RFC 6265): by them a load balancer knows its server.

Load balancers with sticky sessions answer the first request with a cookie, and by it choose the
server of the later requests. The jar lives as long as the connection; all its requests go to one
host and one path.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import trio

from tunnelmux.http import Field

__all__ = ["CookieJar"]

_MOST_BYTES = 4096
# For name and value of one cookie: the size that RFC 6265 section 6.1 asks clients to keep. A
# larger one is left out, as in browsers.


class _Cookie(NamedTuple):
    value: str
    path: str
    ends: float | None
    """On Trio's clock; None lasts as long as the connection."""


class CookieJar:
    """Takes `Set-Cookie` fields and makes the `Cookie` field of the next request."""

    def __init__(self, host: str, path: str, *, is_secure: bool, most: int) -> None:
        self._host = host.lower()
        self._path = path
        self._is_secure = is_secure
        self._most = most
        self._cookies: dict[tuple[str, str, str], _Cookie] = {}

    def __repr__(self) -> str:
        return f"<CookieJar with {len(self._cookies)} cookies>"

    def take(self, headers: list[Field]) -> None:
        """Keep, replace and forget cookies as the fields of an answer say."""
        for name, value in headers:
            if name.lower() == b"set-cookie":
                self._take_one(value.decode("latin-1"))

    def fields(self) -> list[Field]:
        """The `Cookie` field of a request, or none."""
        now = trio.current_time()
        live = [
            (name, cookie)
            for (name, _, _), cookie in self._cookies.items()
            if cookie.ends is None or cookie.ends > now
        ]
        # The one with the longer path first (section 5.4): servers take the first of a name.
        live.sort(key=lambda pair: -len(pair[1].path))
        text = "; ".join(f"{name}={cookie.value}" for name, cookie in live)
        return [(b"Cookie", text.encode("latin-1"))] if text else []

    def _take_one(self, text: str) -> None:
        pair, _, rest = text.partition(";")
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name or len(name) + len(value) > _MOST_BYTES:
            return
        attributes: dict[str, str] = {}
        for attribute in rest.split(";"):
            key, _, said = attribute.partition("=")
            attributes[key.strip().lower()] = said.strip()  # the last one counts (section 5.3)
        domain = attributes.get("domain", "").removeprefix(".").lower()
        path = attributes.get("path", "")
        if not path.startswith("/"):
            path = _default_path(self._path)
        if not self._is_for_us(domain, path) or ("secure" in attributes and not self._is_secure):
            return
        key_of = (name, domain, path)
        self._cookies.pop(key_of, None)
        lifetime = _lifetime(attributes)
        if lifetime is not None and lifetime <= 0:
            return
        if len(self._cookies) >= self._most:
            del self._cookies[next(iter(self._cookies))]  # the oldest one
        ends = None if lifetime is None else trio.current_time() + lifetime
        self._cookies[key_of] = _Cookie(value, path, ends)

    def _is_for_us(self, domain: str, path: str) -> bool:
        is_parent = self._host.endswith(f".{domain}") and not self._host[-1].isdigit()
        if domain and domain != self._host and not is_parent:  # an address has no parent
            return False
        prefix = path if path.endswith("/") else f"{path}/"
        return self._path == path or self._path.startswith(prefix)


def _default_path(path: str) -> str:
    """The default path (section 5.1.4): the request's path up to its last slash."""
    return path[: path.rfind("/")] or "/"


def _lifetime(attributes: dict[str, str]) -> float | None:
    """Seconds until the cookie expires; None when the connection ends it. Max-Age has
    precedence."""
    age = attributes.get("max-age", "")
    if age.removeprefix("-").isdecimal() and age.isascii() and len(age) < 16:
        return float(age)
    try:
        ends = parsedate_to_datetime(attributes["expires"])
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None
    return (ends if ends.tzinfo else ends.replace(tzinfo=UTC)).timestamp() - datetime.now(
        UTC
    ).timestamp()
