"""The request feed: requests as they end, for readers. Without a reader it does nothing. With one,
the pump still carries all visitors: its log lines are parsed here, so that watching costs a line
per request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import msgspec
import trio

from tunnelmux.observability.logs import without_secrets
from tunnelmux.registry.names import tenant_in_label
from tunnelmux.sessions.handle import utc_now
from tunnelmux.sessions.requests import RequestFilter, RequestSeen

__all__ = ["FeedReader", "RequestFeed"]


class _Line(msgspec.Struct):
    """A request as `pump.lines` writes it."""

    timestamp: datetime
    visitor: str
    device: str
    service: str
    method: str
    path: str
    status: int
    bytes_in: int
    bytes_out: int
    seconds: float


_decoder = msgspec.json.Decoder(_Line)


class FeedReader:
    """The queue of one reader. Beyond `most` requests the oldest are dropped."""

    def __init__(self, wanted: RequestFilter, most: int) -> None:
        self.wanted = wanted
        self.needle = b'"device": ' + msgspec.json.encode(wanted.device) if wanted.device else b""
        """A text that every line about a wanted request contains."""
        self.dropped = 0
        """How many were dropped since `take`."""
        self._waiting: deque[RequestSeen] = deque()
        self._most = most
        self._arrival = trio.Event()

    def offer(self, seen: RequestSeen) -> bool:
        """Queue this request if the reader wants it. True if another was dropped for it."""
        if not self.wanted.matches(seen):
            return False
        is_full = len(self._waiting) >= self._most
        if is_full:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(seen)
        self._arrival.set()
        return is_full

    async def wait(self) -> None:
        """Return when the queue has a request; the caller sets a deadline."""
        await self._arrival.wait()

    def take(self, most: int) -> tuple[list[RequestSeen], int]:
        """Take up to `most` requests, oldest first, and the number dropped before them."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        dropped, self.dropped = self.dropped, 0
        if not self._waiting:
            self._arrival = trio.Event()
        return taken, dropped


class RequestFeed:
    """Passes finished requests to readers."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self.dropped = 0
        """Requests dropped so far because readers were too slow."""
        self._clock = clock
        self._readers: list[FeedReader] = []

    @property
    def is_read(self) -> bool:
        """Whether there is a reader; without one, `tell` does nothing."""
        return bool(self._readers)

    @property
    def reader_count(self) -> int:
        """The number of readers."""
        return len(self._readers)

    def readers_of(self, tenant: str) -> int:
        """The number of readers that watch a device of this tenant."""
        return sum(tenant_in_label(reader.wanted.device) == tenant for reader in self._readers)

    @contextmanager
    def reading(self, wanted: RequestFilter, most: int) -> Iterator[FeedReader]:
        """Within the block, a reader whose queue holds at most `most` requests."""
        reader = FeedReader(wanted, most)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

    def tell(self, way: str, fields: Mapping[str, Any]) -> None:
        """Report a finished request; `fields` are those of its log line. Without a reader, does
        nothing.
        """
        if not self._readers:
            return
        known = {key: value for key, value in fields.items() if key in _FIELDS and value}
        for key in _TEXTS & known.keys():
            known[key] = without_secrets(known[key])
        self._offer(RequestSeen(at=self._clock(), way=way, **known))

    def take_lines(self, lines: bytes) -> None:
        """Parse the pump's log lines about finished requests."""
        if not self._readers:
            return
        needles = [reader.needle for reader in self._readers]
        for line in lines.splitlines():
            if not any(needle in line for needle in needles):
                continue
            said = _decoder.decode(line)
            self._offer(
                RequestSeen(
                    at=said.timestamp,
                    way="http",
                    device=said.device,
                    service=said.service,
                    visitor=said.visitor,
                    method=said.method,
                    path=without_secrets(said.path),
                    status=said.status,
                    bytes_in=said.bytes_in,
                    bytes_out=said.bytes_out,
                    seconds=said.seconds,
                )
            )

    def _offer(self, seen: RequestSeen) -> None:
        for reader in self._readers:
            self.dropped += reader.offer(seen)


_FIELDS = frozenset(RequestSeen.__struct_fields__) - {"at", "way"}
_TEXTS = frozenset({"path", "problem"})
