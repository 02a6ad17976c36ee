"""The part of an Engine.IO connection that client and server share, over any transport.

Outgoing packets wait in one bounded queue, from which the current transport takes them. Incoming
packets are handled one after the other; the next is read when the last was handled. So a peer that
sends faster than we handle is slowed down, and for one that does not read, senders on this side
wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import trio

from tunnelmux.limits import Limits, SocketIOLimits
from tunnelmux.socketio.engine_packets import (
    CLOSE,
    MESSAGE,
    NOOP,
    PING,
    PONG,
    BadPacket,
    Codec,
    EnginePacket,
    encoded_size,
)
from tunnelmux.transports import WayOut

__all__ = ["Engine", "EngineOver", "EngineSettings", "MessageTooLarge", "Outgoing"]

DEFAULT_MAX_PAYLOAD = 1_000_000
"""Bytes a peer takes in one message when its handshake names no limit: socket.io's default."""


class EngineOver(Exception):
    """The Engine.IO connection has ended. The message says how."""


class MessageTooLarge(Exception):
    """The peer would not take a message of that size; nothing was sent."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes is larger than the {limit} the peer takes")
        self.size = size
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The numbers an engine obeys."""

    socketio: SocketIOLimits = field(default_factory=SocketIOLimits)
    session: Limits = field(default_factory=Limits)
    """Its keepalive is the server's ping interval and timeout."""
    handshake_timeout: float = 10.0
    way: WayOut = field(default_factory=WayOut)
    """How a client gets to its server."""


class Outgoing:
    """Packets on their way to the peer, in their order, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._packets: deque[EnginePacket] = deque()
        self._size = 0
        self._changed = trio.Event()
        self._putting = trio.StrictFIFOLock()
        self._closed: str | None = None

    async def put(self, packets: Sequence[EnginePacket]) -> None:
        """Queue packets together. Waits while the queue is over its limit. Raises EngineOver."""
        async with self._putting:
            await trio.lowlevel.checkpoint()
            while self._size >= self._limit and self._closed is None:
                await self._changed.wait()  # a peer that takes nothing is ended by its pings
            if self._closed is not None:
                raise EngineOver(self._closed)
            self._extend(packets)

    def put_soon(self, packet: EnginePacket) -> None:
        """Queue a packet of a few bytes despite the limit; callers bound how many there are."""
        self._extend([packet])

    async def take(self, budget: int, *, polling: bool) -> list[EnginePacket]:
        """At least one packet, and as many as fit `budget` bytes on the wire; none at the end."""
        while not self._packets and self._closed is None:
            await self._changed.wait()  # until the next ping at the latest
        return self.take_now(budget, polling=polling)

    def take_now(self, budget: int, *, polling: bool) -> list[EnginePacket]:
        """The packets that can be taken without waiting; there may be none."""
        taken: list[EnginePacket] = []
        while self._packets:
            budget -= encoded_size(self._packets[0], polling=polling)
            if taken and budget < 0:
                break
            packet = self._packets.popleft()
            self._size -= encoded_size(packet, polling=False)
            taken.append(packet)
        if taken:
            self._notify()
        return taken

    async def drained(self, timeout: float) -> None:
        """Return when the queue is empty, or after `timeout` seconds."""
        with trio.move_on_after(timeout):
            while self._packets:
                await self._changed.wait()

    def close(self, reason: str) -> None:
        """Accept no more packets; those in the queue can still be taken."""
        self._closed = reason
        self._notify()

    def _extend(self, packets: Iterable[EnginePacket]) -> None:
        for packet in packets:
            self._packets.append(packet)
            self._size += encoded_size(packet, polling=False)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Engine:
    """One Engine.IO connection, for the layer above: it sends and receives messages.

    The transports are in `engine_client` and `engine_server`; they take packets from `outgoing` and
    give those that came to `take_in`.
    """

    def __init__(self, settings: EngineSettings, codec: Codec, *, is_client: bool) -> None:
        self.settings = settings
        self.codec = codec
        """The version of Engine.IO, which decides how packets are encoded."""
        self.sid = ""
        self.peer_max_payload = DEFAULT_MAX_PAYLOAD
        """Bytes the peer takes in one message or polling body."""
        self.outgoing = Outgoing(settings.socketio.socketio_send_queue)
        self.heard = trio.current_time()
        """When the last packet came."""
        self.scope = trio.CancelScope(shield=is_client)
        """The scope of all tasks of this connection; `end` cancels it. A client's tasks go on while
        its user is being cancelled, so that they can send the CLOSE packet; `end` follows soon."""
        self.reason = ""
        """How it ended."""
        self.failure: Exception | None = None
        """The error of the transport that ended it, if one did."""
        self._answers_pings = is_client is not codec.client_pings
        self._over = trio.Event()
        self._put, self._messages = trio.open_memory_channel[str | bytes](0)
        self._ping_queued = False
        self._pong_queued = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def end(self, reason: str, *, failure: Exception | None = None) -> None:
        """End the connection; the first reason counts. Wakes all tasks that wait for it."""
        if not self._over.is_set():
            self.reason, self.failure = reason, failure
            self._over.set()
            self._put.close()
            self.outgoing.close(reason)
            self.scope.cancel(reason="the Engine.IO connection is over")

    async def wait_over(self) -> None:
        """Return when the connection has ended."""
        await self._over.wait()

    # -- for the layer above ----------------------------------------------------------------

    async def send(self, messages: Sequence[str | bytes]) -> None:
        """Queue the messages of one Socket.IO packet; they stay together.

        Waits while the peer does not read. Raises EngineOver, and MessageTooLarge when the peer
        would not take them.
        """
        packets = [EnginePacket(MESSAGE, message) for message in messages]
        size = max(encoded_size(packet, polling=True) for packet in packets)
        if size > self.peer_max_payload:
            raise MessageTooLarge(size, self.peer_max_payload)
        await self.outgoing.put(packets)

    async def receive(self) -> str | bytes:
        """The next message. Raises EngineOver."""
        try:
            return await self._messages.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise EngineOver(self.reason) from None

    def stop_receiving(self) -> None:
        """Drop messages that come from now on, so that they do not hold up other packets."""
        self._messages.close()

    # -- for the transports -----------------------------------------------------------------

    async def take_in(self, packet: EnginePacket) -> None:
        """Handle one packet of the peer. Waits until the layer above has taken a message.

        Raises EngineOver when the connection has ended, also by this packet; and BadPacket.
        """
        if self.is_over:
            raise EngineOver(self.reason)
        self.heard = trio.current_time()
        kind, data = packet
        if kind == MESSAGE:
            assert not isinstance(data, dict)
            try:
                await self._put.send(data)
            except trio.BrokenResourceError:
                pass  # stop_receiving was called
            except trio.ClosedResourceError:
                raise EngineOver(self.reason) from None
            self.heard = trio.current_time()
        elif kind == PING and self._answers_pings:
            # However often the peer pings, at most one answer waits in the queue.
            if not self._pong_queued:
                self._pong_queued = True
                self.outgoing.put_soon(EnginePacket(PONG))
        elif kind == CLOSE:
            self.end("the peer closed it")
            raise EngineOver(self.reason)
        elif kind not in (NOOP, PONG):
            raise BadPacket("it has no place in an open connection")

    def ping(self) -> None:
        """Queue a ping. However often this side wants to, at most one waits in the queue."""
        if not self._ping_queued:
            self._ping_queued = True
            self.outgoing.put_soon(EnginePacket(PING))

    def sent(self, packets: Iterable[EnginePacket]) -> None:
        """Note that the transport has sent these packets."""
        for packet in packets:
            if packet.kind == PONG:
                self._pong_queued = False
            elif packet.kind == PING:
                self._ping_queued = False
