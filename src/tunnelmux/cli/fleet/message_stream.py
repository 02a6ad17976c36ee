"""A raw connection over a WebSocket of binary messages, as tunnelmux-api carries it."""

from __future__ import annotations

import trio
import trio_websocket

from tunnelmux.cli.fleet.errors import NotThere

__all__ = ["MessageStream"]

_MESSAGE = 65_536
# Bytes of one message: what a relay reads at once.


class MessageStream(trio.abc.HalfCloseableStream):
    """The bytes of the messages; an empty one is the end of one direction.

    Raises BrokenResourceError, with a NotThere that says why as its cause, when the other side
    breaks the connection.
    """

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        self._early = b""
        self._ended = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), _MESSAGE):
                await self._connection.send_message(bytes(view[start : start + _MESSAGE]))
        except trio_websocket.ConnectionClosed as exc:
            raise _broken(exc) from _cause(exc)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        try:
            await self._connection.send_message(b"")
        except trio_websocket.ConnectionClosed as exc:
            raise _broken(exc) from _cause(exc)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        if not self._early:
            try:
                message = await self._connection.get_message()
            except trio_websocket.ConnectionClosed as exc:
                raise _broken(exc) from _cause(exc)
            self._early = message.encode() if isinstance(message, str) else bytes(message)
            self._ended = not self._early
        cut = len(self._early) if max_bytes is None else max_bytes
        data, self._early = self._early[:cut], self._early[cut:]
        return data

    async def aclose(self) -> None:
        await self._connection.aclose()


def _cause(exc: trio_websocket.ConnectionClosed) -> NotThere:
    reason = exc.reason.reason if exc.reason is not None else None
    return NotThere(reason or "the connection to the server was lost")


def _broken(exc: trio_websocket.ConnectionClosed) -> trio.BrokenResourceError:
    return trio.BrokenResourceError(str(_cause(exc)))
