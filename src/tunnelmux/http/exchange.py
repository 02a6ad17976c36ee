"""One request and its response, carried in both directions at once.

The same code runs at both ends of the tunnel: in the proxy between a visitor and a stream, in the
agent between a stream and a local target. The differences, which fields are set and where requests
go, are in an `Upstream`. Nothing is buffered: each piece of a body is sent on as it comes, and the
next one is read only after that. No exchange has a total time limit; only the wait for the
response's head is limited, and only while the answering side is due.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from tunnelmux.http.body import BadBody
from tunnelmux.http.connection import (
    ClientConnection,
    ServerConnection,
    UpstreamGone,
    VisitorGone,
)
from tunnelmux.http.fields import end_to_end, safe_trailers
from tunnelmux.http.head import Field, RequestHead, ResponseHead, field_values, has_member
from tunnelmux.http.refusal import Refusal
from tunnelmux.http.tap import Tap, TappedStream
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import RelayResult, abort, relay
from tunnelmux.wire import REASON_FIELD

__all__ = ["Exchange", "Upstream", "forward"]

PROMPT = 0.5
"""Seconds in which an answer counts as immediate. Only after that the visitor's connection is
watched, so a visitor that leaves earlier is noticed then.
"""


@dataclass(slots=True)
class Upstream:
    """The destination of one request, and the changes on the way."""

    stream: trio.abc.Stream
    """A connection that carries this request. `forward` closes it, unless it is `kept`."""

    headers: list[Field]
    """The request's end-to-end fields as they are to be sent, Host among them."""

    describe: str
    """The answering side, for messages like "the target of service web did not answer"."""

    response_timeout: float
    """Seconds for the response's head, counted while neither the request is still coming in nor
    an interim response has come."""

    response_headers: Callable[[list[Field]], list[Field]] | None = None
    """Applied to the response's end-to-end fields."""

    explain_silence: Callable[[], Awaitable[str | None]] | None = None
    """Asked for the cause when the other side gave no head that can be read."""

    broken_reason: str = "target-broke"
    """The Tunnelmux-Reason when the connection ends before a response head."""

    keeps: bool = False
    """Whether the connection is kept for the visitor's next request, because a login belongs to it.
    Otherwise the other side is told that it will close.
    """

    tap: Tap | None = None
    """Observes the exchange."""

    kept: bool = False
    """Set by `forward`: the connection can carry another request, and is the caller's to close."""


@dataclass(slots=True)
class Exchange:
    """The result, for the access log."""

    request: RequestHead | None = None
    status: int = 0
    """The final status that was sent; 0 when the visitor was gone before there was one."""
    reason: str | None = None
    """The Tunnelmux-Reason sent with it, if any."""
    bytes_in: int = 0
    """Content received from the visitor."""
    bytes_out: int = 0
    """Content sent to the visitor."""
    upgraded: bool = False
    """Whether the connection changed to another protocol (WebSocket)."""
    problem: str | None = None
    """The failure as a text, or None."""
    visitor_left: bool = False
    """Whether the only problem is that the visitor left before the end."""
    started: float = field(default_factory=trio.current_time)
    relayed: RelayResult | None = None
    """The relay after the change to another protocol; its bytes are added to the counts at the
    end.
    """

    @property
    def bytes_now(self) -> tuple[int, int]:
        """`bytes_in` and `bytes_out` at this moment."""
        more_in, more_out = self.relayed.bytes_now if self.relayed is not None else (0, 0)
        return self.bytes_in + more_in, self.bytes_out + more_out


async def forward(
    server: ServerConnection,
    request: RequestHead,
    upstream: Upstream,
    limits: IngressLimits,
    exchange: Exchange,
) -> None:
    """Send `request` upstream and the response back; fills `exchange` in as it goes.

    Returns when the exchange is over, well or badly: every failure either became a response or,
    when the response had begun, an aborted connection. The upstream's stream is closed then, and
    `server.reusable` says whether the next request can be read. Raises only Cancelled, with both
    connections aborted.
    """
    one = _Forwarding(server, request, upstream, limits, exchange)
    try:
        await one.run()
    except BaseException:  # Cancelled, above all: half a message must not look like a whole one
        try:
            await abort(upstream.stream)
        finally:
            await server.abort()
        raise


class _Forwarding:
    def __init__(
        self,
        server: ServerConnection,
        request: RequestHead,
        upstream: Upstream,
        limits: IngressLimits,
        exchange: Exchange,
    ) -> None:
        self._server = server
        self._request = request
        self._upstream = upstream
        self._exchange = exchange
        self._limits = limits
        self._client = ClientConnection(upstream.stream, limits)
        self._upgrade = _offered_upgrade(request)
        self._timer: trio.CancelScope | None = None
        self._due = trio.current_time() + upstream.response_timeout
        self._head_sent = False
        self._request_sent = False
        self._refusal: Refusal | None = None  # what to answer instead of the upstream's response
        self._failed = False  # the response cannot be completed, or the visitor has left
        self._head: ResponseHead | None = None  # read from the upstream, not yet passed on
        self._begun = False  # the final head was passed on
        self._final: ResponseHead | None = None
        self._is_silent = False  # the upstream gave no head that could be read
        self._switched: ResponseHead | None = None

    async def run(self) -> None:
        if not (self._server.body_done and await self._run_promptly()):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_request, nursery.cancel_scope)
                await self._return_response()
                nursery.cancel_scope.cancel(reason="the response is complete")
        if self._switched is not None:
            await self._relay_raw(self._switched)
        else:
            await self._settle()

    async def _run_promptly(self) -> bool:
        """Try to serve in one task: a request without a body, and a small, immediate answer.
        Watching the visitor meanwhile needs a second task, which costs more than the rest of such
        an exchange. True if the exchange is over; if not, the general way continues where this one
        stopped.
        """
        await self._send_head()
        try:
            with trio.move_on_after(min(PROMPT, self._upstream.response_timeout)):
                self._head = await self._client.read_head()
            if self._head is None or self._head.status < 200:
                return False
            return await self._begin_response(self._head)
        except UpstreamGone as exc:
            self._is_silent = not self._begun
            self._answer_instead(502, self._upstream.broken_reason, str(exc))
        except BadBody as exc:
            self._answer_instead(502, "target-broke", f"its answer is broken: {exc}")
        except VisitorGone as exc:
            self._lose_visitor(exc)
        return True

    async def _settle(self) -> None:
        """Leave both connections in the state for the outcome."""
        server = self._server
        if self._is_silent:
            await self._explain_silence()
        if self._refusal is not None and not server.response_started:
            self._exchange.status = self._refusal.status
            self._exchange.reason = self._refusal.reason
            try:
                await server.send_refusal(self._refusal)
            except VisitorGone as exc:
                self._lose_visitor(exc)
        elif self._refusal is not None:
            self._failed = True
        if self._failed:
            server.reusable = False
            await server.abort()
        if self._failed or self._refusal is not None or not self._request_sent:
            await abort(self._upstream.stream)
        elif self._upstream.keeps and self._can_go_on():
            self._upstream.kept = True
        else:
            # The response is complete; how the connection ends is of no interest.
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._upstream.stream.aclose()

    async def _explain_silence(self) -> None:
        ask = self._upstream.explain_silence
        if ask is not None and (cause := await ask()) is not None:
            self._exchange.problem = None  # later failures follow from this cause
            self._answer_instead(502, self._upstream.broken_reason, cause)

    def _can_go_on(self) -> bool:
        """Whether the answer left the connection ready for another request."""
        head = self._final
        if head is None or not self._client.is_clean:
            return False
        if has_member(head.headers, b"connection", b"close"):
            return False
        return head.version == b"1.1" or has_member(head.headers, b"connection", b"keep-alive")

    # The request's direction

    async def _send_request(self, all_of_it: trio.CancelScope) -> None:
        try:
            await self._send_request_parts()
        except VisitorGone as exc:
            self._lose_visitor(exc)
            all_of_it.cancel(reason="the visitor is gone")
        except BadBody as exc:
            self._note(f"the request's body is bad: {exc}")
            self._refusal = Refusal(400, "bad-request", f"The request cannot be used: {exc}.")
            all_of_it.cancel(reason="the request cannot be completed")
        except trio.TooSlowError:
            problem = f"no byte of the request's body came within {self._limits.body_stall:g} s"
            self._note(problem)
            self._refusal = Refusal(408, "body-stalled", f"{problem[0].upper()}{problem[1:]}.")
            all_of_it.cancel(reason="the request's body has stalled")

    async def _send_request_parts(self) -> None:
        server, client = self._server, self._client
        if not self._head_sent:
            await self._send_head()
        try:
            end = self._request_sent
            while not end:
                # While the visitor's turn lasts, the upstream's time does not run, unless the
                # visitor waits for a 100 (Continue), which is the upstream's to send.
                self._run_timer(not self._exchange.bytes_in and self._expects_100)
                with trio.fail_after(self._stall):
                    data, end = await server.read_body()
                self._run_timer(True)
                self._took(data)
                await client.send_body(data, end=end, trailers=safe_trailers(server.trailers))
                self._run_timer(True)
            self._request_sent = True
        except UpstreamGone as exc:
            self._note_lost_reader(exc)
        await server.watch()

    async def _send_head(self) -> None:
        """Send the request's head, with the part of its body that has come."""
        first, end = self._server.read_body_nowait()
        self._took(first)
        self._head_sent = True
        try:
            await self._client.send_request(
                self._request.method,
                self._request.target,
                self._request_headers(),
                chunked=self._request.chunked,
                first=first,
                end=end,
                trailers=safe_trailers(self._server.trailers) if end else (),
            )
            self._request_sent = end
        except UpstreamGone as exc:
            self._note_lost_reader(exc)

    def _note_lost_reader(self, exc: UpstreamGone) -> None:
        # It may have answered before it stopped reading: try to read the answer.
        self._note(f"{self._upstream.describe} stopped reading the request: {exc}")

    @property
    def _stall(self) -> float:
        """Seconds for which the body may pause. Infinite while the visitor waits for a 100
        (Continue), which the upstream's timeout covers.
        """
        waits = self._expects_100 and not self._exchange.bytes_in
        return math.inf if waits else self._limits.body_stall

    @property
    def _expects_100(self) -> bool:
        return has_member(self._request.headers, b"expect", b"100-continue")

    def _request_headers(self) -> list[Field]:
        headers = list(self._upstream.headers)
        options: list[bytes] = []
        if self._request.version == b"1.0":
            # RFC 9110 10.1.1: an HTTP/1.0 client cannot mean it, nor take the answer.
            headers = [pair for pair in headers if pair[0].lower() != b"expect"]
        elif has_member(self._request.headers, b"te", b"trailers"):
            options.append(b"TE")
            headers.append((b"TE", b"trailers"))
        if self._upgrade is not None:
            options.append(b"Upgrade")
            headers.append((b"Upgrade", self._upgrade))
        elif not self._upstream.keeps:
            options.append(b"close")  # one request per connection, and it is this one
        if options:
            headers.append((b"Connection", b", ".join(options)))
        return headers

    def _run_timer(self, runs: bool) -> None:
        """Restart the upstream's timeout, or stop it."""
        self._due = trio.current_time() + self._upstream.response_timeout if runs else math.inf
        if self._timer is not None:
            self._timer.deadline = self._due

    # The response's direction

    async def _return_response(self) -> None:
        try:
            if not self._begun:
                head = await self._read_final_head()
                if head is None:
                    return
                if head.status == 101:
                    self._switched = head
                    return
                if await self._begin_response(head):
                    return
            end = False
            while not end:
                data, end = await self._client.read_body()
                self._gave(data)
                trailers = safe_trailers(self._client.trailers)
                await self._server.send_body(data, end=end, trailers=trailers)
        except UpstreamGone as exc:
            self._is_silent = not self._begun
            self._answer_instead(502, self._upstream.broken_reason, str(exc))
        except BadBody as exc:
            # Without an answer begun, this is a 502; else the visitor's connection is cut.
            self._answer_instead(502, "target-broke", f"its answer is broken: {exc}")
        except VisitorGone as exc:
            self._lose_visitor(exc)

    async def _read_final_head(self) -> ResponseHead | None:
        """The final head, after passing interim ones on; None when there is none, with the reason
        recorded.
        """
        while True:
            head, self._head = self._head, None
            if head is None:
                with trio.CancelScope(deadline=self._due) as self._timer:
                    head = await self._client.read_head()
                self._timer = None
            if head is None:
                seconds = f"{self._upstream.response_timeout:g} s"
                self._answer_instead(504, "target-timeout", f"it did not answer within {seconds}")
                return None
            if head.status == 101 and self._upgrade is None:
                raise UpstreamGone("it changed the protocol (101) without being asked to")
            if head.status == 101 and not self._server.body_done:
                raise UpstreamGone("it changed the protocol (101) within the request")
            if not head.is_interim:
                return head
            await self._server.send_interim(head.status, head.reason, self._return_headers(head))
            if self._due < math.inf:
                self._run_timer(True)

    async def _begin_response(self, head: ResponseHead) -> bool:
        """Pass on the final head, with the part of its body that has come. True if that was all."""
        first, end = self._client.read_body_nowait()
        self._begun = True
        self._final = head
        self._exchange.status = head.status
        if self._upstream.tap is not None:
            self._upstream.tap.began(head)
        self._gave(first)
        await self._server.send_response(
            head.status,
            head.reason,
            self._return_headers(head),
            length=head.content_length,
            first=first,
            end=end,
            trailers=safe_trailers(self._client.trailers),
        )
        return end

    def _took(self, data: bytes) -> None:
        """Count content from the visitor."""
        self._exchange.bytes_in += len(data)
        if self._upstream.tap is not None and data:
            self._upstream.tap.asked(data)

    def _gave(self, data: bytes) -> None:
        """Count content to the visitor."""
        self._exchange.bytes_out += len(data)
        if self._upstream.tap is not None and data:
            self._upstream.tap.answered(data)

    def _return_headers(self, head: ResponseHead) -> list[Field]:
        headers = [
            pair for pair in end_to_end(head.headers) if pair[0].lower() != b"content-length"
        ]
        if self._upstream.response_headers is not None:
            headers = self._upstream.response_headers(headers)
        for name, value in headers:
            if name.lower() == REASON_FIELD.lower():
                self._exchange.reason = value.decode("latin-1")
        return headers

    async def _relay_raw(self, head: ResponseHead) -> None:
        """Relay raw bytes after both sides agreed on another protocol."""
        exchange = self._exchange
        exchange.status, exchange.upgraded = 101, True
        headers = self._return_headers(head)
        headers += [
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b", ".join(field_values(head.headers, b"upgrade")) or b"unknown"),
        ]
        early = self._client.take_buffer()
        stream: trio.abc.Stream = self._upstream.stream
        if (tap := self._upstream.tap) is not None:
            tap.began(head)
            tap.answered(early)
            stream = TappedStream(stream, tap)
        try:
            await self._server.send_switch(101, head.reason, headers, early)
            exchange.bytes_out += len(early)
        except VisitorGone as exc:
            self._note_leaving(exc)
            await abort(self._upstream.stream)
            await self._server.abort()
            return
        result = exchange.relayed = RelayResult()
        try:
            await relay(
                self._server.stream,
                stream,
                from_a=self._server.take_buffer(),
                result=result,
            )
        finally:
            exchange.relayed = None
            exchange.bytes_in += result.bytes_a_to_b
            exchange.bytes_out += result.bytes_b_to_a
            if result.ended == "broken":
                side = "the visitor" if result.broken_side == "a" else self._upstream.describe
                self._note(f"{side} broke the connection")

    def _lose_visitor(self, exc: VisitorGone) -> None:
        self._note_leaving(exc)
        self._failed = True

    def _answer_instead(self, status: int, reason: str, problem: str) -> None:
        self._note(f"{self._upstream.describe}: {problem}")
        message = f"{self._upstream.describe} could not answer: {problem}."
        self._refusal = Refusal(status, reason, message[0].upper() + message[1:])

    def _note_leaving(self, exc: Exception) -> None:
        if self._exchange.problem is None:
            self._exchange.visitor_left = True
        self._note(f"the visitor is gone: {exc}")

    def _note(self, problem: str) -> None:
        if self._exchange.problem is None:  # the first failure is the cause of the others
            self._exchange.problem = problem


def _offered_upgrade(request: RequestHead) -> bytes | None:
    """The protocols the visitor would change to, as the Upgrade field to pass on; None for none.

    HTTP and TLS are left out in every spelling: inside them more requests could follow, unseen and
    with any fields they like.
    """
    if request.version == b"1.0":
        return None
    if not has_member(request.headers, b"connection", b"upgrade"):
        return None
    offered = field_values(request.headers, b"upgrade")
    return b", ".join(p for p in offered if not _carries_requests(p)) or None


def _carries_requests(protocol: bytes) -> bool:
    """Whether this member of `Upgrade` names HTTP (RFC 9110 7.8) or TLS (RFC 2817)."""
    name = protocol.partition(b"/")[0].strip().lower()
    return name in {b"http", b"https", b"tls"} or name.startswith((b"h2", b"h3"))
