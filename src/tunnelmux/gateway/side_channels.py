"""What a device opens back to a person: connections to their SSH agent and to their X11 display.

The person's ssh asks for either with a session (`ssh -A`, `ssh -X`). The gateway asks the device's
sshd for the same, and joins each channel that sshd then opens to one on the person's connection. It
passes on the X11 cookie unchanged: that is a stand-in, which the person's own ssh replaces
(RFC 4254 section 6.3.1).

asyncssh would listen on sockets of this machine for both. So its handlers are replaced on the
connections in question.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncssh

from tunnelmux.gateway.windows import WINDOW
from tunnelmux.printable import said

__all__ = ["PersonAgent", "SideChannel", "X11Request", "carry_back", "take_requests"]

_LONGEST_COOKIE = 256
# Bytes, of the name of the method as well: MIT-MAGIC-COOKIE-1 has 16.

_ANSWER_TIME = 20.0
# Seconds for a person's ssh to connect to its agent or display, which are on the same machine.


@dataclass(frozen=True, slots=True)
class X11Request:
    """What a session's `x11-req` says."""

    is_single: bool
    """Whether only one connection is to be forwarded."""
    protocol: bytes
    cookie: bytes
    screen: int


def take_requests(channel: Any, session: Any) -> None:
    """Have the requests of a person's channel for agent and X11 answered by their session."""

    def x11(packet: Any) -> bool:
        is_single = packet.get_boolean()
        protocol, cookie = packet.get_string(), packet.get_string()
        screen = packet.get_uint32()
        packet.check_end()
        if max(len(protocol), len(cookie)) > _LONGEST_COOKIE or b"\0" in protocol:
            return False  # sshd would end the connection for a NUL
        try:
            found = X11Request(is_single, protocol, binascii.a2b_hex(cookie), screen)
        except binascii.Error:
            return False
        return bool(session.x11_requested(found))

    def agent(packet: Any) -> bool:
        packet.check_end()
        return bool(session.agent_requested())

    channel._process_x11_req_request = x11  # noqa: SLF001
    channel._process_auth_agent_req_at_openssh_dot_com_request = agent  # noqa: SLF001


class PersonAgent:
    """The SSH agent of a person, for `asyncssh.connect_agent`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def open_agent_connection(self) -> tuple[Any, Any]:
        """Called by asyncssh."""
        channel = self._connection.create_agent_channel(WINDOW)
        session: Any = await channel.open(asyncssh.stream.SSHUNIXStreamSession)
        return asyncssh.SSHReader(session, channel), asyncssh.SSHWriter(session, channel)


class SideChannel(asyncssh.SSHTCPSession[bytes]):
    """One end of a joined pair. `when_over` is called once, for the end on the device's side."""

    def __init__(self, kind: str, when_over: Callable[[SideChannel], object] | None = None) -> None:
        self.kind = kind
        """`agent` or `x11`."""
        self.received = 0
        """Bytes from this end."""
        self.other: SideChannel | None = None
        self._when_over = when_over
        self.channel: Any = None
        self.is_over = False
        self._is_held = False

    @property
    def sent(self) -> int:
        """Bytes to this end."""
        return self.other.received if self.other is not None else 0

    def cut(self, _reason: str) -> None:
        """End both ends at once; there is nowhere to say why. One that is not open yet ends when
        it is opened."""
        for end in (self, self.other):
            if end is not None and not end.is_over:
                if end.channel is not None:
                    end.channel.abort()
                end.connection_lost(None)  # not later, when the other side answers the end

    # -- called by asyncssh ---------------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self.channel = chan
        if self.is_over:
            chan.abort()
        elif self._is_held:
            chan.pause_reading()
        elif self.other is not None:
            self.other.hold(False)  # it waited for this end

    def data_received(self, data: bytes, _datatype: object) -> None:
        self.received += len(data)
        other = self.other
        if other is not None and not other.is_over:
            other.channel.write(data)

    def eof_received(self) -> bool:
        other = self.other
        if other is not None and not other.is_over:
            other.channel.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.hold(True)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.hold(False)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        other = self.other
        if other is not None and not other.is_over and other.channel is not None:
            other.channel.close()
        if self._when_over is not None:
            self._when_over(self)

    def hold(self, held: bool) -> None:
        """Read this end no more, or again: the other takes nothing."""
        self._is_held = held
        if self.channel is None or self.is_over:
            return
        if held:
            self.channel.pause_reading()
        else:
            self.channel.resume_reading()


async def _join(
    end: SideChannel, device: Any, open_there: Callable[[Any], Awaitable[object]]
) -> None:
    """Open the other end of a pair. Raises ChannelOpenError."""
    end.other = other = SideChannel(end.kind)
    other.other = end
    other.hold(True)
    # Not by a cancel: asyncssh would leave a channel open whose opening was cancelled.
    timer = asyncio.get_running_loop().call_later(_ANSWER_TIME, end.cut, "")
    try:
        await open_there(lambda: other)
    except asyncssh.ChannelOpenError:
        end.connection_lost(None)
        raise
    finally:
        timer.cancel()
    if end.is_over:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "it is over")
    if device.is_closed():  # lost meanwhile: asyncssh never asks for this end
        other.cut("")
        end.connection_lost(None)


def carry_back(
    device: Any,
    person: Any,
    begin: Callable[[str], SideChannel],
    x11_failed: Callable[[Any], object],
    window: Callable[[], int],
    *,
    agent: bool,
    x11: bool,
) -> None:
    """Join what a device's connection opens to channels of a person's connection.

    `begin(kind)` makes the device's end of a pair, or raises ChannelOpenError.
    `x11_failed(session)` is called where the device's sshd refuses X11. `window()` is the window of
    one more channel.
    """

    async def join(kind: str, open_there: Callable[[Any], Awaitable[object]]) -> SideChannel:
        end = begin(kind)
        await _join(end, device, open_there)
        return end

    if agent:

        def agent_opened(packet: Any) -> tuple[Any, Any]:
            packet.check_end()
            here = device.create_unix_channel(None, "strict", window())
            there = person.create_agent_channel(window())
            return here, join("agent", there.open)

        device._process_auth_agent_at_openssh_dot_com_open = agent_opened  # noqa: SLF001
        device._agent_forward_path = "the person's"  # noqa: SLF001  each session asks for it
    if not x11:
        return

    def x11_opened(packet: Any) -> tuple[Any, Any]:
        host = said(packet.get_string().decode("utf-8", "replace"))
        port = packet.get_uint32()
        packet.check_end()
        here, there = device.create_x11_channel(window()), person.create_x11_channel(window())
        return here, join("x11", lambda factory: there.open(factory, host, port))

    async def attach(_channel: Any, request: X11Request, *_: Any) -> tuple[bytes, bytes, int]:
        """Asyncssh asks this for what it is to send in `x11-req`."""
        return request.protocol, request.cookie, request.screen

    def detach(channel: Any) -> None:
        """Asyncssh calls this when sshd has refused, and at the end of each channel."""
        if getattr(channel, "_session", None) is not None:
            x11_failed(channel._session)  # noqa: SLF001

    device._process_x11_open = x11_opened  # noqa: SLF001
    device.attach_x11_listener = attach
    device.detach_x11_listener = detach
