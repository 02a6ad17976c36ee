"""Parse server-sent events of a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

import trio

from tunnelmux.commands import LineSplitter
from tunnelmux.http import ClientConnection
from tunnelmux.http.body import BadBody

__all__ = ["EventReader", "Fields"]

T = TypeVar("T")

_SILENCE = 45.0
# Seconds without a byte after which an event stream is lost: three of the proxy's heartbeats.

_MAX_EVENT_LINE = 65_536
# Bytes of one line of an event stream; they have a few hundred.

_FIELDS = frozenset({b"id", b"event", b"data"})


Fields = Mapping[bytes, bytes]


class EventReader(AsyncIterator[T]):
    """Iterates over `make(fields)` for each event, with its fields `id`, `event` and `data`. Raises
    BadBody for a malformed event, TooSlowError after 45 s without a byte.
    """

    def __init__(self, client: ClientConnection, make: Callable[[Fields], T]) -> None:
        self._client = client
        self._make = make
        self._splitter = LineSplitter()
        self._lines: list[bytes] = []
        self._fields: dict[bytes, bytes] = {}

    async def __anext__(self) -> T:
        while True:
            while self._lines:
                line = self._lines.pop()
                if line:
                    name, _, value = line.partition(b": ")
                    if name in _FIELDS:  # other fields, and comments, are ignored
                        self._fields[name] = value
                    continue
                fields, self._fields = self._fields, {}
                if fields.get(b"event") == b"gap" or b"data" in fields:
                    return self._make(fields)
            with trio.fail_after(_SILENCE):
                data, end = await self._client.read_body()
            if end:
                raise StopAsyncIteration
            self._lines = self._splitter.feed(data)[::-1]
            if self._splitter.waiting > _MAX_EVENT_LINE:
                raise BadBody(f"a line is longer than {_MAX_EVENT_LINE} bytes")
