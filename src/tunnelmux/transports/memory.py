"""Byte streams inside one process: for tests, for the demo and for embedding both ends."""

from __future__ import annotations

import trio

from tunnelmux.conflict import OneAtATime

__all__ = ["MemoryStream", "memory_stream_pair"]

_DEFAULT_RECEIVE = 65_536


class _Pipe:
    """One direction. `capacity` is how many bytes may wait unread; None is no bound."""

    def __init__(self, capacity: int | None) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be at least 1 byte or None, not {capacity}")
        self.capacity = capacity
        self.buffer = bytearray()
        self.finished = False  # the writer sent EOF
        self.writer_closed = False
        self.reader_closed = False
        self._changed = trio.Event()

    def notify(self) -> None:
        """Wake the tasks that wait for the state to change."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self) -> None:
        # No deadline: this is the peer task's to end, and a closing of either end wakes it too.
        await self._changed.wait()

    @property
    def room(self) -> int:
        if self.capacity is None:
            return 1 << 62
        return self.capacity - len(self.buffer)


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of `memory_stream_pair()`; keeps the contract of Trio's half-closeable streams."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._sending = OneAtATime("another task is using this stream for send")
        self._receiving = OneAtATime("another task is using this stream for receive")

    def _check_writable(self) -> None:
        if self._outgoing.writer_closed or self._outgoing.finished:
            raise trio.ClosedResourceError("this half of the stream was closed")
        if self._outgoing.reader_closed:
            raise trio.BrokenResourceError("the peer closed its end of the stream")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over every byte, waiting while the other side's capacity is used up."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            pipe = self._outgoing
            self._check_writable()
            view = memoryview(data)
            while view:
                self._check_writable()
                room = pipe.room
                if room <= 0:
                    await pipe.wait_change()
                    continue
                pipe.buffer += view[:room]
                view = view[room:]
                pipe.notify()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until at least one byte could be sent, or the stream broke."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_writable()
            while self._outgoing.room <= 0:
                await self._outgoing.wait_change()
                self._check_writable()

    async def send_eof(self) -> None:
        """Say that no more bytes follow; the peer reads b"" after the last one."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._outgoing.writer_closed:
                raise trio.ClosedResourceError("this stream was closed")
            self._outgoing.finished = True
            self._outgoing.notify()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to `max_bytes` bytes (64 KiB when None); b"" after the peer's EOF."""
        if max_bytes is None:
            max_bytes = _DEFAULT_RECEIVE
        elif not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
        elif max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            pipe = self._incoming
            while True:
                if pipe.reader_closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if pipe.buffer:
                    break
                if pipe.finished or pipe.writer_closed:
                    return b""
                await pipe.wait_change()
            data = bytes(pipe.buffer[:max_bytes])
            del pipe.buffer[:max_bytes]
            pipe.notify()
            return data

    def close(self) -> None:
        """Close both halves now; bytes the peer has not read yet stay readable for it."""
        self._outgoing.writer_closed = True
        self._outgoing.notify()
        self._incoming.reader_closed = True
        self._incoming.buffer.clear()
        self._incoming.notify()

    async def aclose(self) -> None:
        """Close both halves; never waits."""
        self.close()
        await trio.lowlevel.checkpoint()


def memory_stream_pair(capacity: int | None = None) -> tuple[MemoryStream, MemoryStream]:
    """Two connected streams.

    With `capacity`, each direction holds at most that many unread bytes and a sender waits for
    the rest, as a TCP connection with a full window would.
    """
    there, back = _Pipe(capacity), _Pipe(capacity)
    return MemoryStream(there, back), MemoryStream(back, there)
