"""Answers of the internal API: JSON, and one format for all errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tunnelmux.errors import TunnelmuxError
from tunnelmux.http import Field, Refusal, ServerConnection
from tunnelmux.transports.handshake import date_field

__all__ = ["CODES", "Answer", "ApiConnection", "ApiError", "Error"]

CODES: dict[str, tuple[int, str]] = {
    "BODY_TOO_LARGE": (413, "The request's body is over max_forward_body or max_exec_request."),
    "DRAINING": (503, "The proxy is shutting down."),
    "FORBIDDEN": (403, "The request came from a page of another site, or names another host."),
    "HEAD_TIMEOUT": (408, "The request's head or body took too long."),
    "HEAD_TOO_LARGE": (431, "The request's head is larger than limits.max_head_bytes."),
    "INTERNAL_ERROR": (500, "A bug in the proxy; see its log."),
    "INVALID_BODY": (400, "The body is not base64."),
    "INVALID_COMMAND": (400, "A field of the command is missing or wrong; `field` names it."),
    "INVALID_JSON": (400, "The request is not the expected JSON."),
    "INVALID_REQUEST": (400, "No valid HTTP request can be made from the call."),
    "LEASE_OVER": (403, "The lease that was named does not run, or is about another device."),
    "METHOD_NOT_ALLOWED": (405, "The path is right and the method is not; see Allow."),
    "MISSING_SESSION_TOKEN": (400, "No session_token or ?token= was given."),
    "MISSING_TOKEN": (400, "The path ends where the session's token should be."),
    "NOT_FOUND": (404, "No such session, or no such path."),
    "RESPONSE_TOO_LARGE": (413, "The response's body is larger than limits.max_forward_body."),
    "TIMEOUT": (504, "The device did not answer in time."),
    "TOO_MANY_CALLERS": (503, "limits.max_callers connections are open."),
    "TOO_MANY_FORWARDS": (503, "limits.max_forwards_per_session calls are in progress."),
    "TOO_MANY_INSPECTIONS": (409, "limits.max_inspections services are inspected."),
    "TOO_MANY_READERS": (503, "limits.max_feed_readers callers watch requests."),
    "TUNNEL_DISCONNECTED": (502, "No live session has this token."),
    "TUNNEL_ERROR": (502, "No stream could be opened to the agent."),
    "TUNNEL_READ_ERROR": (502, "The tunnel broke before the response was complete."),
    "TUNNEL_WRITE_ERROR": (502, "The tunnel broke before the request was sent."),
    "UNAUTHORIZED": (401, "No Authorization: Bearer with the right secret."),
    "UNKNOWN_DEVICE": (404, "A selector of /internal/exec matches no device."),
    "UPGRADE_REQUIRED": (426, "forward/ws takes WebSocket upgrades only."),
}
"""Every error code with its status and meaning. Programs depend on them: a code may be added,
never changed."""

_BY_REASON = {
    "bad-request": "INVALID_REQUEST",
    "head-timeout": "HEAD_TIMEOUT",
    "head-too-large": "HEAD_TOO_LARGE",
    "target-broke": "TUNNEL_READ_ERROR",
    "target-timeout": "TIMEOUT",
    "too-many-visitors": "TOO_MANY_CALLERS",
    "tunnel-lost": "TUNNEL_READ_ERROR",
}
"""The error code for each Tunnelmux-Reason with which an exchange can be refused."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """The error."""

    code: Annotated[str, Meta(extra_json_schema={"enum": sorted(CODES)})]
    message: str
    field: Annotated[str, Meta(description="The part that is wrong.")] | UnsetType = UNSET


class Error(msgspec.Struct, frozen=True):
    """The JSON of every error."""

    error: ErrorDetail
    status: (
        Annotated[Literal[0], Meta(description="forward/http only: no response.")] | UnsetType
    ) = UNSET


class ApiError(TunnelmuxError):
    """Raised to answer a call with an error. `message` names the cause and, if any, the fix.

    `forwarded` may be set when it is the outcome of a forward/http call, whose JSON always has
    `status`: 0 where there is no response. `field` is the part of the request that is wrong, where
    one is.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        headers: list[Field] | None = None,
        status: int | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message
        self.status = status or CODES[code][0]
        self.headers = headers or []
        self.forwarded = False

    def body(self) -> bytes:
        """The error as JSON."""
        detail = ErrorDetail(self.code, self.message, self.field or UNSET)
        return msgspec.json.encode(Error(detail, 0 if self.forwarded else UNSET))


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a plain route."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: list[Field] = field(default_factory=list)

    @classmethod
    def of(cls, content: object) -> Answer:
        """An answer with `content` as JSON."""
        return cls(msgspec.json.encode(content))


class ApiConnection(ServerConnection):
    """A caller's connection, on which every refusal is JSON."""

    async def send_answer(self, answer: Answer) -> None:
        """Send a whole answer; for a HEAD request, its head only."""
        request = self._request
        headers = [
            (b"Content-Type", answer.content_type),
            (b"Cache-Control", b"no-store"),  # the answer is about this moment only
            (b"Date", date_field()),
            *answer.headers,
        ]
        is_head = request is not None and request.method == b"HEAD"
        await self.send_response(
            answer.status,
            HTTPStatus(answer.status).phrase.encode("ascii"),
            headers,
            length=len(answer.body),
            first=b"" if is_head else answer.body,
            end=True,
        )

    async def send_error(self, error: ApiError) -> None:
        """Answer the current request with an error."""
        await self.send_answer(Answer(error.body(), error.status, headers=error.headers))

    async def send_refusal(self, refusal: Refusal, *, accept: bytes | None = None) -> None:  # noqa: ARG002
        code = _BY_REASON.get(refusal.reason, "INTERNAL_ERROR")
        headers = list(refusal.headers)
        if refusal.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % refusal.retry_after))
        await self.send_error(
            ApiError(code, refusal.message, headers=headers, status=refusal.status)
        )
