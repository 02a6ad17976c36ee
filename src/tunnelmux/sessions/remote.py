"""The sessions of a proxy as its back end sees them, over the proxy's internal API.

The store speaks to a `SessionClient`; `tunnelmux.backend.ProxyClient` is the one over HTTP.
"""

from __future__ import annotations

import builtins
from typing import Protocol

import trio

from tunnelmux.errors import SessionClosed, SessionNotFound
from tunnelmux.sessions.handle import SessionHandle
from tunnelmux.sessions.store import SessionReader
from tunnelmux.sessions.summary import SessionSummary, shorten_token

__all__ = ["RemoteHandle", "RemoteStore", "SessionClient"]


class SessionClient(Protocol):
    """The part of a client of the internal API that a `RemoteStore` uses."""

    async def get_session(self, token: str) -> SessionSummary:
        """The session of this token; raises SessionNotFound."""

    async def list_sessions(self) -> list[SessionSummary]:
        """Every live session."""

    async def close_session(self, token: str) -> None:
        """End the session; raises SessionNotFound."""

    async def open_stream(self, token: str) -> trio.abc.HalfCloseableStream:
        """A new stream to the agent; raises SessionClosed when there is no such session."""


class RemoteHandle(SessionHandle):
    """A session in another process.

    `summary()` and `is_closed` tell the state at the time of the look-up, and what calls of this
    handle have shown since; look it up again for the current state.
    """

    def __init__(self, client: SessionClient, summary: SessionSummary) -> None:
        self._client = client
        self._summary = summary
        self._closed = False

    def __repr__(self) -> str:
        return f"<RemoteHandle {self.device!r} token={shorten_token(self.token)}>"

    @property
    def token(self) -> str:
        return self._summary.token

    @property
    def device(self) -> str:
        return self._summary.device_id

    async def open_stream(self) -> trio.abc.HalfCloseableStream:
        if self._closed:
            raise SessionClosed(f"the session of device {self.device!r} has ended")
        try:
            return await self._client.open_stream(self.token)
        except SessionClosed:
            self._closed = True
            raise

    async def close(self, reason: str = "closed by the back end") -> None:  # noqa: ARG002
        # The API takes no reason; the proxy's log says that the back end asked.
        if not self._closed:
            self._closed = True
            try:
                await self._client.close_session(self.token)
            except SessionNotFound:
                return  # closing a closed session is no error

    @property
    def is_closed(self) -> bool:
        return self._closed

    def summary(self) -> SessionSummary:
        return self._summary


class RemoteStore(SessionReader):
    """The sessions of one proxy, to look up, list and close. Only the proxy itself registers
    sessions.
    """

    def __init__(self, client: SessionClient) -> None:
        self._client = client

    async def lookup(self, token: str) -> SessionHandle:
        return RemoteHandle(self._client, await self._client.get_session(token))

    async def exists(self, token: str) -> bool:
        try:
            await self._client.get_session(token)
        except SessionNotFound:
            return False
        return True

    async def list(self) -> builtins.list[SessionSummary]:
        return sorted(await self._client.list_sessions(), key=lambda s: s.device_id)
