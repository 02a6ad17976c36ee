"""The answers this system gives itself: a status, a stable code, and a sentence with the fix."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from tunnelmux.errors import TunnelmuxError
from tunnelmux.wire import REASON_FIELD

if TYPE_CHECKING:
    from tunnelmux.http.head import Field

__all__ = ["REASONS", "Refusal", "Refused"]

REASONS: dict[str, int] = {
    "credential-proved": 200,
    "bad-request": 400,
    "unauthorized": 401,
    "token-expired": 401,
    "device-replaced": 401,
    "device-disabled": 403,
    "forbidden": 403,
    "name-taken": 403,
    "unknown-device": 404,
    "unknown-service": 404,
    "body-stalled": 408,
    "head-timeout": 408,
    "head-too-large": 431,
    "target-broke": 502,
    "target-refused": 502,
    "target-tls-failed": 502,
    "target-unreachable": 502,
    "tunnel-lost": 502,
    "device-busy": 503,
    "device-draining": 503,
    "device-offline": 503,
    "proxy-draining": 503,
    "proxy-failed": 503,
    "registry-away": 503,
    "too-many-visitors": 503,
    "target-timeout": 504,
}
"""Every code that `Tunnelmux-Reason` can carry, with its usual status. Programs depend on them:
a code may be added, never changed. (A request that is refused as "bad-request" may have a more
exact status, such as 405, 501 or 505.)"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One such answer. `message` is for a person: it names the cause and, if there is one, the fix.

    `retry_after` is in seconds, or None where trying again is of no use.
    """

    status: int
    reason: str
    message: str
    retry_after: int | None = None
    headers: list[Field] = field(default_factory=list)
    detail: str | None = None
    """What only the log of the one who refuses may say, such as an address; never sent."""

    def __post_init__(self) -> None:
        assert self.reason in REASONS, f"{self.reason!r} is not a documented reason"

    @property
    def phrase(self) -> bytes:
        """The reason phrase of the status line."""
        try:
            return HTTPStatus(self.status).phrase.encode("ascii")
        except ValueError:
            return b""

    def render(self, accept: bytes = b"") -> tuple[list[Field], bytes]:
        """The end-to-end fields and the body; HTML where the `Accept` value asks for it."""
        if b"text/html" in accept.lower():
            kind = b"text/html; charset=utf-8"
            title = f"{self.status} {self.phrase.decode('ascii')}"
            body = (
                f"<!doctype html><title>{title}</title><h1>{title}</h1>"
                f"<p>{html.escape(self.message)}</p><p><code>{self.reason}</code></p>\n"
            ).encode()
        else:
            kind = b"text/plain; charset=utf-8"
            body = f"{self.message} ({self.reason})\n".encode()
        fields = [
            (b"Content-Type", kind),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),  # it speaks of this moment only
            (REASON_FIELD, self.reason.encode("ascii")),
        ]
        if self.retry_after is not None:
            fields.append((b"Retry-After", b"%d" % self.retry_after))
        return fields + self.headers, body


class Refused(TunnelmuxError):
    """Raised to answer a request with `refusal` instead of forwarding it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.status} {refusal.reason}: {refusal.message}")
        self.refusal = refusal
