"""An SSH channel joined to a connection to a service, for `-W`, `-L` and `-J`.

Each direction ends by itself (EOF for FIN). A side that takes nothing holds the other back: the
channel by its window, the connection because it is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import asyncssh

__all__ = ["Forward"]

_LAST_BYTES = 5.0
# Seconds that a service has to take what was sent before the person's end.

_LINGER_ZERO = struct.pack("ii", 1, 0)


class Forward(asyncssh.SSHTCPSession[bytes]):
    """The person's channel; `service` is the other end. All of it is called in asyncio.

    `when_over` is called once both are closed.
    """

    def __init__(self, when_over: Callable[[Forward], object]) -> None:
        self.sent = 0
        """Bytes to the service."""
        self.received = 0
        """Bytes from it."""
        self.service = ServiceEnd(self)
        """The protocol of the service's connection, which is to be made first."""
        self.channel: Any = None
        self.has_ended = False
        """Whether the person has sent an EOF."""
        self._is_lost = False
        self._is_over = False
        self._when_over = when_over

    @property
    def is_open(self) -> bool:
        """Whether the person's channel is there, though it may take no more bytes."""
        return self.channel is not None and not self._is_lost

    @property
    def takes_bytes(self) -> bool:
        """Whether anything can still be written to the person."""
        return self.is_open and not self.channel.is_closing()

    def cut(self, _reason: str) -> None:
        """End both at once. SSH has no field for the reason. It is over then, also for a person
        whose ssh never answers the end."""
        if self.is_open:
            self.channel.abort()
            self._is_lost = True
        self.service.reset()
        self.over()

    def over(self) -> None:
        """One end is lost; called for each."""
        if self._is_lost and self.service.is_lost and not self._is_over:
            self._is_over = True
            self._when_over(self)

    # -- called by asyncssh -------------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self.channel = chan

    def session_started(self) -> None:
        self.service.begin()

    def data_received(self, data: bytes, _datatype: object) -> None:
        self.sent += len(data)
        self.service.write(data)

    def eof_received(self) -> bool:
        self.has_ended = True
        self.service.write_eof()
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self.service.hold(True)

    def resume_writing(self) -> None:
        self.service.hold(False)

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self.service.close()
            self.over()


class ServiceEnd(asyncio.Protocol):
    """The connection to the service, which is read once the channel is open."""

    def __init__(self, forward: Forward) -> None:
        self.is_lost = False
        self._forward = forward
        self._transport: Any = None
        self._early = b""
        self._has_ended = False

    def begin(self) -> None:
        """The channel is open: read."""
        early, self._early = self._early, b""
        if early:
            self._pass_on(early)
        if self.is_lost:
            self._forward.channel.close()
        elif self._has_ended:
            self._forward.channel.write_eof()
        else:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send this to the service."""
        if not self.is_lost:
            self._transport.write(data)

    def write_eof(self) -> None:
        """The person sends no more; once both have ended, all of it is over."""
        if self.is_lost:
            return
        if self._has_ended:
            self._transport.close()
        else:
            with contextlib.suppress(OSError):  # it has just been cut, which asyncio will tell
                self._transport.write_eof()

    def hold(self, held: bool) -> None:
        """Read it no more, or again: the person takes nothing."""
        if self.is_lost or self._has_ended:
            return
        if held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """End it behind what was sent, which has some seconds to arrive."""
        if not self.is_lost:
            self._transport.close()
            asyncio.get_running_loop().call_later(_LAST_BYTES, self._transport.abort)

    def reset(self) -> None:
        """Cut it, so that the service sees that this is no end."""
        if not self.is_lost:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self._transport.abort()

    def _pass_on(self, data: bytes) -> None:
        self._forward.received += len(data)
        self._forward.channel.write(data)

    # -- called by asyncio --------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.pause_reading()  # until `begin`

    def data_received(self, data: bytes) -> None:
        if self._forward.channel is None:
            self._early += data  # it came with the answer of the device
        elif self._forward.takes_bytes:
            self._pass_on(data)

    def eof_received(self) -> bool:
        self._has_ended = True
        if self._forward.takes_bytes:
            self._forward.channel.write_eof()
        return not self._forward.has_ended

    def pause_writing(self) -> None:
        if self._forward.is_open:
            self._forward.channel.pause_reading()

    def resume_writing(self) -> None:
        if self._forward.is_open:
            self._forward.channel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._forward.is_open:
            if exc is not None:
                self._forward.channel.abort()
            else:
                self._forward.channel.close()
        self._forward.over()
