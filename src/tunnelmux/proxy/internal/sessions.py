"""Find the session of a call, and limit the forwards of each session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tunnelmux.errors import SessionDraining, SessionError, SessionExpired, SessionNotFound
from tunnelmux.proxy.internal.answers import ApiError
from tunnelmux.sessions import DeviceStore, SessionHandle

__all__ = ["ForwardGate", "find_session", "open_stream", "response_timeout"]


class ForwardGate:
    """Limits the forwards of each session."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Forwards in progress."""
        return self._running.total()

    @contextmanager
    def hold(self, token: str, limit: int) -> Iterator[None]:
        """Hold a place within the block. Raises ApiError when all are taken."""
        if self._running[token] >= limit:
            raise ApiError(
                "TOO_MANY_FORWARDS",
                f"{limit} forwards to this session are in progress: end some of them, or raise "
                "limits.max_forwards_per_session",
                headers=[(b"Retry-After", b"1")],
            )
        self._running[token] += 1
        try:
            yield
        finally:
            self._running[token] -= 1
            if not self._running[token]:
                del self._running[token]


async def find_session(store: DeviceStore, token: str) -> SessionHandle:
    """The live session of this token. Raises ApiError without a token or a session."""
    if not token:
        raise ApiError("MISSING_SESSION_TOKEN", "session_token required")
    try:
        return await store.reach(token)
    except (SessionNotFound, SessionExpired):
        raise _disconnected() from None


def response_timeout(handle: SessionHandle, service: str | None) -> float | None:
    """Seconds that the device gives the service's target to begin an answer, if the service has its
    own setting. A `service` of None is the default one."""
    return handle.timeouts.get(service)


async def open_stream(handle: SessionHandle, timeout: float) -> trio.abc.HalfCloseableStream:
    """A new stream to the agent within `timeout` seconds. Raises ApiError."""
    try:
        with trio.fail_after(timeout):
            return await handle.open_reserved_stream()
    except trio.TooSlowError:
        raise ApiError(
            "TIMEOUT",
            f"the agent took no stream within {timeout:g} s",
        ) from None
    except SessionDraining:
        raise ApiError(
            "TUNNEL_ERROR",
            "open stream failed: the session is draining",
        ) from None
    except SessionError as error:
        if handle.is_closed:
            raise _disconnected() from error
        raise ApiError("TUNNEL_ERROR", f"open stream failed: {error}") from error


def _disconnected() -> ApiError:
    return ApiError("TUNNEL_DISCONNECTED", "session not connected")
