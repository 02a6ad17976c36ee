"""One HTTP/1.1 connection on a Trio stream: heads, bodies and trailers, read and written.

`ServerConnection` faces the sender of requests (a visitor, or the opener of a tunnel stream);
`ClientConnection` faces the answering side (a tunnel stream, or a device's local target). Neither
ever holds more than one head or one read of a body. Failures of the two sides have separate
exceptions: `VisitorGone` and `UpstreamGone`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NoReturn

import trio

from tunnelmux.http.body import (
    BodyDecoder,
    BodyTooLong,
    ChunkedBody,
    LengthBody,
    UntilEndBody,
    encode_chunk,
)
from tunnelmux.http.head import (
    BadHead,
    Field,
    HeadReader,
    RequestHead,
    ResponseHead,
    first_value,
    has_member,
    parse_request,
    parse_response,
    write_request,
    write_response,
)
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.http.unfinished import UnfinishedHeads
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.relay.splice import CLOSE_TIMEOUT, READ_SIZE, RECHECK_INTERVAL
from tunnelmux.transports.tls import send_close_notify

__all__ = ["ClientConnection", "PeerGone", "ServerConnection", "UpstreamGone", "VisitorGone"]

DRAIN_TIMEOUT = 5.0
"""Seconds for which a visitor's further bytes are read and discarded after an early answer. Closing
at once would make the kernel send a reset, and the visitor would lose the answer.
"""

DRAIN_BYTES = 16_777_216
"""Most bytes that are discarded so; a visitor that sends more has had time to read the answer."""


class PeerGone(Exception):
    """The other end of a connection broke it, or ended it where HTTP does not allow that."""


class VisitorGone(PeerGone):
    """The sender of the request is gone and cannot be answered."""


class UpstreamGone(PeerGone):
    """The answering side is gone, or does not speak HTTP. The message says what happened."""


class _Connection:
    """The shared part: a stream, bytes that were read ahead, and the body in either direction."""

    _gone: type[PeerGone] = PeerGone

    def __init__(self, stream: trio.abc.Stream, limits: IngressLimits) -> None:
        self.stream = stream
        self._limits = limits
        self._buffer = b""
        self._ended = False  # the peer sent its EOF
        self._body: BodyDecoder = LengthBody(0)
        self._sends_chunks = False

    @property
    def body_done(self) -> bool:
        """Whether the incoming body was read to its end."""
        return self._body.done

    @property
    def trailers(self) -> list[Field]:
        """The trailer fields of the incoming body, once that is done."""
        return self._body.trailers

    def put_back(self, data: bytes) -> None:
        """Have these bytes read next: they were taken from the stream and not used."""
        self._buffer = data + self._buffer

    def take_buffer(self) -> bytes:
        """Take the bytes read beyond the last message, for a connection that changes its
        protocol.
        """
        data, self._buffer = self._buffer, b""
        return data

    def read_body_nowait(self) -> tuple[bytes, bool]:
        """The content received so far, and whether the body ends with it.

        The content may be empty. Raises BadBody.
        """
        if not self._buffer or self._body.done:
            return b"", self._body.done
        return self._feed(self.take_buffer()), self._body.done

    async def read_body(self) -> tuple[bytes, bool]:
        """The next content, of at most about 64 KiB, and whether the body ends with it.

        The content is empty only at the end.

        Raises BadBody when the body breaks its framing or is cut short, PeerGone when the
        connection broke.
        """
        while not self._body.done:
            # No deadline: an answer may pause for as long as its sender likes (server-sent events),
            # and how long a request's body may, the caller knows (limits.body_stall). A peer that
            # is gone for good is found by TCP keepalive or ping.
            data = self.take_buffer() or await self._receive()
            if not data:
                self._body.feed_eof()
            elif piece := self._feed(data):
                return piece, self._body.done
        return b"", True

    async def read_whole_body(self, most: int) -> bytes:
        """What is left of the body, which is for readers that need all of it at once.

        Raises BodyTooLong, a BadBody, as soon as it has more than `most` bytes, and what
        `read_body` raises. It has no deadline either.
        """
        body = await self._read_until(most + 1)
        if len(body) > most:
            raise BodyTooLong(f"the body is longer than {most} bytes")
        return body

    async def read_body_start(self, most: int) -> bytes:
        """The first `most` bytes of what is left of the body, for a text of which the rest may be
        missing. Raises what `read_body` raises, and has no deadline either.
        """
        return (await self._read_until(most))[:most]

    async def _read_until(self, enough: int) -> bytes:
        body, end = bytearray(), self._body.done
        while not end and len(body) < enough:
            piece, end = await self.read_body()
            body += piece
        return bytes(body)

    async def send_body(
        self, data: bytes, *, end: bool = False, trailers: Sequence[Field] = ()
    ) -> None:
        """Send content of the outgoing body, and with `end` its end, in one write.

        The caller keeps to the length it declared. Trailers go out where the framing has room
        for them, which is in chunked bodies only. Raises PeerGone.
        """
        if out := self._encode(data, end, trailers):
            await self._send(out)

    def _encode(self, data: bytes, end: bool, trailers: Sequence[Field]) -> bytes:
        if not self._sends_chunks:
            return data
        out = encode_chunk(data) if data else b""
        if end:
            lines = b"".join([b"%s: %s\r\n" % pair for pair in trailers])
            out += b"0\r\n%s\r\n" % lines
        return out

    def _chunked_body(self) -> ChunkedBody:
        return ChunkedBody(self._limits.max_head_bytes, self._limits.max_head_fields)

    def _feed(self, data: bytes) -> bytes:
        piece = self._body.feed(data)
        if self._body.done:
            self._buffer = self._body.rest
        return piece

    async def _receive(self) -> bytes:
        if self._ended:
            return b""
        try:
            data = await self.stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._raise_gone(exc)
        self._ended = not data
        return bytes(data)

    async def _send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._raise_gone(exc)

    def _raise_gone(self, exc: Exception) -> NoReturn:
        raise self._gone(str(exc.__cause__ or exc)) from exc


class ServerConnection(_Connection):
    """The side that reads requests and answers them, one after the other.

    Per request: `read_request`, then `read_body` until it is done, and, any time meanwhile,
    `send_interim`, `send_response`, `send_body`. After the answer, `reusable` says whether another
    request may follow; if not, `close` or `abort`.
    """

    _gone = VisitorGone

    def __init__(
        self,
        stream: trio.abc.Stream,
        limits: IngressLimits,
        unfinished: UnfinishedHeads | None = None,
    ) -> None:
        """`unfinished` counts the heads of all connections of one peer, where there are many."""
        super().__init__(stream, limits)
        self._unfinished = unfinished
        self._request: RequestHead | None = None
        self._head_began: float | None = None  # when a head that was put back began
        self._between_requests: trio.CancelScope | None = None
        self._closing = False
        self.raw_head = b""
        """The current request's head as it came."""
        self.is_new = True
        """Whether no request has come yet: then `head_timeout` is the time for its first byte, and
        `idle_timeout` later."""
        self.reusable = False
        """Whether, after the answer now being sent, the next request can be read."""
        self.response_started = False
        """Whether a final response head was sent for the current request."""

    def finish_soon(self) -> None:
        """End the connection after the current request; now, when there is none."""
        self._closing = True
        if self._between_requests is not None:
            self._between_requests.cancel(reason="the server is draining")

    def put_back_request(self, data: bytes, began: float) -> None:
        """Have these bytes read next; `head_timeout` counts from the given time of the first
        one.
        """
        self.put_back(data)
        self._head_began = began if data else None

    def take_request(self) -> tuple[bytes, bytes]:
        """The current request's raw head and the bytes after it, for another part to serve. The
        next request can be read after that.
        """
        self.forget_request()
        return self.raw_head, self.take_buffer()

    async def read_request(self) -> RequestHead | None:
        """The next request's head, or None when the connection is over: ended, broken or idle.

        Raises Refused, ready to be sent, when what came is no acceptable request; the connection
        is then of no use any more. Raises VisitorGone when it breaks within a head.
        """
        patience = self._limits.head_timeout if self.is_new else self._limits.idle_timeout
        self._body = LengthBody(0)
        self.response_started = self.reusable = False
        head: RequestHead | None = None
        with trio.move_on_after(patience) as scope:
            if not self._buffer and not await self._wait_for_request(scope):
                return None
            began, self._head_began = self._head_began, None
            if began is None:
                began = trio.current_time()
            scope.deadline = began + self._limits.head_timeout
            self.raw_head = await self._read_head()
            head = parse_request(self.raw_head, self._limits.max_head_fields)
        if head is None:
            if not self._buffer:
                return None  # it was the wait for a first byte that ended
            limit = f"{self._limits.head_timeout:g} s"
            raise Refused(
                Refusal(408, "head-timeout", f"The request's head took longer than {limit}.")
            )
        self._request = head
        self.is_new = False
        if head.method == b"CONNECT":
            self._body = UntilEndBody()  # the following bytes are not HTTP (RFC 9110 section 9.3.6)
        elif head.chunked:
            self._body = self._chunked_body()
        else:
            self._body = LengthBody(head.content_length or 0)
        return head

    async def _wait_for_request(self, scope: trio.CancelScope) -> bool:
        """Whether a first byte came before the connection ended or was told to."""
        if self._closing:
            return False
        self._between_requests = scope
        try:
            self._buffer = await self._receive()
        except VisitorGone:
            return False
        finally:
            self._between_requests = None
        return bool(self._buffer)

    async def _read_head(self) -> bytes:
        reader, self._buffer = HeadReader(self._buffer), b""  # held once, however long it takes
        counted = 0
        try:
            while True:
                reader.skip_empty_line()
                end = reader.end()
                if (end if end >= 0 else len(reader)) > self._limits.max_head_bytes:
                    limit = self._limits.max_head_bytes
                    message = f"The request's head is larger than {limit} bytes."
                    raise Refused(Refusal(431, "head-too-large", message))
                if end >= 0:
                    raw, rest = reader.split(end)
                    reader = HeadReader(rest)
                    return raw
                if (wrong := reader.wrong()) is not None:
                    message = f"The request cannot be used: {wrong}."
                    raise Refused(Refusal(400, "bad-request", message))
                if self._unfinished is not None:
                    counted = self._unfinished.hold(counted, len(reader))
                if not (data := await self._receive()):
                    message = "The connection ended within a request's head."
                    raise Refused(Refusal(400, "bad-request", message))
                reader.add(data)
        finally:
            _, self._buffer = reader.split()
            if self._unfinished is not None:
                self._unfinished.release(counted)

    async def watch(self) -> NoReturn:
        """Read ahead while an answer is awaited, so as to notice when the visitor is gone.

        Raises VisitorGone. Keeps what comes (a pipelined request) for `read_request`, at most one
        read of it. An end of the visitor's sending is not the end of the visitor: programs that
        half-close still want their answer. Never returns; cancel it.
        """
        while len(self._buffer) < READ_SIZE:
            if self._ended:
                await trio.sleep(RECHECK_INTERVAL)
                self._ended = False
            self._buffer += await self._receive()
        await trio.sleep_forever()  # until the caller, who has the answer, cancels this

    async def send_interim(self, status: int, reason: bytes, headers: list[Field]) -> None:
        """Send a 1xx response; one whose request is HTTP/1.0 is left out (RFC 9110 15.2)."""
        if self._request is not None and self._request.version != b"1.0":
            await self._send(write_response(status, reason, headers))

    async def send_response(
        self,
        status: int,
        reason: bytes,
        headers: list[Field],
        *,
        length: int | None = None,
        first: bytes = b"",
        end: bool = False,
        trailers: Sequence[Field] = (),
    ) -> None:
        """Send a final response's head, with the body's first content in the same write.

        `headers` are end-to-end fields without Content-Length; `length` is the body's (or for HEAD
        and 304, what it would be), None when it is not known: then the body goes out in chunks,
        or to an HTTP/1.0 visitor until the connection's end.
        """
        request = self._request
        old = request is None or request.version == b"1.0"
        bodiless = status in (204, 304) or (request is not None and request.method == b"HEAD")
        self._sends_chunks = not bodiless and length is None and not old
        ends_by_close = not bodiless and length is None and old
        if self._sends_chunks:
            headers = [*headers, (b"Transfer-Encoding", b"chunked")]
        elif length is not None and status != 204:
            headers = [*headers, (b"Content-Length", b"%d" % length)]
        # An answer before the request's end also closes: whether the rest of the request will
        # ever come is not known here, and nothing can be read from the connection before it.
        self.reusable = not (old or ends_by_close or self._closing or not self.body_done)
        if request is not None and has_member(request.headers, b"connection", b"close"):
            self.reusable = False
        if not self.reusable:
            headers = [*headers, (b"Connection", b"close")]
        self.response_started = True
        await self._send(
            write_response(status, reason, headers) + self._encode(first, end, trailers)
        )

    async def send_refusal(self, refusal: Refusal, *, accept: bytes | None = None) -> None:
        """Answer the current request, or what could not be read as one, with a refusal. `accept` is
        what is known of the latter's field Accept."""
        request = self._request
        if request is not None:
            accept = first_value(request.headers, b"accept")
        headers, body = refusal.render(accept or b"")
        headers = [pair for pair in headers if pair[0] != b"Content-Length"]
        if request is not None and request.method == b"HEAD":
            await self.send_response(refusal.status, refusal.phrase, headers, length=len(body))
        else:
            await self.send_response(
                refusal.status, refusal.phrase, headers, length=len(body), first=body, end=True
            )

    async def refuse(self, refusal: Refusal, *, accept: bytes | None = None) -> None:
        """Answer what could not be read as a request, or was not read at all, and close."""
        self.forget_request()
        await self.send_refusal(refusal, accept=accept)
        await self.close()

    def forget_request(self) -> None:
        """Accept no further request: only a refusal and `close` can follow."""
        self._request = None
        self._body = UntilEndBody()

    async def send_switch(
        self, status: int, reason: bytes, headers: list[Field], first: bytes = b""
    ) -> None:
        """Send the head after which the connection is no longer HTTP: 101, or 2xx to a CONNECT.

        `first` are the new protocol's first bytes, sent in the same write.
        """
        self.response_started = True
        self.reusable = False
        await self._send(write_response(status, reason, headers) + first)

    async def close(self) -> None:
        """Close so that the visitor can read everything that was sent to it."""
        with (
            trio.move_on_after(DRAIN_TIMEOUT + CLOSE_TIMEOUT),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            if not self._ended and (not self.body_done or _resets_on_close(self.stream)):
                await self._linger()
            if isinstance(self.stream, trio.SSLStream):
                # Without, an answer that ends with the connection looks cut (RFC 9112 section 9.8).
                await send_close_notify(self.stream)
            await self.stream.aclose()

    async def _linger(self) -> None:
        """Discard the visitor's further bytes, so that no reset overtakes the answer."""
        self._buffer = b""  # up to a whole head, and it takes seconds
        with trio.move_on_after(DRAIN_TIMEOUT):
            if isinstance(self.stream, trio.abc.HalfCloseableStream):
                await self.stream.send_eof()
            dropped = 0
            while dropped < DRAIN_BYTES and (data := await self.stream.receive_some(READ_SIZE)):
                dropped += len(data)

    async def abort(self) -> None:
        """End the connection so that the visitor sees a cut, not an end."""
        await abort(self.stream)


def _resets_on_close(stream: trio.abc.Stream) -> bool:
    """Whether closing may make the peer lose bytes that it has not read yet.

    A kernel answers with a reset when a socket is closed that has unread data, such as a pipelined
    request, and a reset discards what the peer has received. A yamux stream delivers first. Of TLS
    only the close itself tells that the answer is complete, so it cannot wait.
    """
    return isinstance(stream, trio.SocketStream)


class ClientConnection(_Connection):
    """The side that sends one request and reads its answer. Good for one exchange only."""

    _gone = UpstreamGone

    @property
    def is_clean(self) -> bool:
        """Whether the answer was read to the end that its framing gives, with nothing after it."""
        by_end = isinstance(self._body, UntilEndBody)
        return self._body.done and not by_end and not self._buffer and not self._ended

    def __init__(self, stream: trio.abc.Stream, limits: IngressLimits) -> None:
        super().__init__(stream, limits)
        self._method = b""
        self._interims = self._interim_bytes = 0  # of the minute that began at _interims_since
        self._interims_since = 0.0

    async def send_request(
        self,
        method: bytes,
        target: bytes,
        headers: list[Field],
        *,
        chunked: bool = False,
        first: bytes = b"",
        end: bool = False,
        trailers: Sequence[Field] = (),
    ) -> None:
        """Send the request's head, with the body's first content in the same write.

        `headers` hold Content-Length when the body has one. Raises UpstreamGone.
        """
        self._method = method
        self._sends_chunks = chunked
        if chunked:
            headers = [*headers, (b"Transfer-Encoding", b"chunked")]
        await self._send(
            write_request(method, target, headers) + self._encode(first, end, trailers)
        )

    async def read_head(self) -> ResponseHead:
        """The next response head, interim or final. The caller bounds the wait.

        After a final one, `read_body` reads its body. Raises UpstreamGone when the connection ends
        or breaks first, and when what comes is not an HTTP/1 response or is over the limit, which
        holds for each head, and for all interim ones of a minute together.
        """
        limit = self._limits.max_head_bytes
        reader = HeadReader(self._buffer)
        try:
            while (end := reader.end()) < 0 and len(reader) <= limit:
                if not (data := await self._receive()):
                    raise UpstreamGone(
                        "it closed the connection within the head of its answer"
                        if len(reader)
                        else "it closed the connection without an answer"
                    )
                reader.add(data)
            if not 0 <= end <= limit:
                raise UpstreamGone(f"the head of its answer is larger than {limit} bytes")
            raw, rest = reader.split(end)
            reader = HeadReader(rest)
        finally:
            _, self._buffer = reader.split()
        try:
            head = parse_response(raw, self._method, self._limits.max_head_fields)
        except BadHead as exc:
            raise UpstreamGone(f"it did not answer in HTTP: {exc}") from None
        if head.is_interim:
            self._count_interim(end)
        self._body = self._body_of(head)
        return head

    def _count_interim(self, size: int) -> None:
        """Count an interim head; raises UpstreamGone where there are too many."""
        now, limits = trio.current_time(), self._limits
        if self._interims == 0 or now >= self._interims_since + 60:
            self._interims_since = now
            self._interims = self._interim_bytes = 0
        self._interims += 1
        self._interim_bytes += size
        if self._interims > limits.max_interim_heads:
            raise UpstreamGone(
                f"its answer has more than {limits.max_interim_heads} interim heads (1xx) within a "
                "minute (limits.max_interim_heads)"
            )
        if self._interim_bytes > limits.max_head_bytes:
            raise UpstreamGone(
                f"its interim heads (1xx) have more than {limits.max_head_bytes} bytes together"
            )

    def _body_of(self, head: ResponseHead) -> BodyDecoder:
        """The body's framing by RFC 9112 section 6.3, in its order."""
        if self._method == b"HEAD" or head.status < 200 or head.status in (204, 304):
            return LengthBody(0)
        if head.chunked:
            return self._chunked_body()
        if head.content_length is not None:
            return LengthBody(head.content_length)
        return UntilEndBody()
