"""Server-sent events: an answer that goes on until its caller leaves or may no longer read it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tunnelmux.api.problems import Refused, problem_response

__all__ = ["HEARTBEAT", "RECHECK", "EventStream", "Say", "sse"]

HEARTBEAT = 15.0
"""Seconds between two comments that keep the connection open in proxies on the way."""

RECHECK = 1.0
"""Seconds between two checks of the reader's rights: they end within two seconds."""

Say = Callable[[str], Awaitable[None]]


class EventStream(Response):
    """Calls `write` with a function that sends text. The answer begins with the first text, so that
    a caller who has the head follows already. It ends when `write` returns or the caller leaves. A
    Refused that `write` raises before its first text is the answer. `over` is called once, in any
    case."""

    media_type = "text/event-stream"

    def __init__(
        self, write: Callable[[Say], Awaitable[None]], over: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._write = write
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; called by the framework."""
        head: list[Message] = [
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        ]

        async def say(text: str) -> None:
            if head:
                await send(head.pop())
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        refusal: Refused | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_leave_with_caller, receive, nursery.cancel_scope)
                try:
                    await self._write(say)
                except Refused as exc:
                    refusal = exc
                nursery.cancel_scope.cancel()
            if head and refusal is not None:
                answer = problem_response(
                    refusal.status, refusal.code, refusal.detail, headers=refusal.headers
                )
                await answer(scope, receive, send)
                return
            if head:
                await send(head.pop())
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._over()


async def _leave_with_caller(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def sse(kind: str, content: Mapping[str, Any] | str, number: str = "") -> str:
    """The text of one event; `content` is an object to turn into JSON, or JSON."""
    data = content if isinstance(content, str) else json.dumps(content)
    named = f"id: {number}\n" if number else ""
    return f"{named}event: {kind}\ndata: {data}\n\n"
