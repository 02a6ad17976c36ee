"""An SSH channel whose incoming bytes wait for a Trio task, up to a limit."""

from __future__ import annotations

from typing import Any

import asyncssh
import trio

from tunnelmux.gateway.guest import Bridge

__all__ = ["BufferedChannel"]


class BufferedChannel(asyncssh.SSHTCPSession[bytes]):
    """The asyncio half of a channel; a subclass reads `_waiting` and writes to it in Trio."""

    def __init__(self, bridge: Bridge, most_waiting: int) -> None:
        """With more than `most_waiting` bytes for the Trio side, the channel is not read."""
        self._bridge = bridge
        self._channel: Any = None
        self._waiting = bytearray()
        self._most_waiting = most_waiting
        self._is_held = False
        self._is_eof = False
        self._is_lost = False
        self._something = trio.Event()
        self._may_write = trio.Event()
        self._may_write.set()

    # -- called by asyncssh, in asyncio -------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def data_received(self, data: bytes, _datatype: object) -> None:
        # Joined: as an object of its own, a packet of one byte would take fifty times as much.
        self._waiting += data
        if len(self._waiting) > self._most_waiting and not self._is_held:
            self._is_held = True
            self._channel.pause_reading()
        self._bridge.soon(self._wake)

    def eof_received(self) -> bool:
        self._is_eof = True
        self._bridge.soon(self._wake)
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self._may_write = trio.Event()

    def resume_writing(self) -> None:
        self._bridge.soon(self._may_write.set)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._is_lost = True
        self._bridge.soon(self._wake)
        self._bridge.soon(self._may_write.set)

    # -- in Trio ------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._something.set()

    def _take(self, max_bytes: int) -> bytes:
        """Take the first of the waiting bytes, and read the channel again once there is room."""
        data = bytes(self._waiting[:max_bytes])
        del self._waiting[:max_bytes]
        if self._is_held and len(self._waiting) < self._most_waiting and not self._is_lost:
            self._is_held = False
            self._channel.resume_reading()
        return data
