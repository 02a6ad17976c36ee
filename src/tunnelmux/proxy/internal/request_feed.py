"""GET /internal/requests: requests as they end, as server-sent events."""

from __future__ import annotations

import msgspec
import trio

from tunnelmux.proxy.internal.answers import ApiError
from tunnelmux.proxy.internal.event_stream import HELLO, STILL_HERE, Send, stream_events
from tunnelmux.proxy.internal.queries import RequestsQuery, read_query
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.proxy.visitors.feed import RequestFeed
from tunnelmux.sessions import RequestFilter

__all__ = ["RequestFeedCalls"]

_PORTION = 100
# Requests that are sent at once: some 30 KB. What a slow reader does not take waits, and is counted
# when it has to go.


class RequestFeedCalls:
    """Serves those who watch requests. What they miss is told to them by number."""

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
        with self._feed.reading(wanted, limits.feed_backlog) as reader:

            async def write(send: Send) -> None:
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

            await stream_events(call, HELLO, write, self._draining)
