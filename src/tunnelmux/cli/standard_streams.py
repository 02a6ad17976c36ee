"""Standard input and output joined to a stream."""

from __future__ import annotations

import os
import stat

import trio

from tunnelmux.cli.fleet.errors import FleetError, NotThere

__all__ = ["carry"]

_PIECE = 65_536


async def carry(stream: trio.abc.HalfCloseableStream) -> None:
    """Carry bytes both ways until the other side has ended. The end of input is passed on.

    Raises NotThere when the connection breaks.
    """
    source, sink = _Input(0), _Output(1)

    async def up() -> None:
        while data := await source.receive_some():
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                return  # down() finds out why
        try:
            await stream.send_eof()
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(up)
        try:
            while data := await stream.receive_some(_PIECE):
                await sink.send_all(bytes(data))
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, FleetError):
                raise exc.__cause__ from exc
            raise NotThere(f"the connection broke: {exc}") from exc
        nursery.cancel_scope.cancel()
    await sink.close()
    await source.close()


class _Input:
    """A file descriptor of any kind to read from. Files and terminals are read in a thread: epoll
    takes no files, and a non-blocking terminal would disturb the shell."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stream = _as_stream(descriptor)

    async def receive_some(self) -> bytes:
        if self._stream is not None:
            return bytes(await self._stream.receive_some(_PIECE))
        return await trio.to_thread.run_sync(
            os.read, self._descriptor, _PIECE, abandon_on_cancel=True
        )

    async def close(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


class _Output:
    """A file descriptor to write to. Raises BrokenPipeError when the reader is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stream = _as_stream(descriptor)

    async def send_all(self, data: bytes) -> None:
        if self._stream is None:
            await trio.to_thread.run_sync(
                _write_all, self._descriptor, data, abandon_on_cancel=True
            )
            return
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            raise BrokenPipeError from None

    async def close(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


def _as_stream(descriptor: int) -> trio.lowlevel.FdStream | None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return trio.lowlevel.FdStream(os.dup(descriptor))
    return None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
