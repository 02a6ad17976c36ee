"""The interfaces of session registers."""

from __future__ import annotations

import abc
from datetime import datetime

from tunnelmux.sessions.handle import OwnHandle, SessionHandle
from tunnelmux.sessions.summary import SessionSummary

__all__ = ["CLEANUP_INTERVAL", "DeviceStore", "SessionReader", "SessionStore"]

CLEANUP_INTERVAL = 30.0
"""Seconds between two runs of `cleanup_expired` in the owner of a store."""


class SessionReader(abc.ABC):
    """Looks sessions up by token, whichever process they are registered in."""

    @abc.abstractmethod
    async def lookup(self, token: str) -> SessionHandle:
        """The live session of this token; raises SessionNotFound, or SessionExpired."""

    @abc.abstractmethod
    async def exists(self, token: str) -> bool:
        """Whether this token has a live session. Absence is an answer and never raises."""

    @abc.abstractmethod
    async def list(self) -> list[SessionSummary]:
        """A summary of every live session, by device name."""


class SessionStore(SessionReader):
    """Registers the sessions that this process holds."""

    @abc.abstractmethod
    async def register(self, token: str, handle: OwnHandle) -> None:
        """Make `handle` the session of this token.

        The session that was there before is closed and replaced at once: an agent that comes back
        is never told that its name is in use.
        """

    @abc.abstractmethod
    async def unregister(self, token: str, handle: SessionHandle | None = None) -> None:
        """Remove the session of this token without closing it; an unknown token is no error.

        With `handle`, only that very session: one that was replaced meanwhile cannot take its
        successor away with it.
        """

    @abc.abstractmethod
    async def heartbeat(self, token: str) -> None:
        """Record that the agent was heard from just now; raises SessionNotFound."""

    @abc.abstractmethod
    async def cleanup_expired(self, expire_after: float) -> int:
        """Remove and close every session not heard from for longer than `expire_after` seconds.

        Returns how many. The store's owner calls it every CLEANUP_INTERVAL seconds.
        """


class DeviceStore(SessionStore):
    """A store that also finds sessions by device name: the proxy's, whose visitors name devices.

    A session registered for a device replaces the one the device had, under whatever token.
    """

    reaches_others = False
    """Whether `find_device` may answer with sessions of other nodes; `live_device` knows those only
    after `find_device` has found them.
    """

    async def reach(self, token: str) -> SessionHandle:
        """The live session of this token, to open streams on, wherever it is; raises as `lookup`,
        which knows those of this process."""
        return await self.lookup(token)

    async def expect(self, device: str) -> None:
        """A session of the device is registered in a moment: its agent gets the answer to its
        handshake now, and who hears of that may look for the device at any process."""

    @abc.abstractmethod
    async def find_device(self, name: str) -> SessionHandle | None:
        """The live session of this device, or None while it is offline."""

    @abc.abstractmethod
    def live_device(self, name: str) -> SessionHandle | None:
        """Like `find_device`, but only with what is known without waiting."""

    @abc.abstractmethod
    async def wait_for_device(self, name: str, until: float) -> SessionHandle | None:
        """The session of this device as soon as there is one; None if there is none by `until`.

        `until` counts on `trio.current_time()`. Answers at once when there is one already, also
        when that moment has passed.
        """

    @abc.abstractmethod
    def last_seen(self, name: str) -> datetime | None:
        """When this device was last heard from (UTC); None if that is not known."""

    @abc.abstractmethod
    def offline_reason(self, name: str) -> str:
        """Why this device's last session ended; empty while it is online, or when unknown."""

    @abc.abstractmethod
    def lost_at(self, name: str) -> float | None:
        """The `trio.current_time()` at which the device's last session ended.

        None while it is online, and if it never was.
        """
