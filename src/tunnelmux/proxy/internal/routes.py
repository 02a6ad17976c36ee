"""The table of routes, and the matching of requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, unquote

from tunnelmux.http import Field, RequestHead
from tunnelmux.http.connection import ClientConnection
from tunnelmux.http.head import first_value
from tunnelmux.limits import IngressLimits, InternalLimits
from tunnelmux.proxy.internal.answers import Answer, ApiConnection, ApiError

__all__ = ["TOKEN_FIELD", "Call", "Others", "Route", "RouteTable"]

TOKEN_FIELD = "Tunnelmux-Session-Token"  # noqa: S105  a name, no secret
"""The field that can replace `?token=`: query strings end up in other programs' logs."""


class Others(Protocol):
    """The other workers of this proxy."""

    @property
    def names(self) -> Sequence[str]:
        """Their names, whether they run or not."""

    async def ask_all(self, method: bytes, target: bytes, body: bytes = b"") -> list[Answer]:
        """The answers of all that answer, in no order."""

    def stream(self, name: str, target: bytes) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The content of one worker's answer, as it comes. Raises ConnectError."""

    async def socketio_at(self) -> str:
        """The name of the other worker that has the agents by Socket.IO; empty where it is this
        one, or none."""

    def exchange(
        self,
        name: str,
        method: bytes,
        target: bytes,
        body: bytes = b"",
        fields: Sequence[Field] = (),
    ) -> AbstractAsyncContextManager[ClientConnection]:
        """A call of that worker, whose answer is to be read. Raises ConnectError."""

    def tell_figures(self, text: bytes) -> None:
        """Send the parent this worker's metrics, as they were last shown."""

    async def ended_figures(self) -> bytes:
        """The counters of workers that have ended, as metrics."""


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request. `server` is its connection, which plain routes must not use."""

    request: RequestHead
    server: ApiConnection
    limits: InternalLimits
    http_limits: IngressLimits
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The values of `{name}` parts of the path."""
    query: Mapping[str, str] = field(default_factory=dict)
    remote: str = ""
    """The caller's address, as `host:port`."""
    others: Others | None = None
    """The other workers, if the answer has to include theirs."""
    body: bytes | None = None
    """Its content, if that was read already."""

    @property
    def query_token(self) -> str:
        """The session's token from the query or its field; empty when there is none."""
        value = first_value(self.request.headers, TOKEN_FIELD.lower().encode("ascii"))
        return self.query.get("token") or (value or b"").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method. A route has either `answer`, which returns a plain answer, or `stream`,
    which takes the connection over, answers on it and closes it.
    """

    method: str
    path: str
    answer: Callable[[Call], Awaitable[Answer]] | None = None
    stream: Callable[[Call], Awaitable[None]] | None = None
    gather: Callable[[Callable[[Call], Awaitable[Answer]], Call], Awaitable[Answer]] | None = None
    """Combines the answers of all workers into one, when the proxy has several."""
    is_work: bool = False
    """Whether a drain waits for this stream to end, as it does for every plain answer."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods it accepts: HEAD too, where GET has a plain answer."""
        return (self.method, "HEAD") if self.method == "GET" and self.answer else (self.method,)

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, percent-decoded, or None when the path does not match."""
        wanted, given = self.path.split("/"), path.split("/")
        if len(wanted) != len(given):
            return None
        parameters = {}
        for pattern, segment in zip(wanted, given, strict=True):
            if pattern.startswith("{") and segment:
                parameters[pattern[1:-1]] = unquote(segment)
            elif pattern != segment:
                return None
        return parameters


class RouteTable:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)

    def find(self, request: RequestHead) -> tuple[Route, dict[str, str], dict[str, str]]:
        """The route, its path parameters and the query; raises ApiError (404, 405 or 400)."""
        path, _, query = request.target.decode("ascii").partition("?")
        method = request.method.decode("ascii")
        matching = [(r, found) for r in self.routes if (found := r.match(path)) is not None]
        for route, parameters in matching:
            if method in route.methods:
                return route, parameters, dict(parse_qsl(query, keep_blank_values=True))
        if matching:
            allowed = [name for route, _ in matching for name in route.methods]
            raise ApiError(
                "METHOD_NOT_ALLOWED",
                f"{' or '.join(route.method for route, _ in matching)} required",
                headers=[(b"Allow", ", ".join(allowed).encode("ascii"))],
            )
        raise _nothing_here(path)


def _nothing_here(path: str) -> ApiError:
    prefix = "/internal/session/"
    if path == prefix:
        return ApiError("MISSING_TOKEN", "token required in path")
    if path.startswith(prefix) and path.count("/") == 4:
        return ApiError("NOT_FOUND", f"unknown action: {path.rpartition('/')[2]}")
    return ApiError("NOT_FOUND", "nothing is here: /openapi.json lists the paths")
