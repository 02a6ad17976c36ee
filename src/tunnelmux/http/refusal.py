"""The error answers of this system: a status, a stable code, and a sentence with the fix."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from tunnelmux.errors import TunnelmuxError
from tunnelmux.http.refusal_page import BUTTON_POLICY, HEADLINES, PAGE_POLICY, refusal_page
from tunnelmux.wire import REASON_FIELD

if TYPE_CHECKING:
    from tunnelmux.http.head import Field

__all__ = ["PROBLEM_TYPE", "REASONS", "Refusal", "Refused"]

PROBLEM_TYPE = b"application/problem+json"
"""The media type of a refusal for a program."""

REASONS: dict[str, int] = {
    "credential-proved": 200,
    "link-unopened": 200,
    "access-proven": 303,
    "bad-request": 400,
    "access-unproven": 401,
    "unauthorized": 401,
    "token-expired": 401,
    "device-replaced": 401,
    "access-denied": 403,
    "device-disabled": 403,
    "forbidden": 403,
    "lease-over": 403,
    "name-taken": 403,
    "unknown-device": 404,
    "unknown-service": 404,
    "body-stalled": 408,
    "head-timeout": 408,
    "already-here": 409,
    "too-many-guesses": 429,
    "head-too-large": 431,
    "target-broke": 502,
    "target-down": 502,
    "target-refused": 502,
    "target-tls-failed": 502,
    "target-unreachable": 502,
    "tunnel-lost": 502,
    "device-busy": 503,
    "device-draining": 503,
    "device-moved": 503,
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
    button: str = ""
    """The label of a button that repeats the request as a POST; empty for no button."""
    headline: str = ""
    """The headline of its page; empty for that of the reason."""
    detail: str | None = None
    """Details for the local log only, such as an address; never sent."""

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
        """The end-to-end fields and the body: a page where the `Accept` value names text/html, as
        browsers' do, else a problem document (RFC 9457) with `reason` on top of its members."""
        phrase = self.phrase.decode("ascii")
        more: list[Field] = []
        if b"text/html" in accept.lower():
            kind = b"text/html; charset=utf-8"
            headline = self.headline or HEADLINES.get(self.reason, phrase)
            body = refusal_page(
                self.status,
                phrase,
                self.reason,
                headline or f"Status {self.status}",
                self.message,
                self.retry_after,
                self.button,
            ).encode()
            policy = BUTTON_POLICY if self.button else PAGE_POLICY
            more = [(b"Content-Security-Policy", policy)]
        else:
            kind = PROBLEM_TYPE
            problem: dict[str, object] = {
                "type": "about:blank",  # the title is that of the status, section 4.2.1
                "title": phrase,
                "status": self.status,
                "detail": self.message,
                "reason": self.reason,
            }
            body = msgspec.json.encode(problem) + b"\n"
        fields = [
            (b"Content-Type", kind),
            *more,
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),  # the answer is about this moment only
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
