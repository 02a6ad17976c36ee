"""Messages and descriptors between a proxy's parent and one of its workers.

It is one Unix stream socket, which the worker inherits. Each side can call the other and gets an
answer, or send a message without one. Descriptors travel with their message (SCM_RIGHTS, unix(7)).
Messages arrive in the order in which they were sent.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from tunnelmux.errors import ConfigError, TunnelmuxError
from tunnelmux.observability import RepeatedLines, get_logger

__all__ = ["Link", "LinkLost", "LinkOwner", "Reply", "close_all"]

_log = get_logger("proxy.workers")

_HEADER = struct.Struct("<IBBHI")
# Bytes of the body, kind, descriptors, bytes of the name, number of the call.

_CALL, _ANSWER, _PROBLEM, _TELL = range(4)

_FIX = "raise LimitNOFILE (ulimit -n)"

_READ_SIZE = 65_536

_MOST_DESCRIPTORS = 64
# Descriptors with one message: enough for a listener that is bound to all addresses of a name.

_LARGEST_MESSAGE = 16 * 1024 * 1024
# Bytes of a body: the events that are kept, at most.

_MOST_WAITING = 64 * 1024 * 1024
# Bytes that wait for the other side. With more, it is stopped or hangs, and is given up.


class LinkLost(TunnelmuxError):
    """The other process has ended, or no longer reads."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a call. The caller has to close the descriptors."""

    body: bytes = b""
    descriptors: Sequence[int] = field(default=())


class LinkOwner(Protocol):
    """Handles the messages that come. It has to close the descriptors that come."""

    async def answer(self, what: str, body: bytes) -> Reply:
        """Answer a call; a ConfigError is raised where it was called. The reply's descriptors are
        closed when they are sent."""

    def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:
        """Handle a message."""


class Link:
    """One end of the link. `run` does the work, until the other end is gone."""

    def __init__(self, connected: socket.socket, owner: LinkOwner) -> None:
        connected.setblocking(False)
        self._socket = trio.socket.from_stdlib_socket(connected)
        self._owner = owner
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Waiting] = {}
        self._waiting: deque[tuple[bytes, Sequence[int]]] = deque()
        self._waiting_bytes = 0
        self._work = trio.Event()
        self._sent = trio.Event()
        self._descriptors: deque[list[int]] = deque()  # those of each message that had some
        self._is_lost = False
        self._missing = RepeatedLines("descriptors lost")

    async def run(self) -> None:
        """Carry messages until the other end is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all, nursery.cancel_scope)
                await self._receive_all(nursery)
                nursery.cancel_scope.cancel(reason="the other process is gone")
        finally:
            self._lose()

    async def call(self, what: str, body: bytes = b"") -> Reply:
        """Call the other side and return its answer; raises its ConfigError, and LinkLost. The
        caller bounds the wait."""
        number = next(self._numbers)
        waiting = self._calls[number] = _Waiting()
        try:
            self._queue(_CALL, what, number, body, ())
            await waiting.answered.wait()
        except BaseException:
            if waiting.reply is not None:
                close_all(waiting.reply.descriptors)
            raise
        finally:
            self._calls.pop(number, None)
        return waiting.take()

    def tell(self, what: str, body: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send a message as soon as possible; the link will close the descriptors. Raises
        LinkLost."""
        self._queue(_TELL, what, 0, body, descriptors)

    async def flush(self) -> None:
        """Return when all that was said is on its way, or the link is lost."""
        while not self._is_lost and (self._waiting or self._waiting_bytes):
            await self._sent.wait()  # no deadline: who does not read any more is given up

    def _queue(
        self, kind: int, what: str, number: int, body: bytes, descriptors: Sequence[int]
    ) -> None:
        if self._is_lost or self._waiting_bytes > _MOST_WAITING:
            close_all(descriptors)
            self._is_lost = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            raise LinkLost("the other process does not read, or has ended")
        name = what.encode("ascii")
        head = _HEADER.pack(len(body), kind, len(descriptors), len(name), number)
        message = head + name + body
        self._waiting.append((message, descriptors))
        self._waiting_bytes += len(message)
        self._work.set()

    async def _send_all(self, scope: trio.CancelScope) -> None:
        try:
            while True:  # until the link is lost
                await self._work.wait()
                self._work = trio.Event()
                while self._waiting:
                    message, descriptors = self._waiting.popleft()
                    try:
                        await self._send(message, descriptors)
                    finally:
                        self._waiting_bytes -= len(message)
                        close_all(descriptors)
                self._sent.set()
                self._sent = trio.Event()
        except OSError:
            scope.cancel(reason="the other process is gone")

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        rest = memoryview(message)
        if descriptors:
            rights = array.array("i", descriptors)
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            rest = rest[await self._socket.sendmsg([rest], passed) :]
        while rest:
            rest = rest[await self._socket.send(rest) :]

    async def _receive_all(self, nursery: trio.Nursery) -> None:
        space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
        data = bytearray()
        while True:
            try:
                more, passed, flags, _ = await self._socket.recvmsg(
                    _READ_SIZE, space, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                continue  # it stands in front of what was sent before it
            except OSError:
                return
            if not more:
                return
            came: list[int] = []
            for level, kind, rights in passed:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    came.extend(array.array("i", rights[: len(rights) // 4 * 4]))
            # The system ends a read behind the message whose descriptors it brings.
            if came or flags & socket.MSG_CTRUNC:
                self._descriptors.append(came)
            data += more
            self._take_messages(data, nursery)

    def _take_messages(self, data: bytearray, nursery: trio.Nursery) -> None:
        start = 0
        while len(data) - start >= _HEADER.size:
            size, kind, descriptors, named, number = _HEADER.unpack_from(data, start)
            if size > _LARGEST_MESSAGE:
                raise LinkLost(f"a message of {size} bytes")
            body = start + _HEADER.size + named
            if len(data) < body + size:
                break
            what = data[start + _HEADER.size : body].decode("ascii")
            start = body + size
            passed = self._descriptors.popleft() if descriptors else []
            if len(passed) == descriptors:
                self._take(kind, what, number, bytes(data[body:start]), passed, nursery)
            else:
                close_all(passed)
                self._miss(kind, what, number, descriptors - len(passed))
        del data[:start]

    def _miss(self, kind: int, what: str, number: int, count: int) -> None:
        """Leave out a message some of whose descriptors the system closed: no more fit in."""
        if self._missing.may_write(what):
            _log.warning("descriptors lost", what=what, count=count, fix=_FIX)
        if kind == _ANSWER and (waiting := self._calls.get(number)) is not None:
            waiting.problem = ConfigError(f"this process may open no more files: {_FIX}")
            waiting.answered.set()

    def _take(
        self,
        kind: int,
        what: str,
        number: int,
        body: bytes,
        passed: list[int],
        nursery: trio.Nursery,
    ) -> None:
        if kind == _CALL:
            nursery.start_soon(self._answer, what, number, body)
        elif kind == _TELL:
            try:
                self._owner.hear(what, body, passed)
            except Exception:  # noqa: BLE001  a bug met by one message must not end the others
                _log.exception("unhandled error in message", what=what)
        elif (waiting := self._calls.get(number)) is not None:
            if kind == _PROBLEM:
                waiting.problem = ConfigError(body.decode())
            else:
                waiting.reply = Reply(body, passed)
            waiting.answered.set()
        else:
            close_all(passed)  # the caller has given up

    async def _answer(self, what: str, number: int, body: bytes) -> None:
        with contextlib.suppress(LinkLost):
            try:
                reply = await self._owner.answer(what, body)
            except ConfigError as problem:
                self._queue(_PROBLEM, "", number, str(problem).encode(), ())
            else:
                self._queue(_ANSWER, "", number, reply.body, reply.descriptors)

    def _lose(self) -> None:
        self._is_lost = True
        self._sent.set()
        self._socket.close()
        for waiting in self._calls.values():
            waiting.answered.set()
        for _, descriptors in self._waiting:
            close_all(descriptors)
        self._waiting.clear()
        for passed in self._descriptors:
            close_all(passed)
        self._descriptors.clear()


@dataclass(slots=True)
class _Waiting:
    """A call whose answer is still to come."""

    answered: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None
    problem: ConfigError | None = None

    def take(self) -> Reply:
        if self.problem is not None:
            raise self.problem
        if self.reply is None:
            raise LinkLost("the other process has ended")
        return self.reply


def close_all(descriptors: Sequence[int]) -> None:
    """Close them."""
    for descriptor in descriptors:
        os.close(descriptor)
