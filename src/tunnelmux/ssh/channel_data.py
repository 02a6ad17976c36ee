"""Data of channels that waits in asyncssh: in few pieces, and only while it may be sent.

asyncssh keeps the data of each packet as an object of its own, and takes them from the front of a
list. A window full of packets with one byte each takes fifty times its size, and the loop stands
still for half a minute while they are taken. So what waits is joined.

asyncssh sends all that a peer's window allows, and puts no bound to what its transport has to keep
of it. A window may be 4 GiB, and its peer may read nothing. So data waits in its channel, which
tells its session, until the transport has room and keys are exchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["ChannelData", "Pieces"]

_JOINED = 32_768
# Bytes of a piece: those of one packet (RFC 4253 section 6.1).

_MOST_IN_ORDER = 256
# Pieces of which each has its place. Behind so many, output and errors are joined past each other:
# one byte of either in turn makes as many pieces as there are bytes.


class Pieces(deque[tuple[bytearray, Any]]):
    """In the place of the lists of asyncssh's channels, of which it has all that they use."""

    def append(self, piece: tuple[bytes | bytearray, Any], /) -> None:
        """Add data of one kind."""
        data, kind = piece
        looks = 2 if len(self) >= _MOST_IN_ORDER else 1
        for waiting, other in [self[-at] for at in range(1, min(looks, len(self)) + 1)]:
            if other == kind and len(waiting) + len(data) <= _JOINED:
                waiting.extend(data)
                return
        super().append((data if isinstance(data, bytearray) else bytearray(data), kind))

    def pop(self, _first: int = 0) -> tuple[bytes, Any]:  # type: ignore[override]
        """Take the first."""
        data, kind = self.popleft()
        return bytes(data), kind


class ChannelData:
    """The data of all channels of one connection, which is made now."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._is_full = False
        self._add = connection.add_channel
        self._send_deferred = connection._send_deferred_packets  # noqa: SLF001
        connection.add_channel = self._add_channel
        connection.pause_writing = self._pause
        connection.resume_writing = self._resume
        connection._send_deferred_packets = self._keys_exchanged  # noqa: SLF001

    def _add_channel(self, channel: Any) -> int:
        number: int = self._add(channel)
        # asyncssh shows none of these elsewhere.
        channel._recv_buf, channel._send_buf = Pieces(), Pieces()  # noqa: SLF001
        channel._flush_send_buf = partial(self._flush, channel, channel._flush_send_buf)  # noqa: SLF001
        return number

    def _flush(self, channel: Any, flush: Callable[[], None]) -> None:
        """Called by asyncssh in the place of its own `flush`, which sends what waits."""
        if self._may_send or not channel._send_buf:  # noqa: SLF001
            flush()
        else:
            channel._pause_resume_writing()  # noqa: SLF001

    @property
    def _may_send(self) -> bool:
        return not self._is_full and self._connection._kex_complete  # noqa: SLF001

    def _pause(self) -> None:
        self._is_full = True

    def _resume(self) -> None:
        self._is_full = False
        self._send_waiting()

    def _keys_exchanged(self) -> None:
        self._send_deferred()
        self._send_waiting()

    def _send_waiting(self) -> None:
        for channel in list(self._connection._channels.values()):  # noqa: SLF001
            if channel._send_buf and channel._session is not None:  # noqa: SLF001
                channel._flush_send_buf()  # noqa: SLF001
