"""The request feed: requests as they end, for those who watch.

Without a reader nothing is gathered. With one, the pump goes on carrying all visitors: what it
writes for the log is read here once more, so that a watched device costs a line for each request.
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
from tunnelmux.sessions.handle import utc_now
from tunnelmux.sessions.requests import RequestFilter, RequestSeen

__all__ = ["FeedReader", "RequestFeed"]


class _Line(msgspec.Struct):
    """What `pump.lines` writes about a request."""

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
    """What one reader has not taken yet. More than `most` of them push the oldest out."""

    def __init__(self, wanted: RequestFilter, most: int) -> None:
        self.wanted = wanted
        self.needle = b'"device": ' + msgspec.json.encode(wanted.device) if wanted.device else b""
        """What a line about a wanted request contains."""
        self.dropped = 0
        """How many were pushed out since `take`."""
        self._waiting: deque[RequestSeen] = deque()
        self._most = most
        self._arrival = trio.Event()

    def offer(self, seen: RequestSeen) -> bool:
        """Keep this one for the reader if it is wanted; whether another had to go for it."""
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
        """Return when there is something to take; the caller has a deadline."""
        await self._arrival.wait()

    def take(self, most: int) -> tuple[list[RequestSeen], int]:
        """What came, the oldest first, `most` at once; and how many before that were dropped."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        dropped, self.dropped = self.dropped, 0
        if not self._waiting:
            self._arrival = trio.Event()
        return taken, dropped


class RequestFeed:
    """Passes what ended on to readers."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self.dropped = 0
        """Requests that readers were too slow for, so far."""
        self._clock = clock
        self._readers: list[FeedReader] = []

    @property
    def is_read(self) -> bool:
        """Whether there is a reader: only then is there anything to tell."""
        return bool(self._readers)

    @property
    def reader_count(self) -> int:
        """How many watch."""
        return len(self._readers)

    @contextmanager
    def reading(self, wanted: RequestFilter, most: int) -> Iterator[FeedReader]:
        """A reader for the length of the block, for whom at most so many wait."""
        reader = FeedReader(wanted, most)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

    def tell(self, way: str, fields: Mapping[str, Any]) -> None:
        """A request is over: `fields` are those of the log's line. Nothing, without a watcher."""
        if not self._readers:
            return
        known = {key: value for key, value in fields.items() if key in _FIELDS and value}
        for key in _TEXTS & known.keys():
            known[key] = without_secrets(known[key])
        self._offer(RequestSeen(at=self._clock(), way=way, **known))

    def take_lines(self, lines: bytes) -> None:
        """Read the pump's lines about requests that are over."""
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
