"""The inspector: keeps requests to one service for a while for a person to read. While nothing is
inspected, it costs a look-up in an empty table. Requests to an inspected service are served with
h11, where each is copied; requests to other services stay in the pump.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import trio

from tunnelmux.http import Exchange, RequestHead, ResponseHead
from tunnelmux.http.tap import MessageCounter
from tunnelmux.observability import get_logger
from tunnelmux.sessions.handle import utc_now
from tunnelmux.sessions.inspections import (
    BODY_KEPT,
    InspectedRequest,
    Inspection,
    masked_fields,
    masked_target,
)

__all__ = ["Inspector", "RunningInspection", "TappedRequest"]

_log = get_logger("proxy.inspector")

_OWN_SIZE = 1024
# Bytes that a request counts besides its heads and bodies.


class TappedRequest:
    """One request, during and after its exchange; an `http.tap.Tap`."""

    def __init__(
        self,
        inspection: RunningInspection,
        request_id: str,
        request: RequestHead,
        visitor: str,
        scheme: str,
    ) -> None:
        self.id = request_id
        self.size = _OWN_SIZE
        """Bytes that it holds."""
        self.is_kept = False
        """Whether it is still kept; a dropped one records nothing more."""
        self.replay_of = ""
        self.bytes_in = self.bytes_out = 0
        self.body, self.answer_body = bytearray(), bytearray()
        self._inspection = inspection
        self._at = inspection.now()
        self._started = trio.current_time()
        self._visitor, self._scheme = visitor, scheme
        self._method = request.method.decode("ascii", "replace")
        self._target = masked_target(request.target.decode("latin-1"))
        self._host = request.host.decode("latin-1")
        self._fields = masked_fields(request.headers)
        self._status = 0
        self._reason = self._problem = ""
        self._answer_fields: list[tuple[str, str]] = []
        self._answered_after: float | None = None
        self._seconds: float | None = None
        self._messages: tuple[MessageCounter, MessageCounter] | None = None
        self.size += len(self._target) + _size(self._fields)

    def asked(self, data: bytes) -> None:
        """See `Tap`."""
        self.bytes_in += len(data)
        if self._messages is not None:
            self._messages[0].feed(data)
        else:
            self._keep(self.body, data)

    def began(self, head: ResponseHead) -> None:
        """See `Tap`."""
        self._status = head.status
        self._answered_after = trio.current_time() - self._started
        self._answer_fields = masked_fields(head.headers)
        self._grow(_size(self._answer_fields))
        if head.status == 101:
            self._messages = (MessageCounter(), MessageCounter())

    def answered(self, data: bytes) -> None:
        """See `Tap`."""
        self.bytes_out += len(data)
        if self._messages is not None:
            self._messages[1].feed(data)
        else:
            self._keep(self.answer_body, data)

    def over(self, status: int, *, reason: str = "", problem: str = "") -> None:
        """Record the end; `status` is the one that the visitor got."""
        self._status, self._reason = status, reason
        self._problem = problem
        self._seconds = trio.current_time() - self._started

    def take_answer(self, status: int, headers: Mapping[str, Sequence[str]], body: bytes) -> None:
        """Record the whole answer of a repetition."""
        pairs = [(name, value) for name, values in headers.items() for value in values]
        fields = [(name.encode("latin-1"), value.encode()) for name, value in pairs]
        self.began(ResponseHead(status, b"", fields))
        self.answered(body)
        self.over(status)

    def end(self, exchange: Exchange, problem: str | None) -> None:
        """Record the end of an exchange."""
        self.over(exchange.status, reason=exchange.reason or "", problem=problem or "")

    def show(self, *, bodies: bool) -> InspectedRequest:
        """Its present state."""
        has_bodies = bodies and self._inspection.bodies
        counters = self._messages
        return InspectedRequest(
            id=self.id,
            at=self._at,
            visitor=self._visitor,
            scheme=self._scheme,
            host=self._host,
            method=self._method,
            target=self._target,
            headers=self._fields,
            status=self._status,
            reason=self._reason,
            answer_headers=self._answer_fields,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            answered_after=_rounded(self._answered_after),
            seconds=_rounded(self._seconds),
            is_websocket=counters is not None,
            messages_in=counters[0].count if counters else 0,
            messages_out=counters[1].count if counters else 0,
            problem=self._problem,
            replay_of=self.replay_of,
            body=bytes(self.body) if has_bodies else None,
            answer_body=bytes(self.answer_body) if has_bodies else None,
        )

    def _keep(self, kept: bytearray, data: bytes) -> None:
        if self.is_kept and self._inspection.bodies and (part := data[: BODY_KEPT - len(kept)]):
            kept += part
            self._grow(len(part))

    def _grow(self, size: int) -> None:
        self.size += size
        if self.is_kept:
            self._inspection.grow(size)


class RunningInspection:
    """One service under inspection. Made by `Inspector.begin`."""

    def __init__(
        self,
        inspector: Inspector,
        inspection_id: str,
        device: str,
        service: str,
        seconds: float,
        *,
        bodies: bool,
        asked_by: str,
    ) -> None:
        self.id, self.device, self.service = inspection_id, device, service
        self.bodies = bodies
        self.asked_by = asked_by
        self.requests: deque[TappedRequest] = deque()
        """The kept requests, oldest first."""
        self.seen = self.forgotten = 0
        self.ends = trio.current_time() + seconds
        """When it ends, on Trio's clock."""
        self._seconds = seconds
        self._inspector = inspector
        self._began = inspector.clock()

    def now(self) -> datetime:
        """The wall clock."""
        return self._inspector.clock()

    def show(self) -> Inspection:
        """Its present state."""
        return Inspection(
            id=self.id,
            device=self.device,
            service=self.service,
            began=self._began,
            until=self._began + timedelta(seconds=self._seconds),
            bodies=self.bodies,
            asked_by=self.asked_by,
            seen=self.seen,
            forgotten=self.forgotten,
        )

    def tap(self, request: RequestHead, visitor: str, scheme: str) -> TappedRequest:
        """Keep this request, which has just arrived."""
        self.seen += 1
        number = f"{self._inspector.epoch}-{self._inspector.next_number()}"
        tapped = TappedRequest(self, number, request, visitor, scheme)
        self.requests.append(tapped)
        tapped.is_kept = True
        self.grow(tapped.size)
        while len(self.requests) > self._inspector.most_requests:
            self.forget_oldest()
        return tapped

    def find(self, request_id: str) -> TappedRequest | None:
        """The request of this id, if it is still kept."""
        return next((one for one in self.requests if one.id == request_id), None)

    def grow(self, size: int) -> None:
        """Count more bytes, and drop old requests over the limit."""
        self._inspector.grow(self, size)

    def forget_oldest(self) -> None:
        """Drop the oldest request."""
        self._inspector.kept_bytes -= self._drop().size
        self.forgotten += 1

    def clear(self) -> None:
        """Drop all requests."""
        while self.requests:
            self._inspector.kept_bytes -= self._drop().size

    def _drop(self) -> TappedRequest:
        dropped = self.requests.popleft()
        dropped.is_kept = False
        return dropped


class Inspector:
    """All inspections of a proxy."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self.epoch = secrets.token_hex(4)
        """Distinguishes request ids of different processes."""
        self.clock = clock
        self.most_requests = 200
        """The most requests of one inspection."""
        self.most_bytes = 16_777_216
        """The most bytes of all inspections together."""
        self.kept_bytes = 0
        """Bytes that they hold now."""
        self._number = 0
        self._running: dict[str, RunningInspection] = {}

    @property
    def is_on(self) -> bool:
        """Whether anything is inspected; if not, `find` is not needed."""
        return bool(self._running)

    def find(self, device: str, service: str | None, default: str) -> RunningInspection | None:
        """The inspection of this service, if one runs; None as service means the device's default,
        whose name is `default`.
        """
        name = default if service is None else service
        for inspection in self.list():
            if inspection.device == device and inspection.service == name:
                return inspection
        return None

    def list(self) -> list[RunningInspection]:
        """The running inspections, oldest first; drops those that have ended."""
        now = trio.current_time()
        for inspection in [one for one in self._running.values() if one.ends <= now]:
            self.end(inspection)
        return list(self._running.values())

    def get(self, inspection_id: str) -> RunningInspection | None:
        """The inspection of this id, while it runs."""
        return next((one for one in self.list() if one.id == inspection_id), None)

    def begin(
        self,
        inspection_id: str,
        device: str,
        service: str,
        seconds: float,
        *,
        bodies: bool,
        asked_by: str,
    ) -> RunningInspection:
        """Begin to inspect a service; an earlier inspection of it, or with this id, ends."""
        for before in (self.find(device, service, ""), self.get(inspection_id)):
            if before is not None:
                self.end(before)
        inspection = RunningInspection(
            self, inspection_id, device, service, seconds, bodies=bodies, asked_by=asked_by
        )
        self._running[inspection_id] = inspection
        _log.warning(
            "inspection begins",
            device=device,
            service=service,
            seconds=seconds,
            bodies=bodies,
            asked_by=asked_by,
        )
        return inspection

    def end(self, inspection: RunningInspection) -> None:
        """End the inspection, and drop its requests. Harmless twice."""
        if self._running.pop(inspection.id, None) is not None:
            inspection.clear()
            _log.warning(
                "inspection ends",
                device=inspection.device,
                service=inspection.service,
                requests=inspection.seen,
            )

    def next_number(self) -> int:
        """The number of the next request; counts up."""
        self._number += 1
        return self._number

    def grow(self, grown: RunningInspection, size: int) -> None:
        """Count more bytes. Over the limit the oldest requests are dropped, first those of the
        inspection that has grown.
        """
        self.kept_bytes += size
        for inspection in (grown, *self._running.values()):
            while self.kept_bytes > self.most_bytes and len(inspection.requests) > 1:
                inspection.forget_oldest()


def _size(fields: list[tuple[str, str]]) -> int:
    return sum(len(name) + len(value) for name, value in fields)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
