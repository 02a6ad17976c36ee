"""One command's channel on an SSH connection, fed by asyncssh's callbacks."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import Any

import asyncssh
import trio

from tunnelmux.commands import StreamName

__all__ = ["Channel"]

Deliver = Callable[[StreamName, bytes], bool]
"""Takes output; returns whether more may come at once."""


class Channel(asyncssh.SSHClientSession[bytes]):
    """The session that asyncssh calls from its loop; none of its methods waits."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver: Deliver | None = deliver
        self._channel: Any = None
        self._closed = False
        self.confirmed = trio.Event()
        """Set when the server has opened the channel. Before that, it was not asked to run
        anything."""
        self.exited = trio.Event()
        """Set when it is known how the command ended, or when the channel is over."""
        self.ended = trio.Event()
        """Set when the channel is over on both sides."""
        self.exit_code: int | None = None
        """The exit status, or 128 + n when signal n ended the command; None while not known."""
        self.lost: Exception | None = None
        """The error of the connection, when that ended the channel."""
        self.paused = False
        """Whether output waits for its reader."""
        self.received = 0
        """How many bytes came, discarded ones included."""

    @property
    def unfinished(self) -> bool:
        """Whether output may still come, or waits here."""
        return not (self.ended.is_set() or self._closed)

    # -- called by asyncssh -----------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self._channel = chan
        self.confirmed.set()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.received += len(data)
        stream: StreamName = "stderr" if datatype == asyncssh.EXTENDED_DATA_STDERR else "stdout"
        if self._deliver is not None and not self._deliver(stream, data):
            self.paused = True
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        return True  # the command may still want its input

    def exit_status_received(self, status: int) -> None:
        self.exit_code = status
        self.exited.set()

    def exit_signal_received(self, signal: str, *_details: object) -> None:
        self.exit_code = 128 + _signal_number(signal)
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self.exited.set()
        self.ended.set()

    # -- called from Trio, within the bridge's loop -----------------------------------------

    def resume(self) -> None:
        """The reader has room again."""
        if self.paused:
            self.paused = False
            if not self.ended.is_set():
                self._channel.resume_reading()

    def discard(self) -> None:
        """Throw away what still comes, so that the end is not held up behind it."""
        self._deliver = None
        self.resume()

    def write_input(self, data: bytes | None) -> None:
        """Give the command all its input, and the end of it."""
        with contextlib.suppress(OSError):  # it ended without reading
            if data:
                self._channel.write(data)
            self._channel.write_eof()

    def ask_to_end(self) -> None:
        """Send SIGTERM by SSH's own message (RFC 4254 6.9), which servers may ignore."""
        if not self.ended.is_set():
            with contextlib.suppress(OSError):  # closing already
                self._channel.send_signal("TERM")

    def close(self) -> None:
        """Give the channel up. That does not end the command."""
        self._closed = True
        if self._channel is not None and not self.ended.is_set():
            self._channel.abort()


def _signal_number(name: str) -> int:
    """This system's number for a signal of RFC 4254 6.10; 0 for an unknown one."""
    return int(getattr(signal, f"SIG{name}", 0))
