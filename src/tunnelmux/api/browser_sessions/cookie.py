"""The one cookie of a browser."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import Response

__all__ = ["COOKIE", "is_session_cookie", "session_cookie", "shown_cookie"]

COOKIE = "__Host-tunnelmux"
"""Its prefix makes browsers refuse it from another host or over plain HTTP."""


def session_cookie(value: str) -> str:
    """The Set-Cookie field that has the browser send this from now on, and hides it from scripts
    and other hosts."""
    response = Response()
    response.set_cookie(COOKIE, value, path="/", secure=True, httponly=True, samesite="lax")
    return response.headers["set-cookie"]


def shown_cookie(connection: HTTPConnection) -> str | None:
    """The cookie's value in a request; None where there is none, or more than one.

    Names are compared byte for byte. Browsers keep the prefix's promise for exactly this name:
    another host, such as a device's, can set one whose name begins with a no-break space for a
    whole domain, and a reader that strips white space would take it for ours.
    """
    shown = [
        pair.strip(" \t").partition("=")
        for name, field in connection.scope["headers"]
        if name == b"cookie"
        for pair in field.decode("latin-1").split(";")
    ]
    values = [value for name, _, value in shown if name == COOKIE]
    return values[0] if len(values) == 1 else None


def is_session_cookie(field: str) -> bool:
    """Whether a Set-Cookie field sets this cookie."""
    return field.startswith(f"{COOKIE}=")
