"""The pump on Trio: one task that moves the bytes of all sessions and relays of a process.

`open_pump` owns that task. A `Session` that is given the pump lends it its socket and still makes
every decision. Where the pump cannot carry a transport (memory, a platform without epoll), the
session uses Trio streams as if there were no pump.
"""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import trio

from tunnelmux.observability import get_logger
from tunnelmux.observability.lines import time_of_day, write_lines
from tunnelmux.observability.logs import holding_lines, wants_info, write_held

if TYPE_CHECKING:
    import socket
    import ssl
    from ssl import MemoryBIO, SSLObject

    from tunnelmux.pump.epoll import Member, Pump
    from tunnelmux.pump.sockets import Acceptor
    from tunnelmux.pump.tunnel import PumpedEngine, Tunnel
    from tunnelmux.pump.websocket import FrameReader
    from tunnelmux.yamux.engine import Engine

__all__ = [
    "ControlSender",
    "DataPump",
    "Lender",
    "Lent",
    "Owner",
    "lend",
    "lend_socket",
    "open_pump",
    "tls_stream",
    "watch_records",
]

_log = get_logger("pump")

_MOMENT = 0.003
# Seconds before a deadline in which the pump does not linger: a little more than it may take.

_NEWS_PORTION = 0.002
# Seconds for which owners are called before the other tasks get their turn: one may do a handshake.

_RECORDS = 8_192
# Bytes of records of TLS that a task decrypts before other tasks run.

_LINES_DELAY = 0.02
# Seconds for which log lines are gathered: a write for each batch would cost as much as the lines.

_LEAVE_LOOK = 0.05
# Seconds between checks of the connections that are reset once their peers have what was sent.

_LEAVE_PATIENCE = 5.0
# Seconds that such a connection gets.

_MOST_LINES = 65_536
# Bytes of lines after which they are written at once.


@dataclass(frozen=True, slots=True)
class Lent:
    """A tunnel's socket, in the hands of the pump until it is given back."""

    socket: trio.socket.SocketType
    frames: FrameReader | None = None
    """Reads the WebSocket frames on it; None when its bytes are the payload."""
    masks: bool = False
    """Whether what is sent must be masked: on the side that dialled."""
    tls: tuple[SSLObject, MemoryBIO, MemoryBIO] | None = None
    """The TLS object that encrypts all of it, and the two BIOs that it reads from and writes to."""
    early: bytes = b""
    """Payload that was read before the socket was lent."""
    on_lent: Callable[[ControlSender], None] | None = None
    """Called with the object that sends control frames from now on."""
    on_control: Callable[[], None] | None = None
    """Called when `frames` holds control frames for the WebSocket library."""
    give_back: Callable[[bool], None] | None = None
    """Called at the end; True when part of a message was sent and the rest will not be."""


class ControlSender(Protocol):
    """Sends control frames between the messages of a lent socket."""

    @property
    def controls_waiting(self) -> int:
        """How many of them have not been given to the socket yet."""

    def queue_control(self, frame: bytes) -> None:
        """Send this frame behind the message that is being sent."""

    def withdraw(self) -> None:
        """Let go of the socket now: it is about to be closed."""


class Owner(Protocol):
    """The owner of a tunnel or a relay in the pump."""

    def on_news(self) -> None:
        """Called after a batch in which something happened that Python has to see."""


@runtime_checkable
class Lender(Protocol):
    """A transport that can let the pump have its socket."""

    async def lend(self) -> Lent | None:
        """Stop reading and writing until it is given back; None when there is no socket to lend."""


def lend_socket(transport: trio.abc.Stream) -> Lent | None:
    """The socket of a plain TCP stream, or of TLS on one; None when there is none to lend."""
    if isinstance(transport, trio.SocketStream):
        return Lent(transport.socket)
    if not isinstance(transport, trio.SSLStream):
        return None
    below = transport.transport_stream
    # Trio has no public names for these. If they change, TLS uses Trio streams again, and a test
    # fails.
    names = ("_ssl_object", "_incoming", "_outgoing")
    parts = tuple(getattr(transport, name, None) for name in names)
    if not isinstance(below, trio.SocketStream) or None in parts:
        return None
    # Trio holds a server's first session tickets back until its first write: send them before it.
    if (held_back := getattr(transport, "_delayed_outgoing", None)) is not None:
        parts[2].write(held_back)  # type: ignore[union-attr]  # checked above
        setattr(transport, "_delayed_outgoing", None)  # noqa: B010  it has no public name
    return Lent(below.socket, tls=cast("tuple[SSLObject, MemoryBIO, MemoryBIO]", parts))


async def tls_stream(
    below: trio.SocketStream, tls: tuple[SSLObject, MemoryBIO, MemoryBIO]
) -> trio.SSLStream[trio.SocketStream]:
    """The opposite of `lend_socket`: a Trio stream on a server's TLS whose handshake is done."""
    made, incoming, outgoing = tls
    stream = trio.SSLStream(
        below,
        cast("ssl.SSLContext", _Made(made)),
        server_side=True,
        https_compatible=True,
    )
    for name, part in (("_incoming", incoming), ("_outgoing", outgoing)):
        assert hasattr(stream, name)
        setattr(stream, name, part)
    watch_records(stream)
    # The handshake is done, but Trio has to notice. It does so in the stream's first use, and when
    # that is cancelled the stream is broken.
    await stream.do_handshake()
    return stream


def watch_records(tls: trio.SSLStream[Any]) -> None:
    """Have reading from it fail when its peer sends records without data, without end. To be called
    before the handshake, or with TLS that was in the pump."""
    made = getattr(tls, "_ssl_object", None)  # as in lend_socket
    if made is not None:
        _Watched(tls, made)
    once = getattr(tls, "_handshook", None)
    if (handshake := getattr(once, "_afn", None)) is not None:
        setattr(once, "_afn", _weakly(handshake))  # noqa: B010  it has no public name


def _weakly(method: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """The same without a reference to the object, which has it: a cycle would keep the memory of a
    connection until the collector finds it."""
    found = weakref.WeakMethod(method)

    async def call() -> None:
        bound = found()
        assert bound is not None  # its caller has the object
        await bound()

    return call


class _Watched:
    """Watches what a Trio stream decrypts, as `PumpSocket` does itself."""

    def __init__(self, tls: trio.SSLStream[Any], made: SSLObject) -> None:
        from tunnelmux.pump.tls_records import watch_for

        below = tls.transport_stream
        self._made = made
        self._watch = watch_for(made)
        # Both streams have this object: with references to them, they would be in cycles, and their
        # memory would wait for the collector.
        self._tls, self._below = weakref.ref(tls), weakref.ref(below)
        self._receive_records = vars(below).get("receive_some")
        # Trio's streams cannot be derived from.
        setattr(below, "receive_some", self._some_records)  # noqa: B010
        setattr(tls, "receive_some", self._some_data)  # noqa: B010

    async def _some_records(self, max_bytes: int | None = None) -> bytes | bytearray:
        # All that came is decrypted: TLS wants more.
        if not self._watch.judge(self._made):
            raise trio.BrokenResourceError("the peer sent records of TLS without data")
        size = min(max_bytes or _RECORDS, _RECORDS)
        below = self._below()
        assert below is not None  # its caller has it
        if self._receive_records is not None:
            records: bytes | bytearray = await self._receive_records(size)
        else:
            records = await type(below).receive_some(below, size)
        self._watch.add(records)
        return records

    async def _some_data(self, max_bytes: int | None = None) -> bytes | bytearray:
        is_new = not self._made.pending()
        tls = self._tls()
        assert tls is not None
        data: bytes | bytearray = await trio.SSLStream.receive_some(tls, max_bytes)
        self._watch.add_data(len(data), is_new=is_new and len(data) > 0)
        return data


class _Made:
    """In the place of an `SSLContext`: gives Trio the TLS object that exists already."""

    def __init__(self, made: SSLObject) -> None:
        self._made = made

    def wrap_bio(self, *_: object, **__: object) -> SSLObject:
        return self._made


async def lend(transport: trio.abc.Stream) -> Lent | None:
    """The socket below `transport`, for a pump; None when it has none of its own."""
    if isinstance(transport, trio.SocketStream | trio.SSLStream):
        lent = lend_socket(transport)
    elif isinstance(transport, Lender):
        lent = await transport.lend()
    else:
        lent = None
    if lent is not None and lent.socket.fileno() < 0:  # closed meanwhile
        if lent.give_back is not None:
            lent.give_back(False)
        return None
    return lent


class DataPump:
    """Moves bytes while its task runs. Made by `open_pump`."""

    def __init__(self, core: Pump) -> None:
        from tunnelmux.pump.lines import LineBuffer

        self.core = core
        self._lines = core.lines = LineBuffer(time_of_day)
        self.on_lines: Callable[[bytes], None] | None = None
        """Also gets the lines about requests, even when the log's level leaves them out."""
        self._has_lines = trio.Event()
        self._has_leaving = trio.Event()
        self._news: deque[Member] = deque()

    def new_engine(self, **settings: Any) -> PumpedEngine:
        """An engine whose streams this pump can relay; settings as for `Engine`."""
        from tunnelmux.pump.tunnel import PumpedEngine

        return PumpedEngine(**settings)

    def new_tunnel(self, engine: Engine, lent: Lent, owner: Owner) -> Tunnel:
        """Carry an engine that `new_engine` made on the lent socket until `Tunnel.detach`."""
        from tunnelmux.pump.pump_socket import PumpSocket
        from tunnelmux.pump.tunnel import PumpedEngine, Tunnel

        assert isinstance(engine, PumpedEngine)  # it came from new_engine
        wire = PumpSocket(lent.socket, lent.tls)
        return Tunnel(self.core, engine, wire, lent.frames, lent.masks, owner)

    def new_acceptor(self, listening: socket.socket, owner: Owner) -> Acceptor:
        """Watch a listening socket that does not block until `Acceptor.stop`."""
        from tunnelmux.pump.sockets import Acceptor

        return Acceptor(self.core, listening.fileno(), owner)

    async def run(self) -> None:
        """Pump until cancelled; then every relay is cut and every tunnel lost."""
        core = self.core
        try:
            while True:
                # No deadline: it wakes when a socket or a task has something for it.
                await trio.lowlevel.wait_readable(core.fileno())
                self._batch(linger=_is_alone())
                while core.is_busy or self._news:
                    await trio.lowlevel.checkpoint()
                    self._batch()
        finally:
            core.close()
            self._batch()
            while self._news:
                self._tell_some()
            self._write_lines()

    async def write_lines(self) -> None:
        """Write the relays' log lines about requests and connections, 20 ms later and together.
        Runs until cancelled."""
        with holding_lines(self._note_lines):
            while True:
                await self._has_lines.wait()
                await trio.sleep(_LINES_DELAY)
                self._has_lines = trio.Event()
                self._write_lines()

    async def finish_resets(self) -> None:
        """Reset the connections that end so, each once its peer took what was sent before.
        Runs until cancelled; then it resets the rest at once."""
        try:
            while True:
                # No deadline: it waits for the first such connection.
                await self._has_leaving.wait()
                while self.core.leaving_count:
                    await trio.sleep(_LEAVE_LOOK)
                    self.core.close_left(trio.current_time(), _LEAVE_PATIENCE)
                self._has_leaving = trio.Event()
        finally:
            self.core.close_left(math.inf, 0)

    def _note_lines(self) -> None:
        self._has_lines.set()

    def _write_lines(self) -> None:
        write_held()
        doubtful = self._lines.doubtful
        if lines := self._lines.take():
            if self.on_lines is not None:
                self.on_lines(lines)
            if wants_info():
                write_lines(lines, doubtful=doubtful)

    def _batch(self, *, linger: bool = False) -> None:
        news = self.core.batch(trio.current_time(), linger)
        if len(self._lines):
            self._has_lines.set()
            if len(self._lines) > _MOST_LINES:
                self._write_lines()
        if self.core.leaving_count:
            self._has_leaving.set()
        self._news.extend(news)
        self._tell_some()

    def _tell_some(self) -> None:
        until = time.perf_counter() + _NEWS_PORTION
        while self._news:
            self._tell(self._news.popleft())
            if time.perf_counter() > until:
                break

    def _tell(self, member: Member) -> None:
        try:
            member.owner.on_news()
        except Exception:  # noqa: BLE001  a bug met by one session or relay must not end the others
            _log.exception("unhandled error in the pump", effect="the others go on")


def _is_alone() -> bool:
    """Whether no other task is about to run, nor a deadline about to pass."""
    statistics = trio.lowlevel.current_statistics()
    return statistics.tasks_runnable == 0 and statistics.seconds_to_next_deadline > _MOMENT


@asynccontextmanager
async def open_pump() -> AsyncIterator[DataPump | None]:
    """A pump for the length of the block; None on a platform that has no epoll."""
    if sys.platform != "linux":
        yield None
        return
    from tunnelmux.pump.epoll import Pump, trim_heap

    trim_heap()  # imports leave half a megabyte behind, and a daemon imports little from now on
    pump = DataPump(Pump())
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        nursery.start_soon(pump.write_lines)
        nursery.start_soon(pump.finish_resets)
        try:
            yield pump
        except Exception as exc:  # noqa: BLE001  raised below, where no nursery wraps it in a group
            failure = exc
        finally:
            nursery.cancel_scope.cancel(reason="the pump is no longer used")
    if failure is not None:
        raise failure
