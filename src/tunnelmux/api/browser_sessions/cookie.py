"""The cookies of a browser: one for its session, and one for each sign-in that it has begun."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import Response

__all__ = [
    "BEGUN",
    "COOKIE",
    "begun_cookie",
    "ended_cookie",
    "is_session_cookie",
    "session_cookie",
    "shown_cookie",
    "shown_cookies",
]

COOKIE = "__Host-tunnelmux"
"""Its prefix makes browsers refuse it from another host or over plain HTTP."""

BEGUN = f"{COOKIE}-begun-"
"""What the names of cookies begin with that carry a sign-in each."""


def session_cookie(value: str) -> str:
    """The Set-Cookie field that has the browser send this from now on, and hides it from scripts
    and other hosts."""
    return _set(COOKIE, value)


def begun_cookie(name: str, value: str, lifetime: float) -> str:
    """The same for a sign-in, which the browser forgets after `lifetime` seconds."""
    return _set(name, value, int(lifetime))


def ended_cookie(name: str) -> str:
    """The Set-Cookie field that has the browser forget this cookie."""
    return _set(name, "", 0)


def shown_cookie(connection: HTTPConnection) -> str | None:
    """The value of the session's cookie in a request; None where there is none, or more than one.

    Names are compared byte for byte. Browsers keep the prefix's promise for exactly this name:
    another host, such as a device's, can set one whose name begins with a no-break space for a
    whole domain, and a reader that strips white space would take it for ours.
    """
    values = [value for name, value in _shown(connection) if name == COOKIE]
    return values[0] if len(values) == 1 else None


def shown_cookies(connection: HTTPConnection, prefix: str) -> dict[str, str]:
    """The cookies of a request whose names begin with this. No browser has two of one name: where
    a request shows two, the last one counts."""
    return {name: value for name, value in _shown(connection) if name.startswith(prefix)}


def is_session_cookie(field: str) -> bool:
    """Whether a Set-Cookie field sets the session's cookie."""
    return field.startswith(f"{COOKIE}=")


def _set(name: str, value: str, max_age: int | None = None) -> str:
    response = Response()
    response.set_cookie(name, value, max_age, path="/", secure=True, httponly=True, samesite="lax")
    return response.headers["set-cookie"]


def _shown(connection: HTTPConnection) -> list[tuple[str, str]]:
    shown = []
    for name, field in connection.scope["headers"]:
        if name == b"cookie":
            for pair in field.decode("latin-1").split(";"):
                key, _, value = pair.strip(" \t").partition("=")
                shown.append((key, value))
    return shown
