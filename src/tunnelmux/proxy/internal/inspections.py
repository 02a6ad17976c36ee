"""Calls to begin, read and end inspections of services."""

from __future__ import annotations

import base64
from typing import Annotated

import msgspec
from msgspec import Meta

from tunnelmux.http import RequestHead
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import InternalLimits, most_of_one_tenant
from tunnelmux.proxy.internal.answers import Answer, ApiError
from tunnelmux.proxy.internal.bodies import Closed
from tunnelmux.proxy.internal.body import read_whole_body
from tunnelmux.proxy.internal.forward_http import ForwardHTTPRequest, HttpForwarder
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.proxy.visitors.inspector import Inspector, RunningInspection, TappedRequest
from tunnelmux.pump.field_names import field_kind
from tunnelmux.registry.names import tenant_in_label
from tunnelmux.sessions import DeviceStore, SessionHandle
from tunnelmux.sessions.inspections import HIDDEN, InspectedRequest, Inspection
from tunnelmux.wire import SERVICE_FIELD

__all__ = [
    "LARGEST_CALL",
    "InspectionCalls",
    "InspectionDetails",
    "InspectionList",
    "InspectionRequest",
]

LARGEST_CALL = 4096
"""Bytes of the call that begins one: names and a number."""

_REPEATED = frozenset({"ordinary", "head-only"})
# Kinds of fields that are the visitor's own. What a visitor says of its address, its
# identity or the service was held back when the request came, and would be believed if we said it.

_NOT_REPEATED = frozenset({"upgrade"})


class InspectionRequest(msgspec.Struct, kw_only=True, rename="camel"):
    """The service to inspect, and for how long."""

    id: Annotated[str, Meta(min_length=8, max_length=64, pattern="^[0-9A-Za-z-]+$")]
    """An id chosen by the caller, the same at all proxies."""
    device: Annotated[str, Meta(min_length=1, max_length=128, pattern="^[ -~]+$")]
    service: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[ -~]+$")]
    seconds: Annotated[
        float,
        Meta(ge=1, extra_json_schema={"maximum": InternalLimits().max_inspection_time}),
    ]
    """The most is `limits.max_inspection_time`."""
    bodies: bool = False
    asked_by: Annotated[str, Meta(max_length=128)] = ""


class InspectionList(msgspec.Struct, frozen=True):
    """The running inspections, oldest first."""

    inspections: list[Inspection]


class InspectionDetails(msgspec.Struct, frozen=True):
    """One inspection, and its requests without bodies, newest first."""

    inspection: Inspection
    requests: list[InspectedRequest]


class InspectionCalls:
    """Serves the calls about inspections."""

    def __init__(self, inspector: Inspector, forwarder: HttpForwarder, store: DeviceStore) -> None:
        self._inspector = inspector
        self._forwarder = forwarder
        self._store = store

    async def begin(self, call: Call) -> Answer:
        """Inspect a service for a time."""
        over = ApiError("BODY_TOO_LARGE", f"the call has more than {LARGEST_CALL} bytes")
        body = await read_whole_body(call, most=LARGEST_CALL, over=over)
        try:
            wanted = read_json(body, InspectionRequest)
        except BadJson as error:
            raise ApiError("INVALID_JSON", str(error)) from None
        limits, inspector = call.limits, self._inspector
        if wanted.seconds > limits.max_inspection_time:
            raise ApiError(
                "INVALID_REQUEST",
                f"an inspection lasts {limits.max_inspection_time:g} s at most "
                "(limits.max_inspection_time)",
            )
        running = inspector.list()
        is_new = inspector.find(wanted.device, wanted.service, "") is None
        if is_new and len(running) >= limits.max_inspections:
            raise ApiError(
                "TOO_MANY_INSPECTIONS",
                f"{limits.max_inspections} services are inspected: end one of them, or raise "
                "limits.max_inspections",
                headers=[(b"Retry-After", b"30")],
            )
        tenant = tenant_in_label(wanted.device)
        of_tenant = sum(tenant_in_label(one.device) == tenant for one in running)
        share = most_of_one_tenant(limits.max_inspections)
        if is_new and tenant and of_tenant >= share:
            raise ApiError(
                "TOO_MANY_INSPECTIONS",
                f"{share} services of this tenant are inspected: end one of them",
                headers=[(b"Retry-After", b"30")],
            )
        inspector.most_requests = limits.inspection_requests
        inspector.most_bytes = limits.inspection_memory
        begun = inspector.begin(
            wanted.id,
            wanted.device,
            wanted.service,
            wanted.seconds,
            bodies=wanted.bodies,
            asked_by=wanted.asked_by,
        )
        return Answer.of(begun.show())

    async def list(self, _: Call) -> Answer:
        """The inspections that run now."""
        return Answer.of(InspectionList([one.show() for one in self._inspector.list()]))

    async def show(self, call: Call) -> Answer:
        """One inspection with its requests."""
        inspection = self._find(call)
        requests = [one.show(bodies=False) for one in reversed(inspection.requests)]
        return Answer.of(InspectionDetails(inspection.show(), requests))

    async def end(self, call: Call) -> Answer:
        """End an inspection, and drop its requests."""
        self._inspector.end(self._find(call))
        return Answer.of(Closed())

    async def request(self, call: Call) -> Answer:
        """One request, with the bodies that were kept."""
        return Answer.of(self._find_request(call, self._find(call)).show(bodies=True))

    async def replay(self, call: Call) -> Answer:
        """Send a request again through the tunnel; the repetition is kept as a request of
        its own."""
        inspection = self._find(call)
        kept = self._find_request(call, inspection)
        if kept.show(bodies=False).is_websocket:
            raise ApiError("INVALID_REQUEST", "a WebSocket cannot be repeated")
        if len(kept.body) != kept.bytes_in:
            message = (
                "the request's content was not kept completely: inspect with bodies, up to 64 KiB"
            )
            raise ApiError("INVALID_REQUEST", message)
        handle = await self._store.find_device(inspection.device)
        if handle is None:
            raise ApiError("TUNNEL_DISCONNECTED", "session not connected")
        again = await self._send(call, inspection, kept, handle)
        return Answer.of(again.show(bodies=True))

    async def _send(
        self,
        call: Call,
        inspection: RunningInspection,
        kept: TappedRequest,
        handle: SessionHandle,
    ) -> TappedRequest:
        shown = kept.show(bodies=False)
        headers = {
            name: value
            for name, value in shown.headers
            if HIDDEN not in value
            and field_kind(name.encode("latin-1")) in _REPEATED
            and name.lower() not in _NOT_REPEATED
        }
        wanted = ForwardHTTPRequest(
            session_token=handle.token,
            method=shown.method,
            path=shown.target,
            headers={**headers, "Host": shown.host, SERVICE_FIELD.decode(): inspection.service},
            body=base64.b64encode(kept.body).decode("ascii") or None,
        )
        fields = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in shown.headers
        ]
        head = RequestHead(
            method=shown.method.encode("ascii"),
            target=shown.target.encode("latin-1"),
            version=b"1.1",
            headers=[pair for pair in fields if HIDDEN.encode() not in pair[1]],
        )
        again = inspection.tap(head, call.remote, shown.scheme)
        again.replay_of = kept.id
        again.asked(bytes(kept.body))
        try:
            response = await self._forwarder.forward(
                wanted, call.limits, call.http_limits, call.remote, handle
            )
        except ApiError as error:
            again.over(0, problem=error.message)
            raise
        again.take_answer(response.status, response.headers, base64.b64decode(response.body))
        return again

    def _find(self, call: Call) -> RunningInspection:
        inspection = self._inspector.get(call.parameters["id"])
        if inspection is None:
            raise ApiError("NOT_FOUND", "inspection not found")
        return inspection

    def _find_request(self, call: Call, inspection: RunningInspection) -> TappedRequest:
        kept = inspection.find(call.parameters["request"])
        if kept is None:
            raise ApiError("NOT_FOUND", "request not found")
        return kept
