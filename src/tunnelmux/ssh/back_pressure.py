"""A bound for what asyncssh keeps of one connection, and for the time that it takes at once.

asyncssh answers a request whether or not its answers are read, and goes on reading while it works
on one. A peer that asks and does not read would fill the memory of this process, before it has
logged in as well as after. So its connection is not read while too much of it waits. And asyncssh
makes packets as small as the peer wants them: with a byte in each, one peer would take the whole
processor. So its connection ends.

A peer may send tiny packets, too: a reading of 64 KiB holds two thousand of them, each of which
takes as long as a large one. So asyncssh gets a reading in pieces, for one turn of the loop as many
as there is time for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh

from tunnelmux.ssh.channel_data import ChannelData
from tunnelmux.ssh.turns import Account, Turns, turns_of

__all__ = ["BackPressure"]

_MOST_REQUESTS = 16
# Requests that wait for an answer, of the connection and of each of its channels. OpenSSH sends a
# handful: one for each forward, and what comes before a command.

_MOST_DEFERRED = 4096
# Packets that wait for the end of a key exchange: more than all windows of a busy connection hold.

_LEAST_PACKET = 1024
# Bytes of a channel's data that a peer takes in one packet. It has to take packets of 32,768 (RFC
# 4253 section 6.1), and the smallest servers and clients take 2,048.

_AT_ONCE = 65_536
# Bytes read at once.

_PIECE = 512
# Bytes that asyncssh gets at once, behind the packet that it has begun. They hold a dozen of the
# smallest packets.

_TURN = 0.00025
# Seconds of processor time that a connection may take of one turn, while all others wait.

_LOOK = 0.02
# Seconds between two looks whether a connection that is not read may be read again.


class BackPressure:
    """Reads a connection of asyncssh no further while its peer is behind or others have their turn,
    and ends it where the peer wants its data in tiny packets.

    To be made where asyncssh says that the connection is made. Its transport tells how much it has
    not sent yet, and can pause reading. Connections of one `peer` share their turns.
    """

    def __init__(
        self,
        connection: Any,
        loop: asyncio.AbstractEventLoop,
        most_unsent: int,
        peer: object = None,
        *,
        turns: Turns | None = None,
    ) -> None:
        self.most_unsent = most_unsent
        """Bytes that may wait to be read by the peer. To be more than its channels' windows."""
        self.cost = 0.0
        """Seconds of processor time that it has taken."""
        self._turns = turns_of(loop) if turns is None else turns
        self.account = self._turns.account(peer) if peer is not None else Account()
        """What its peer has cost."""
        self._connection = connection
        self._loop = loop
        self._transport = connection._transport  # noqa: SLF001  asyncssh shows it nowhere else
        self._take = connection.data_received
        self._finish = connection._finish_recv_packet  # noqa: SLF001
        self._rest = memoryview(b"")
        self._is_paused = False
        self._waits = False
        self._looks = False
        if isinstance(getattr(self._transport, "max_size", None), int):
            self._transport.max_size = _AT_ONCE
        ChannelData(connection)
        connection.data_received = self._received
        connection._finish_recv_packet = self._finished  # noqa: SLF001

    def belongs_to(self, peer: object) -> None:
        """It is known now whose connection this is."""
        self.account = self._turns.account(peer)
        self.account.charge(self.cost, self._turns.clock())

    @property
    def is_behind(self) -> bool:
        """Whether too much waits: answers that are not read, or requests without an answer."""
        connection = self._connection
        channels = list(connection._channels.values())  # noqa: SLF001
        return bool(
            self._transport.get_write_buffer_size() > self.most_unsent
            or len(connection._deferred_packets) > _MOST_DEFERRED  # noqa: SLF001
            or len(connection._global_request_queue) > _MOST_REQUESTS  # noqa: SLF001
            or any(len(channel._request_queue) > _MOST_REQUESTS for channel in channels)  # noqa: SLF001
        )

    def take_turn(self) -> None:
        """Go on with what was read, or read more. Called by `Turns`."""
        self._waits = False
        if not self._is_stopped and not self._rest:
            self._read()
        else:
            self._go_on(self._turns.clock())

    def _received(self, data: bytes, _datatype: Any = None) -> None:
        self._rest = memoryview(bytes(self._rest) + data)
        now = self._turns.clock()  # a system call: few for each reading
        if self._turns.cost_much(self.account, now) and not self._turns.take_at_once():
            self._read_or_wait()
        else:
            self._go_on(now)

    def _finished(self, *about: Any, is_async: bool = False) -> None:
        """Asyncssh has worked on a packet; when it waited for that, it goes on now."""
        self._finish(*about, is_async=is_async)
        if is_async:
            self._read_or_wait()

    def _go_on(self, began: float) -> None:
        """Have asyncssh take what was read, for a turn."""
        now = began
        while self._rest and not self._is_stopped and now - began < _TURN:
            size = max(0, self._missing) + _PIECE
            piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
            self._take(piece)
            # Before anything is written to a channel that was opened just now.
            if any(0 < size < _LEAST_PACKET for size in self._packet_sizes()):
                reason = f"a channel must take packets of {_LEAST_PACKET} bytes"
                self._connection.disconnect(asyncssh.DISC_PROTOCOL_ERROR, reason)
            now = self._turns.clock()
        self.cost += now - began
        self.account.charge(now - began, now)
        self._read_or_wait()

    def _read_or_wait(self) -> None:
        if self._transport.is_closing():
            self._rest = memoryview(b"")
        elif self._is_stopped:
            self._pause()
            if not self._works:
                self._look_later()
        elif self._rest:
            self._pause()
            if not self._waits:
                self._waits = True
                self._turns.wait(self)
        elif not self._waits:
            self._read()

    @property
    def _is_stopped(self) -> bool:
        """Whether asyncssh takes no more now."""
        return self._transport.is_closing() or self._works or self.is_behind

    @property
    def _works(self) -> bool:
        """Whether asyncssh works on a packet that takes it some time."""
        handler = self._connection._recv_handler  # noqa: SLF001
        return not hasattr(handler, "__self__")  # else a method of the connection

    @property
    def _missing(self) -> int:
        """Bytes of the packet that asyncssh has begun; none or fewer where it has begun none."""
        connection = self._connection
        if not connection._packet:  # noqa: SLF001
            return 0
        begun: int = connection._recv_blocksize + len(connection._inpbuf)  # noqa: SLF001
        whole: int = 4 + connection._pktlen + connection._recv_macsize  # noqa: SLF001
        return whole - begun

    def _packet_sizes(self) -> list[int]:
        """What each channel's peer takes in a packet; 0 where it has not said."""
        channels = list(self._connection._channels.values())  # noqa: SLF001
        return [channel._send_pktsize for channel in channels]  # noqa: SLF001

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _read(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _look_later(self) -> None:
        # asyncssh has no callback for when one of these grows shorter.
        if not self._looks:
            self._looks = True
            self._loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        self._looks = False
        self._read_or_wait()
