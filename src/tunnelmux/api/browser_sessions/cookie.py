"""The one cookie of a browser."""

from __future__ import annotations

from starlette.responses import Response

__all__ = ["COOKIE", "is_session_cookie", "session_cookie"]

COOKIE = "__Host-tunnelmux"
"""Its prefix makes browsers refuse it from another host or over plain HTTP."""


def session_cookie(value: str) -> str:
    """The Set-Cookie field that has the browser send this from now on, and hides it from scripts
    and other hosts."""
    response = Response()
    response.set_cookie(COOKIE, value, path="/", secure=True, httponly=True, samesite="lax")
    return response.headers["set-cookie"]


def is_session_cookie(field: str) -> bool:
    """Whether a Set-Cookie field sets this cookie."""
    return field.startswith(f"{COOKIE}=")
