"""Calls of one worker's internal API to the other workers."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from tunnelmux.errors import ConnectError, TunnelmuxError
from tunnelmux.http import Field, UpstreamGone
from tunnelmux.http.body import BadBody
from tunnelmux.http.connection import ClientConnection
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.internal.answers import Answer
from tunnelmux.proxy.workers.link import LinkLost
from tunnelmux.proxy.workers.worker import Worker
from tunnelmux.relay import abort

__all__ = ["Siblings"]

_log = get_logger("proxy.workers")

_ANSWER_TIMEOUT = 5.0
# Seconds for another worker to answer: a stopped worker must not delay the answers of the others.


class Siblings:
    """Calls each worker over a separate connection. The parent makes it, so that it needs no
    authentication."""

    def __init__(self, worker: Worker, limits: IngressLimits) -> None:
        self.names = worker.others
        self._worker = worker
        self._limits = limits

    async def ask_all(self, method: bytes, target: bytes, body: bytes = b"") -> list[Answer]:
        """The answers of all that answer, in no order."""
        answers: list[Answer] = []

        async def ask(name: str) -> None:
            try:
                with trio.fail_after(_ANSWER_TIMEOUT):
                    answers.append(await self._ask(name, method, target, body))
            except (TunnelmuxError, trio.TooSlowError) as error:
                cause = str(error) or f"no answer within {_ANSWER_TIMEOUT:g} s"
                _log.warning("worker does not answer", worker=name, cause=cause)

        async with trio.open_nursery() as nursery:
            for name in self.names:
                nursery.start_soon(ask, name)
        return answers

    async def _ask(self, name: str, method: bytes, target: bytes, body: bytes) -> Answer:
        async with self.exchange(name, method, target, body) as client:
            head = await client.read_head()
            # No limit: it is what this program itself answers.
            content = await client.read_whole_body(sys.maxsize)
            fields = {key.lower(): value for key, value in head.headers}
            kind = fields.get(b"content-type", b"")
            return Answer(content, head.status, content_type=kind)

    @asynccontextmanager
    async def stream(self, name: str, target: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """The content of one worker's answer, as it comes. Raises ConnectError."""
        async with self.exchange(name, b"GET", target) as client:
            with trio.move_on_after(_ANSWER_TIMEOUT) as waiting:
                await client.read_head()
            if waiting.cancelled_caught:
                raise ConnectError(f"{name} gave no answer in time")
            yield _content(client, name)

    def tell_figures(self, text: bytes) -> None:
        """Send the parent this worker's metrics, as they were last shown."""
        self._worker.tell_figures(text)

    async def ended_figures(self) -> bytes:
        """The counters of workers that have ended, as metrics; none while the parent is silent."""
        with trio.move_on_after(_ANSWER_TIMEOUT):
            return await self._worker.ended_figures()
        return b""

    async def socketio_at(self) -> str:
        """The name of the other worker that has the agents by Socket.IO; empty where it is this
        one, or none."""
        with trio.move_on_after(_ANSWER_TIMEOUT), suppress(LinkLost):
            found = await self._worker.socketio_at()
            return found if found in self.names else ""
        return ""

    @asynccontextmanager
    async def exchange(
        self,
        name: str,
        method: bytes,
        target: bytes,
        body: bytes = b"",
        fields: Sequence[Field] = (),
    ) -> AsyncIterator[ClientConnection]:
        """A call of that worker, whose answer is to be read. Raises ConnectError."""
        connected = await self._worker.reach(name, "internal")
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        try:
            client = ClientConnection(stream, self._limits)
            headers = [(b"Host", name.encode("ascii")), (b"Connection", b"close"), *fields]
            if method != b"GET":
                headers.append((b"Content-Length", b"%d" % len(body)))
            await client.send_request(method, target, headers, first=body, end=True)
            yield client
        except BadBody as error:
            raise ConnectError(f"{name} ended within its answer: {error}") from error
        finally:
            await abort(stream)


async def _content(client: ClientConnection, name: str) -> AsyncIterator[bytes]:
    is_over = False
    while not is_over:
        try:
            data, is_over = await client.read_body()
        except (BadBody, UpstreamGone) as error:
            raise ConnectError(f"{name} ended within its answer: {error}") from error
        if data:
            yield data
