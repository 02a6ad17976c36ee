"""One session, as the store gives it out."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from tunnelmux.errors import SessionClosed
from tunnelmux.sessions.summary import SessionSummary, shorten_token

if TYPE_CHECKING:
    from tunnelmux.mux import Session, Stream

__all__ = ["CLOSED_BY_CALL", "LocalHandle", "OwnHandle", "SessionHandle", "utc_now"]


REPLACED = "replaced by a new connection of the same device"
"""The reason of a session's end that logs, events and the documentation know."""

CLOSED_BY_CALL = "closed through the internal API"
"""The reason where a back end closed it."""


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


class SessionHandle(abc.ABC):
    """A session that can be used, whichever process holds it."""

    default_service = ""
    """The service that a request without a name gets, as the agent says, if it does."""
    relayed: Mapping[str | None, str] = MappingProxyType({})
    """Services that take raw connections, as the agent says, by name; None is the default service.
    The list may be incomplete.
    """
    timeouts: Mapping[str | None, float] = MappingProxyType({})
    """Seconds in which a target must begin its answer, by service, where the agent sets its own;
    None is the default service.
    """

    @property
    @abc.abstractmethod
    def token(self) -> str:
        """Identifies this session, and no later one of the device. A secret: log
        `shorten_token(token)`.
        """

    @property
    @abc.abstractmethod
    def device(self) -> str:
        """The name of the device at the other end."""

    @property
    def credential(self) -> bytes:
        """A digest of the credential that the agent presented: the same for two sessions of one
        identity. Empty where it is not known.
        """
        return b""

    @abc.abstractmethod
    async def open_stream(self) -> trio.abc.HalfCloseableStream:
        """A new stream to the agent; raises SessionClosed, SessionDraining or TooManyStreams."""

    async def open_reserved_stream(self) -> trio.abc.HalfCloseableStream:
        """The same for what is no visitor's: it may be one of the streams that are kept from
        visitors."""
        return await self.open_stream()

    def way_now(self) -> tuple[Session, bytes, bytes] | None:
        """How compiled code reaches the agent without waiting, where the session is on another
        node: a session to open a stream on, the head to send first, and the answer to expect.
        """
        return None

    @property
    def elsewhere(self) -> str:
        """The name of the other node that has the session; empty for this one."""
        return ""

    @abc.abstractmethod
    async def close(self, reason: str = "closed by the proxy") -> None:
        """End the session now; its streams break. Closing a closed session is no error.

        `reason` is what the log says about it.
        """

    @property
    @abc.abstractmethod
    def is_closed(self) -> bool:
        """Whether the session's connection is gone."""

    @property
    def end_reason(self) -> str:
        """Why a closed session is closed, in words; empty while it is not, or unknown."""
        return ""

    @abc.abstractmethod
    def summary(self) -> SessionSummary:
        """A snapshot of the session's facts."""


class OwnHandle(SessionHandle):
    """A session that this process itself holds: what its store registers."""

    instance = ""
    """The name of the agent's process, if it keeps several sessions, on different nodes: those of
    one name exist side by side. Empty for an agent that keeps one."""

    async def make_way(self, address: str) -> None:  # noqa: ARG002
        """End the session because its device has connected again, from `address`."""
        await self.close(REPLACED)

    @abc.abstractmethod
    def record_heartbeat(self, at: datetime) -> None:
        """Record that the agent was heard from at this time; an earlier time changes nothing."""


class LocalHandle(OwnHandle):
    """A session whose connection is in this process.

    Its last heartbeat is the later of what `record_heartbeat` noted and the last byte the agent
    sent: the session's own keepalive makes that at most `Limits.keepalive_interval` old.
    `farewell(address)` prepares what the agent reads when another connection, from that address,
    takes this one's place.
    """

    def __init__(
        self,
        session: Session,
        *,
        token: str,
        device: str,
        credential: bytes = b"",
        user: str = "",
        remote_address: str = "",
        farewell: Callable[[str], None] = lambda _address: None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.session = session
        self.remote_address = remote_address
        self.close_reason: str | None = None
        """Why this side closed the session, or None when it did not."""
        self.node = ""
        """The name of this node in its cluster, if it has one."""
        self.internal_url = ""
        """The URL of its internal API."""
        self.instance = ""
        self.agent_version = ""
        """What the agent says of itself when it connects, and the names of its services."""
        self.services: tuple[str, ...] = ()
        self.replaced_by = ""
        """The address of the connection that replaced this one, if one did."""
        self._farewell = farewell
        self._token = token
        self._device = device
        self._credential = credential
        self._user = user
        self._clock = clock
        self._connected_at = self._heartbeat = clock()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<LocalHandle {self._device!r} token={shorten_token(self._token)} {state}>"

    @property
    def token(self) -> str:
        return self._token

    @property
    def device(self) -> str:
        return self._device

    @property
    def credential(self) -> bytes:
        return self._credential

    async def open_reserved_stream(self) -> Stream:
        return await self.open_stream()

    def has_room(self, reserved: int) -> bool:
        """Whether a visitor may have a stream, where so many are kept for others: an eighth of all
        at most."""
        most = self.session.limits.max_streams
        return self.session.stream_count < most - min(reserved, most // 8)

    async def open_stream(self) -> Stream:
        if self.is_closed:
            raise SessionClosed(f"the session of device {self._device!r} has ended")
        return await self.session.open_stream()

    async def close(self, reason: str = "closed by the proxy") -> None:
        # No checkpoint: replacing a session must not be interrupted between two of them.
        if not self.is_closed:
            self.close_reason = reason
            self.session.abort(SessionClosed(reason))

    async def make_way(self, address: str) -> None:
        if not self.is_closed:
            self.close_reason = REPLACED
            self.replaced_by = address
            self._farewell(address)
            # Ended in order, so that the agent can read why.
            self.session.end(SessionClosed(REPLACED))

    @property
    def is_closed(self) -> bool:
        return self.close_reason is not None or self.session.is_closed

    @property
    def end_reason(self) -> str:
        if self.close_reason is not None:
            return self.close_reason
        if not self.session.is_closed:
            return ""
        error = self.session.error
        return str(error) if error is not None else "the agent closed it"

    def summary(self) -> SessionSummary:
        return SessionSummary(
            token=self._token,
            user_id=self._user,
            device_id=self._device,
            connected_at=self._connected_at,
            last_heartbeat=max(self._heartbeat, self._last_byte_at()),
            remote_addr=self.remote_address,
            proxy_node_id=self.node,
            proxy_internal_url=self.internal_url,
            agent_version=self.agent_version,
            services=self.services,
        )

    def record_heartbeat(self, at: datetime) -> None:
        self._heartbeat = max(self._heartbeat, at)

    def _last_byte_at(self) -> datetime:
        # The session counts on the monotonic clock; only the distance to now carries over.
        silence = max(0.0, trio.current_time() - self.session.last_received)
        return self._clock() - timedelta(seconds=silence)
