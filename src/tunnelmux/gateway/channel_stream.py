"""An SSH channel as a Trio stream: a connection that the gateway asks a device's `ssh -R` for."""

from __future__ import annotations

import errno
from typing import Any

import asyncssh
import trio

from tunnelmux.conflict import OneAtATime
from tunnelmux.gateway.buffered_channel import BufferedChannel
from tunnelmux.gateway.guest import Bridge
from tunnelmux.gateway.windows import window_among
from tunnelmux.ssh.session_channel import channel_count

__all__ = ["ChannelStream", "open_reverse_channel"]

_PIECE = 65_536
# Bytes given at once to a caller that asks for no number.

_MOST_CHANNELS = 512
# Channels of one device, those included that it leaves without an answer, each some kilobytes:
# twice as many as it has streams (`reverse`).


class ChannelStream(BufferedChannel, trio.abc.HalfCloseableStream):
    """Both directions of a channel. A connection that was cut raises BrokenResourceError."""

    def __init__(self, bridge: Bridge, window: int) -> None:
        super().__init__(bridge, window // 2)
        self._is_closed = False
        self._has_sent_eof = False
        self._sending = OneAtATime("another task is sending on this channel")
        self._receiving = OneAtATime("another task is receiving from this channel")

    def connection_made(self, chan: Any) -> None:
        super().connection_made(chan)
        if self._is_closed:
            chan.abort()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while not self._waiting:
                self._check_open()
                if self._is_eof:
                    return b""
                if self._is_lost:
                    raise trio.BrokenResourceError("the device cut the connection")
                self._something = trio.Event()
                # No deadline: the caller has one, or waits as long as the other side takes.
                await self._something.wait()
            return self._take(max_bytes or _PIECE)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_writable()
            self._channel.write(bytes(data))
            # No deadline: a device that does not read holds its visitor back.
            await self._may_write.wait()
            self._check_writable()

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_writable()
            await self._may_write.wait()

    async def send_eof(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_open()
            if not self._is_lost and not self._has_sent_eof:
                self._has_sent_eof = True
                self._channel.write_eof()

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._channel.close()
            self._wake()
            self._may_write.set()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """End both directions at once."""
        if not self._is_closed:
            self._is_closed = True
            if self._channel is not None:
                self._channel.abort()
            self._wake()
            self._may_write.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this channel was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._has_sent_eof:
            raise trio.ClosedResourceError("the end was sent already")
        if self._is_lost:
            raise trio.BrokenResourceError("the device cut the connection")


async def open_reverse_channel(
    bridge: Bridge, connection: Any, host: str, port: int
) -> ChannelStream:
    """A connection to what the device's `ssh -R host:port:…` leads to; in Trio. Raises OSError."""
    if channel_count(connection) >= _MOST_CHANNELS:
        raise ConnectionRefusedError(
            errno.ECONNREFUSED,
            f"the device's ssh leaves {_MOST_CHANNELS} connections without an answer",
        )
    window = window_among([connection])
    stream = ChannelStream(bridge, window)
    answered = trio.Event()
    problem: Exception | None = None

    async def open_it() -> None:
        nonlocal problem
        try:
            await connection.create_connection(
                lambda: stream, host, port, "127.0.0.1", 0, encoding=None, window=window
            )
        except (OSError, asyncssh.Error) as exc:
            problem = exc
        finally:
            bridge.soon(answered.set)

    # Never cancelled: asyncssh would leave a channel open whose opening was cancelled.
    bridge.start(open_it())
    try:
        await answered.wait()  # the caller has a deadline
    except trio.Cancelled:
        stream.reset()
        raise
    if isinstance(problem, asyncssh.ChannelOpenError):
        raise ConnectionRefusedError(errno.ECONNREFUSED, str(problem)) from problem
    if problem is not None:
        raise ConnectionAbortedError(errno.ECONNABORTED, str(problem)) from problem
    return stream
