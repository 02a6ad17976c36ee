"""Calls that are about all workers of a proxy, answered by the one that was called.

Each worker knows its own sessions, visits and counters. The one that a caller came to asks the
others the same, and makes one answer of all; what only one of them can answer, it passes on.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Awaitable, Callable

import msgspec

from tunnelmux.observability.sums import add_up
from tunnelmux.proxy.internal.answers import Answer, ApiError
from tunnelmux.proxy.internal.bodies import SessionList, VisitList
from tunnelmux.proxy.internal.body import read_whole_body
from tunnelmux.proxy.internal.device_traffic import moved
from tunnelmux.proxy.internal.inspections import LARGEST_CALL, InspectionDetails, InspectionList
from tunnelmux.proxy.internal.queries import TrafficQuery, VisitsQuery, read_query
from tunnelmux.proxy.internal.routes import Call, Others
from tunnelmux.sessions.decisions import Decision
from tunnelmux.sessions.inspections import Inspection
from tunnelmux.sessions.traffic import DeviceTraffic, OtherTraffic, TrafficList

__all__ = [
    "Gather",
    "all_inspections",
    "all_of_one",
    "decision",
    "everywhere",
    "figures",
    "holder",
    "sessions",
    "traffic",
    "visits",
]

_OK = 200

_Plain = Callable[[Call], Awaitable[Answer]]

Gather = Callable[[_Plain, Call], Awaitable[Answer]]
"""Makes one answer of this worker's plain one and those of the others."""


def _others(call: Call) -> Others:
    assert call.others is not None  # it is gathered for
    return call.others


async def _ask(call: Call) -> list[Answer]:
    method = b"GET" if call.request.method == b"HEAD" else call.request.method
    return await _others(call).ask_all(method, call.request.target, call.body or b"")


async def holder(plain: _Plain, call: Call) -> Answer:
    """The answer of the one worker that has what is asked about."""
    try:
        return await plain(call)
    except ApiError as error:
        if error.code != "NOT_FOUND":
            raise
        for answer in await _ask(call):
            if answer.status != error.status:
                return answer
        raise


async def everywhere(plain: _Plain, call: Call) -> Answer:
    """Have all do it; the answer is the own one, if the others have done it as well."""
    over = ApiError("BODY_TOO_LARGE", f"the call has more than {LARGEST_CALL} bytes")
    call = dataclasses.replace(call, body=await read_whole_body(call, most=LARGEST_CALL, over=over))
    own: Answer | None = None
    problem: ApiError | None = None
    try:
        own = await plain(call)
    except ApiError as error:
        if error.code != "NOT_FOUND":
            raise
        problem = error
    for answer in await _ask(call):
        if own is None or answer.status not in (own.status, 404):
            own = answer
    if problem is not None and (own is None or own.status == problem.status):
        raise problem
    assert own is not None
    return own


async def _bodies(plain: _Plain, call: Call) -> list[bytes]:
    """Of all that have an answer, the own one first. Raises the own error where none has."""
    own: Answer | None = None
    problem: ApiError | None = None
    try:
        own = await plain(call)
    except ApiError as error:
        if error.code != "NOT_FOUND":
            raise
        problem = error
    found = [] if own is None else [own.body]
    found += [one.body for one in await _ask(call) if one.status == _OK]
    if problem is not None and not found:
        raise problem
    return found


async def sessions(plain: _Plain, call: Call) -> Answer:
    """GET /internal/sessions."""
    lists = [msgspec.json.decode(one, type=SessionList) for one in await _bodies(plain, call)]
    found = sorted((s for one in lists for s in one.sessions), key=lambda s: s.device_id)
    return Answer.of(SessionList(found, len(found)))


async def visits(plain: _Plain, call: Call) -> Answer:
    """GET /internal/visits."""
    lists = [msgspec.json.decode(one, type=VisitList) for one in await _bodies(plain, call)]
    found = sorted((visit for one in lists for visit in one.visits), key=lambda v: v.since)
    most = read_query(call.query, VisitsQuery).limit
    return Answer.of(VisitList(found[:most], sum(one.total for one in lists)))


async def traffic(plain: _Plain, call: Call) -> Answer:
    """GET /internal/traffic."""
    lists = [msgspec.json.decode(one, type=TrafficList) for one in await _bodies(plain, call)]
    devices = [device for one in lists for device in one.devices]
    shown = heapq.nlargest(read_query(call.query, TrafficQuery).top, devices, key=moved)
    ours = [one for one in devices if one not in shown]
    rest = [one.rest for one in lists]
    parts: list[OtherTraffic | DeviceTraffic] = [*rest, *ours]
    other = OtherTraffic(
        devices=sum(one.devices for one in rest) + len(ours),
        bytes_to_device=sum(one.bytes_to_device for one in parts),
        bytes_from_device=sum(one.bytes_from_device for one in parts),
    )
    return Answer.of(TrafficList(shown, other))


async def decision(plain: _Plain, call: Call) -> Answer:
    """GET /internal/access. Each worker follows the registry by itself, so one may know of a change
    a moment before the others. A visitor may come to any of them: until all would let the person
    in, the answer is the refusal."""
    found = [msgspec.json.decode(one, type=Decision) for one in await _bodies(plain, call)]
    return Answer.of(next((one for one in found if not one.allowed), found[0]))


async def all_inspections(plain: _Plain, call: Call) -> Answer:
    """GET /internal/inspections: each is the same at all workers, which count their own."""
    found: dict[str, Inspection] = {}
    for body in await _bodies(plain, call):
        for one in msgspec.json.decode(body, type=InspectionList).inspections:
            known = found.get(one.id)
            found[one.id] = one if known is None else known.with_more(one)
    return Answer.of(InspectionList(list(found.values())))


async def all_of_one(plain: _Plain, call: Call) -> Answer:
    """GET /internal/inspections/{id}."""
    own, *more = [
        msgspec.json.decode(body, type=InspectionDetails) for body in await _bodies(plain, call)
    ]
    inspection, requests = own.inspection, list(own.requests)
    for one in more:
        inspection = inspection.with_more(one.inspection)
        requests += one.requests
    requests.sort(key=lambda request: request.at, reverse=True)
    return Answer.of(InspectionDetails(inspection, requests))


async def figures(plain: _Plain, call: Call) -> Answer:
    """GET /metrics: the sum of all, and of what has ended."""
    own = await plain(call)
    others = [one.body for one in await _ask(call) if one.status == _OK]
    ended = await _others(call).ended_figures()
    return dataclasses.replace(own, body=add_up([own.body, *others, ended]))
