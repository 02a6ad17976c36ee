"""A bound for what asyncssh keeps of one connection.

asyncssh answers a request whether or not its answers are read, and goes on reading while it works
on one. A peer that asks and does not read would fill the memory of this process, before it has
logged in as well as after. So its connection is not read while too much of it waits. And asyncssh
makes packets as small as the peer wants them: with a byte in each, one peer would take the whole
processor. So its connection ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import asyncssh

__all__ = ["BackPressure"]

_MOST_UNREAD = 65_536
# Bytes behind one packet that is not whole yet, whose size asyncssh bounds.

_MOST_REQUESTS = 16
# Requests that wait for an answer, of the connection and of each of its channels. OpenSSH sends a
# handful: one for each forward, and what comes before a command.

_MOST_DEFERRED = 4096
# Packets that wait for the end of a key exchange: more than all windows of a busy connection hold.

_LEAST_PACKET = 1024
# Bytes of a channel's data that a peer takes in one packet. It has to take packets of 32,768 (RFC
# 4253 section 6.1), and the smallest servers and clients take 2,048.

_AT_ONCE = 65_536
# Bytes read in one turn of the loop, where they are large packets.

_FIRST = 8192
# Bytes read in the first turn, before it is known what they cost.

_LEAST_AT_ONCE = 1024
# Bytes read in one turn however much they cost: some forty of the smallest packets.

_TURN = 0.001
# Seconds of processor time that a connection may take of one turn, while all others wait. 64 KiB
# take less in large packets, and more than ten times as long in the smallest.

_LOOK = 0.02
# Seconds between two looks whether a connection that is not read may be read again.


class BackPressure:
    """Reads a connection of asyncssh no further while its peer is behind, and ends it where the
    peer wants its data in tiny packets.

    To be made where asyncssh says that the connection is made. Its transport tells how much it has
    not sent yet, and can pause reading. `clock` returns seconds of processor time.
    """

    def __init__(
        self,
        connection: Any,
        loop: asyncio.AbstractEventLoop,
        most_unsent: int,
        *,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.most_unsent = most_unsent
        """Bytes that may wait to be read by the peer. To be more than its channels' windows."""
        self._connection = connection
        self._loop = loop
        self._transport = connection._transport  # noqa: SLF001  asyncssh shows it nowhere else
        self._take = connection.data_received
        self._clock = clock
        self._sets_size = isinstance(getattr(self._transport, "max_size", None), int)
        self._set_size(_FIRST)
        connection.data_received = self._received

    @property
    def is_behind(self) -> bool:
        """Whether too much waits: answers that are not read, or requests without an answer."""
        connection = self._connection
        channels = list(connection._channels.values())  # noqa: SLF001
        return bool(
            self._transport.get_write_buffer_size() > self.most_unsent
            or len(connection._inpbuf) > connection._max_recv_pktlen + _MOST_UNREAD  # noqa: SLF001
            or len(connection._deferred_packets) > _MOST_DEFERRED  # noqa: SLF001
            or len(connection._global_request_queue) > _MOST_REQUESTS  # noqa: SLF001
            or any(len(channel._request_queue) > _MOST_REQUESTS for channel in channels)  # noqa: SLF001
        )

    def _received(self, data: bytes, datatype: Any = None) -> None:
        began = self._clock()
        self._take(data, datatype)
        self._fit_size(len(data), self._clock() - began)
        # Before anything is written to a channel that was opened just now.
        if any(0 < size < _LEAST_PACKET for size in self._packet_sizes()):
            reason = f"a channel must take packets of {_LEAST_PACKET} bytes"
            self._connection.disconnect(asyncssh.DISC_PROTOCOL_ERROR, reason)
        if not self._transport.is_closing() and self.is_behind:
            self._transport.pause_reading()
            self._look_later()

    def _fit_size(self, size: int, seconds: float) -> None:
        """So many bytes took so long: read as many in the next turn as it has time for."""
        if seconds > _TURN:
            self._set_size(int(size * _TURN / seconds))
        elif seconds < _TURN / 2:
            self._set_size(self._size * 2)

    def _set_size(self, size: int) -> None:
        self._size = min(max(size, _LEAST_AT_ONCE), _AT_ONCE)
        if self._sets_size:
            self._transport.max_size = self._size

    def _packet_sizes(self) -> list[int]:
        """What each channel's peer takes in a packet; 0 where it has not said."""
        channels = list(self._connection._channels.values())  # noqa: SLF001
        return [channel._send_pktsize for channel in channels]  # noqa: SLF001

    def _look_later(self) -> None:
        # asyncssh has no callback for when one of these grows shorter.
        self._loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if self.is_behind:
            self._look_later()
        else:
            self._transport.resume_reading()
