"""The CONNECT preamble: how a tunnel stream becomes a raw connection to a service.

The opener writes a CONNECT head and may send payload right behind it: the answer is awaited only
where the first byte in the other direction is. So a TCP service costs no added round trip.
"""

from __future__ import annotations

import contextlib
import re
import socket
from typing import NoReturn

import msgspec
import trio

from tunnelmux.errors import TunnelmuxError
from tunnelmux.http.body import BadBody
from tunnelmux.http.connection import ClientConnection, ServerConnection, UpstreamGone
from tunnelmux.http.head import Field, RequestHead, ResponseHead, first_value
from tunnelmux.http.refusal import PROBLEM_TYPE
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.transports.tcp import take_socket
from tunnelmux.wire import REASON_FIELD

__all__ = ["ConnectFailed", "ConnectStream", "accept_connect", "open_connect", "requested_service"]

_MESSAGE_BYTES = 4096
# Bytes of a refusal that are read: more than any sentence, even escaped in JSON.

CONNECT_ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"
"""The exact bytes that `accept_connect` sends; the pump, which parses no heads here, compares with
them.
"""

_PLAIN_CONNECT = re.compile(rb"CONNECT ([a-z0-9-]{1,63}) HTTP/1\.1\r\nHost: \1\r\n\r\n")


class ConnectFailed(TunnelmuxError):
    """A CONNECT was not answered with 2xx.

    `status` is the answer's, or None when there was none; `reason` its Tunnelmux-Reason, or None.
    """

    def __init__(self, message: str, *, status: int | None = None, reason: str | None = None):
        super().__init__(message)
        self.status = status
        self.reason = reason


class ConnectStream(trio.abc.HalfCloseableStream):
    """A stream after its CONNECT: it carries the service's bytes. When the CONNECT was refused,
    receiving raises BrokenResourceError with the ConnectFailed as its cause, and the stream is
    reset.
    """

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, limits: IngressLimits, answer_timeout: float
    ) -> None:
        self.stream = stream
        self._client = ClientConnection(stream, limits)
        self._answer_timeout = answer_timeout
        self._answered = False
        self._early = b""

    async def wait_answer(self) -> None:
        """Wait until the other side has agreed. Raises ConnectFailed when it does not.

        Not needed before sending or receiving. Not to be called while another task receives.
        """
        if self._answered:
            return
        head = None
        try:
            with trio.move_on_after(self._answer_timeout):
                while (head := await self._client.read_head()).is_interim:
                    pass
        except UpstreamGone as exc:
            await self._fail(str(exc), None)
        if head is None or head.is_interim:
            await self._fail(f"no answer within {self._answer_timeout:g} s", None)
        if not 200 <= head.status < 300:
            await self._fail(_told(head, await self._read_message()), head)
        self._answered = True
        self._early = self._client.take_buffer()

    @property
    def has_early(self) -> bool:
        """Whether bytes of the service came with the answer and were not received yet."""
        return bool(self._early)

    async def _read_message(self) -> bytes:
        with (
            trio.move_on_after(self._answer_timeout),
            contextlib.suppress(UpstreamGone, BadBody),
        ):
            return await self._client.read_body_start(_MESSAGE_BYTES)
        return b""

    async def _fail(self, message: str, head: ResponseHead | None) -> NoReturn:
        await abort(self.stream)
        status = reason = None
        if head is not None:
            status = head.status
            value = first_value(head.headers, REASON_FIELD.lower())
            reason = value.decode("latin-1") if value else None
        raise ConnectFailed(message or f"refused with {status}", status=status, reason=reason)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            await self.wait_answer()
        except ConnectFailed as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
        if self._early:
            cut = len(self._early) if max_bytes is None else max_bytes
            data, self._early = self._early[:cut], self._early[cut:]
            await trio.lowlevel.checkpoint()
            return data
        return await self.stream.receive_some(max_bytes)

    def take_socket(self) -> tuple[socket.socket, bytes] | None:
        """See `transports.tcp.take_socket`; only after `wait_answer`."""
        taken = take_socket(self.stream)
        if taken is None:
            return None
        sock, below = taken
        early, self._early = self._early, b""
        return sock, early + below

    async def aclose(self) -> None:
        await self.stream.aclose()

    def reset(self) -> None:
        """Cut the connection: the service sees a reset."""
        self._early = b""
        reset = getattr(self.stream, "reset", None)
        if reset is not None:
            reset()


def _told(head: ResponseHead, body: bytes) -> str:
    """The message of a refusal: the `detail` of a problem document, or the plain text."""
    kind = first_value(head.headers, b"content-type") or b""
    if kind.partition(b";")[0].strip().lower() == PROBLEM_TYPE:
        with contextlib.suppress(BadJson):
            return read_json(body, _Problem).detail.strip()
    return body.decode("utf-8", "replace").strip()


class _Problem(msgspec.Struct):
    """The members of a problem document (RFC 9457) that are read."""

    detail: str = ""


async def open_connect(
    stream: trio.abc.HalfCloseableStream,
    service: str,
    limits: IngressLimits,
    *,
    answer_timeout: float,
    headers: list[Field] | None = None,
) -> ConnectStream:
    """Ask on `stream` for `service` (a name, or host:port), without awaiting the answer.

    `answer_timeout` is in seconds and starts with the first wait for an answer. Raises
    UpstreamGone when the stream is broken already.
    """
    name = service.encode("ascii")
    connection = ConnectStream(stream, limits, answer_timeout)
    await connection._client.send_request(  # noqa: SLF001 - the two are one
        b"CONNECT", name, [(b"Host", name), *(headers or [])]
    )
    return connection


def connect_head(service: str, traceparent: bytes = b"") -> bytes:
    """What `open_connect` sends for a service's name; with a *traceparent*, for an agent that makes
    spans."""
    name = service.encode("ascii")
    seen = b"Traceparent: %s\r\n" % traceparent if traceparent else b""
    return b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (name, name, seen)


def plain_connect(data: bytes) -> tuple[str, int] | None:
    """The service that `data` asks for and the size of the head, when it begins with exactly what
    `connect_head` makes; None for everything that has to be read with more care."""
    match = _PLAIN_CONNECT.match(data)
    return (match[1].decode("ascii"), match.end()) if match is not None else None


def requested_service(request: RequestHead) -> str:
    """The service name, or host:port, that a CONNECT request asks for."""
    return request.target.decode("ascii")


async def accept_connect(server: ServerConnection) -> bytes:
    """Agree to a CONNECT: from here on the stream is raw. Answers the payload received already.

    Raises VisitorGone. To refuse, use `server.send_refusal` and `server.close`.
    """
    await server.send_switch(200, b"OK", [])  # CONNECT_ANSWER
    return server.take_buffer()
