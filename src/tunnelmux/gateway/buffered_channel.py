"""An SSH channel whose incoming bytes wait for a Trio task, up to a limit."""

from __future__ import annotations

from collections import deque
from typing import Any

import asyncssh
import trio

from tunnelmux.gateway.guest import Bridge

__all__ = ["BufferedChannel"]

_HELD = 256 * 1024
# Bytes that may wait for the Trio side. With more, the channel is not read.


class BufferedChannel(asyncssh.SSHTCPSession[bytes]):
    """The asyncio half of a channel; a subclass reads `_waiting` and writes to it in Trio."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._channel: Any = None
        self._waiting: deque[bytes] = deque()
        self._size = 0
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
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _HELD and not self._is_held:
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

    def _took(self, size: int) -> None:
        """Count bytes as taken, and read the channel again once there is room."""
        self._size -= size
        if self._is_held and self._size < _HELD and not self._is_lost:
            self._is_held = False
            self._channel.resume_reading()
