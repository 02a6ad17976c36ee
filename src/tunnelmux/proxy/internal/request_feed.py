"""GET /internal/requests: requests as they end, as server-sent events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import msgspec
import trio

from tunnelmux.errors import ConnectError
from tunnelmux.http import UpstreamGone
from tunnelmux.limits import most_of_one_tenant
from tunnelmux.proxy.internal.answers import ApiError
from tunnelmux.proxy.internal.event_stream import (
    HELLO,
    STILL_HERE,
    EventSplitter,
    Send,
    stream_events,
    write_all,
)
from tunnelmux.proxy.internal.queries import RequestsQuery, read_query
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.proxy.visitors.feed import RequestFeed
from tunnelmux.registry.names import tenant_in_label
from tunnelmux.sessions import RequestFilter

__all__ = ["RequestFeedCalls"]

_PORTION = 100
# Requests per write: some 30 KB. Those that a slow reader has not read wait, and are dropped and
# counted when there are too many.

_FOLLOW_AGAIN = 1.0
# Seconds until a worker that ended, or did not answer, is followed again.


class RequestFeedCalls:
    """Serves callers that watch requests. A reader is told how many requests it missed."""

    def __init__(self, feed: RequestFeed, draining: trio.Event) -> None:
        self._feed = feed
        self._draining = draining

    async def serve(self, call: Call) -> None:
        """Send the requests that end from now on and match the query, until the reader leaves."""
        limits = call.limits
        try:
            wanted = RequestFilter.parse(
                msgspec.structs.asdict(read_query(call.query, RequestsQuery))
            )
        except ValueError as error:
            raise ApiError("INVALID_REQUEST", str(error)) from None
        if self._feed.reader_count >= limits.max_feed_readers:
            raise ApiError(
                "TOO_MANY_READERS",
                f"{limits.max_feed_readers} callers watch requests: end some of them, or raise "
                "limits.max_feed_readers",
                headers=[(b"Retry-After", b"5")],
            )
        tenant = tenant_in_label(wanted.device)
        share = most_of_one_tenant(limits.max_feed_readers)
        if tenant and self._feed.readers_of(tenant) >= share:
            raise ApiError(
                "TOO_MANY_READERS",
                f"{share} callers watch requests of this tenant: end some of them",
                headers=[(b"Retry-After", b"5")],
            )
        async with AsyncExitStack() as stack:
            reader = stack.enter_context(self._feed.reading(wanted, limits.feed_backlog))
            # Those of the other workers as well, from now on.
            more = [await _Elsewhere.open(call, name, stack) for name in _names(call)]

            async def write_own(send: Send) -> None:
                while True:  # until the reader leaves
                    with trio.move_on_after(limits.event_heartbeat) as wait:
                        await reader.wait()
                    if wait.cancelled_caught:
                        await send(STILL_HERE)
                        continue
                    found, dropped = reader.take(_PORTION)
                    told = [b'event: dropped\ndata: {"count":%d}\n\n' % dropped] if dropped else []
                    told += [
                        b"event: request\ndata: %s\n\n" % msgspec.json.encode(seen)
                        for seen in found
                    ]
                    await send(b"".join(told))

            async def write(send: Send) -> None:
                await write_all(send, [write_own, *(one.write for one in more)])

            await stream_events(call, HELLO, write, self._draining)


def _names(call: Call) -> Sequence[str]:
    return call.others.names if call.others is not None else ()


class _Elsewhere:
    """The requests of another worker, over all its starts."""

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self._name = name
        self._content: AsyncIterator[bytes] | None = None

    @classmethod
    async def open(cls, call: Call, name: str, stack: AsyncExitStack) -> _Elsewhere:
        """Begin to follow it; where it does not run at the moment, as soon as it does."""
        made = cls(call, name)
        with contextlib.suppress(ConnectError, UpstreamGone):
            made._content = await stack.enter_async_context(made._follow())
        return made

    def _follow(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        assert self._call.others is not None  # else there is no name
        return self._call.others.stream(self._name, self._call.request.target)

    async def write(self, send: Send) -> None:
        """Send its events on, until the reader leaves."""
        if self._content is not None:
            await self._pass_on(self._content, send)
        while True:  # until the reader leaves
            await trio.sleep(_FOLLOW_AGAIN)
            with contextlib.suppress(ConnectError, UpstreamGone):
                async with self._follow() as content:
                    await self._pass_on(content, send)

    @staticmethod
    async def _pass_on(content: AsyncIterator[bytes], send: Send) -> None:
        # Not its comments and its advice: the reader gets those of this worker.
        splitter = EventSplitter()
        with contextlib.suppress(ConnectError):  # that worker has ended
            async for data in content:
                if told := splitter.feed(data):
                    await send(b"".join(told))
