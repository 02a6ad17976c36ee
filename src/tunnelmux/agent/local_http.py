"""HTTP on loopback for programs on the device: the page of remote assistance, and monitoring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import trio

from tunnelmux.http import Field, Refused, RequestHead, ServerConnection, VisitorGone
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.transports.tcp import serve_connections

__all__ = ["LocalHttp", "send_content"]

Answer = Callable[[ServerConnection, RequestHead], Awaitable[None]]


class LocalHttp:
    """Serves connections, at most `most_callers` at once. For one more, the one that has been
    waiting for its request for longest is reset; it is itself where none waits.

    `answer` answers a request, or raises Refused, whose answer ends the connection. Without `keep`
    every answer ends it.
    """

    def __init__(
        self, answer: Answer, limits: IngressLimits, *, most_callers: int, keep: bool
    ) -> None:
        self._answer = answer
        self._limits = limits
        self._most_callers = most_callers
        self._keep = keep
        self._callers = 0
        self._waiting: dict[ServerConnection, trio.CancelScope] = {}  # the longest first

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve connections until cancelled; then the listeners are closed."""
        await serve_connections(self._handle, listeners)

    async def _handle(self, stream: trio.SocketStream) -> None:
        if self._callers >= self._most_callers:
            if not self._waiting:
                await abort(stream)
                return
            # Any page in a browser of this machine may open connections here, and as many as it
            # likes: they are not to keep a person from the switch.
            longest = next(iter(self._waiting))
            self._waiting.pop(longest).cancel(reason="another one needs its place")
            self._callers -= 1
        self._callers += 1
        scope = trio.CancelScope()
        try:
            with scope:
                await self._serve(ServerConnection(stream, self._limits), scope)
        except VisitorGone:
            await abort(stream)
        finally:
            if not scope.cancel_called:  # else its place is another's
                self._callers -= 1
        if scope.cancel_called:
            await abort(stream)

    async def _serve(self, server: ServerConnection, scope: trio.CancelScope) -> None:
        while True:
            try:
                self._waiting[server] = scope
                try:
                    request = await server.read_request()
                finally:
                    self._waiting.pop(server, None)
                if request is None:
                    await server.close()
                    return
                await self._answer(server, request)
            except Refused as refused:
                await server.refuse(refused.refusal)
                return
            if not self._keep or not server.reusable:
                await server.close()
                return


async def send_content(
    server: ServerConnection,
    request: RequestHead | None,
    status: int,
    content: bytes,
    kind: bytes,
    fields: list[Field],
) -> None:
    """Send a whole answer; for a HEAD request, its head only."""
    is_head = request is not None and request.method == b"HEAD"
    await server.send_response(
        status,
        HTTPStatus(status).phrase.encode("ascii"),
        [(b"Content-Type", kind), *fields],
        length=len(content),
        first=b"" if is_head else content,
        end=True,
    )
