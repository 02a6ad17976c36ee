"""The inspector: requests to one service of a device, kept for a time at the proxies.

An operator starts each inspection. The audit has an entry for its start, its end and each repeated
request. Proxies keep the requests that they carried in memory, and drop them at the end.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, TypeVar

import trio
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import ExactInput
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.errors import ConnectError, SessionNotFound
from tunnelmux.registry import Device, new_id
from tunnelmux.sessions import RequestFilter, RequestSeen
from tunnelmux.sessions import inspections as kept

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["inspections"])

Operator = Annotated[Principal, need(Role.OPERATOR, "inspect")]

DeviceId = Annotated[str, Path(max_length=64)]
InspectionId = Annotated[str, Path(max_length=64)]
RequestId = Annotated[str, Path(max_length=64)]

T = TypeVar("T")

_LONGEST = 3600
# Seconds: the default limit of a proxy.


class NewInspection(ExactInput):
    """The service to inspect."""

    service: Annotated[str, Field(min_length=1, max_length=63)]
    seconds: Annotated[int, Field(ge=10, le=_LONGEST)] = 600
    bodies: bool = False
    """Whether bodies are kept too, up to 64 KiB each. Secrets in them are not hidden."""


class Inspection(BaseModel):
    """One service under inspection."""

    id: str
    device_id: str
    device: str
    service: str
    began: datetime
    until: datetime
    bodies: bool
    asked_by: str
    seen: int
    forgotten: int


class InspectedRequest(BaseModel):
    """One request and its answer, with `***` in place of possible secrets. `answered_after` and
    `seconds` are seconds from its beginning; bodies are base64."""

    id: str
    at: datetime
    visitor: str
    scheme: str
    host: str
    method: str
    target: str
    headers: list[tuple[str, str]]
    status: int
    reason: str
    answer_headers: list[tuple[str, str]]
    bytes_in: int
    bytes_out: int
    answered_after: float | None
    seconds: float | None
    is_websocket: bool
    messages_in: int
    messages_out: int
    problem: str
    replay_of: str


class WholeRequest(InspectedRequest):
    """The same with its bodies, as far as they were kept, and with a shell command that sends
    it."""

    body: str | None
    answer_body: str | None
    curl: str


class InspectionDetails(Inspection):
    """An inspection with its requests, the newest first."""

    requests: list[InspectedRequest]


@router.post("/{device_id}/inspections", status_code=201)
async def begin_inspection(
    api: ApiDependency, principal: Operator, device_id: DeviceId, wanted: NewInspection
) -> Inspection:
    """Keep the requests to a service for a time. An earlier inspection of the service ends. While
    it runs, the service's requests are slower, because each is read."""
    tenant = tenant_for(api, principal)
    device = await tenant.devices.find(device_id)
    inspection_id = new_id()
    # The audit entry comes first: nothing may be inspected without one.
    details: dict[str, object] = {
        "inspection": inspection_id,
        "service": wanted.service,
        "seconds": wanted.seconds,
        "bodies": wanted.bodies,
    }
    await tenant.audit.note(
        "inspection.begin", object_kind="device", object_id=device.id, details=details
    )

    async def begin(client: ProxyClient) -> kept.Inspection:
        return await client.begin_inspection(
            inspection_id,
            device.label,
            wanted.service,
            wanted.seconds,
            bodies=wanted.bodies,
            askedBy=principal.name[:128],
        )

    begun, problems = await _ask_all(api, begin)
    if not begun:
        problem = problems[0] if problems else "there is no proxy"
        raise Refused(502, "proxy_away", f"No proxy inspects the service: {problem}.")
    return _inspection(device, begun)


@router.get("/{device_id}/inspections")
async def list_inspections(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> list[Inspection]:
    """The inspections of a device that run now, the oldest first."""
    device = await tenant_for(api, principal).devices.find(device_id)
    answers, _ = await _ask_all(api, ProxyClient.list_inspections)
    by_id: dict[str, list[kept.Inspection]] = {}
    for found in (one for answer in answers for one in answer if one.device == device.label):
        by_id.setdefault(found.id, []).append(found)
    return sorted(
        (_inspection(device, found) for found in by_id.values()), key=lambda one: one.began
    )


@router.get("/{device_id}/inspections/{inspection_id}")
async def get_inspection(
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    inspection_id: InspectionId,
    method: Annotated[str, Query(max_length=32)] = "",
    status: Annotated[str, Query(max_length=64)] = "",
    path: Annotated[str, Query(max_length=256)] = "",
) -> InspectionDetails:
    """An inspection with its requests, without bodies. `method`, `status` and `path` select
    requests, the last two as for `/requests`."""
    device = await tenant_for(api, principal).devices.find(device_id)
    try:
        wanted = RequestFilter.parse({"status": status, "path": path})
    except ValueError as error:
        raise Refused(422, "invalid_filter", f"{error}.") from None
    found = await _details(api, device, inspection_id)
    requests = [
        one
        for _, requests in found
        for one in requests
        if method.upper() in ("", one.method) and wanted.matches(_seen(one))
    ]
    requests.sort(key=lambda one: one.at, reverse=True)
    inspection = _inspection(device, [one for one, _ in found])
    return InspectionDetails(
        **inspection.model_dump(), requests=[_request(one) for one in requests]
    )


@router.get("/{device_id}/inspections/{inspection_id}/requests/{request_id}")
async def get_request(
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    inspection_id: InspectionId,
    request_id: RequestId,
) -> WholeRequest:
    """One request, with the bodies that were kept."""
    device = await tenant_for(api, principal).devices.find(device_id)
    client, _ = await _holder(api, device, inspection_id, request_id)
    return _whole(await client.inspected_request(inspection_id, request_id))


@router.post("/{device_id}/inspections/{inspection_id}/requests/{request_id}/replay")
async def replay_request(
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    inspection_id: InspectionId,
    request_id: RequestId,
) -> WholeRequest:
    """Send a request once more through the tunnel, without the parts that were hidden."""
    tenant = tenant_for(api, principal)
    device = await tenant.devices.find(device_id)
    client, known = await _holder(api, device, inspection_id, request_id)
    details: dict[str, object] = {
        "inspection": inspection_id,
        "request": request_id,
        "method": known.method,
        "path": known.target.partition("?")[0][:256],
    }
    await tenant.audit.note(
        "inspection.replay", object_kind="device", object_id=device.id, details=details
    )
    try:
        return _whole(await client.inspected_request(inspection_id, request_id, replay=True))
    except SessionNotFound:
        raise _no_inspection() from None
    except ApiCallFailed as error:
        status, code = (409, "not_repeatable") if error.status == 400 else (502, "proxy_away")
        raise Refused(status, code, f"It was not sent again: {error}.") from None
    except ConnectError as error:
        raise Refused(502, "proxy_away", f"The proxy was lost: {error}.") from None


@router.delete("/{device_id}/inspections/{inspection_id}", status_code=204)
async def end_inspection(
    api: ApiDependency, principal: Operator, device_id: DeviceId, inspection_id: InspectionId
) -> None:
    """End an inspection now; the requests that it kept are dropped."""
    tenant = tenant_for(api, principal)
    device = await tenant.devices.find(device_id)
    await _details(api, device, inspection_id)

    async def end(client: ProxyClient) -> None:
        await client.end_inspection(inspection_id)

    await _ask_all(api, end)
    details: dict[str, object] = {"inspection": inspection_id}
    await tenant.audit.note(
        "inspection.end", object_kind="device", object_id=device.id, details=details
    )


async def _ask_all(
    api: Api, ask: Callable[[ProxyClient], Awaitable[T]]
) -> tuple[list[T], list[str]]:
    """The answers of the proxies, and the problems of those that did not answer."""
    answers: list[T] = []
    problems: list[str] = []

    async def one(client: ProxyClient) -> None:
        try:
            answers.append(await ask(client))
        except (ConnectError, ApiCallFailed, SessionNotFound) as exc:
            problems.append(str(exc))

    async with trio.open_nursery() as nursery:
        for client in await api.proxies.clients():
            nursery.start_soon(one, client)
    return answers, problems


async def _details(
    api: Api, device: Device, inspection_id: str
) -> list[tuple[kept.Inspection, list[kept.InspectedRequest]]]:
    """The inspection at each proxy; raises Refused when it is over, or about another device."""

    async def get(
        client: ProxyClient,
    ) -> tuple[kept.Inspection, list[kept.InspectedRequest]]:
        return await client.get_inspection(inspection_id)

    answers, _ = await _ask_all(api, get)
    found = [answer for answer in answers if answer[0].device == device.label]
    if not found:
        raise _no_inspection()
    return found


async def _holder(
    api: Api, device: Device, inspection_id: str, request_id: str
) -> tuple[ProxyClient, kept.InspectedRequest]:
    """The proxy that keeps a request, and the request without bodies."""

    async def get(
        client: ProxyClient,
    ) -> tuple[ProxyClient, kept.Inspection, list[kept.InspectedRequest]]:
        return (client, *await client.get_inspection(inspection_id))

    answers, _ = await _ask_all(api, get)
    for client, inspection, requests in answers:
        if inspection.device == device.label:
            for request in requests:
                if request.id == request_id:
                    return client, request
    raise _no_inspection()


def _no_inspection() -> Refused:
    return Refused(404, "not_found", "There is no such inspection, or it is over.")


def _inspection(device: Device, found: list[kept.Inspection]) -> Inspection:
    """The parts at several proxies, as one inspection."""
    first = found[0]
    return Inspection(
        id=first.id,
        device_id=device.id,
        device=device.name,
        service=first.service,
        began=min(one.began for one in found),
        until=max(one.until for one in found),
        bodies=first.bodies,
        asked_by=first.asked_by,
        seen=sum(one.seen for one in found),
        forgotten=sum(one.forgotten for one in found),
    )


def _seen(one: kept.InspectedRequest) -> RequestSeen:
    path = one.target.partition("?")[0]
    return RequestSeen(at=one.at, way="http", status=one.status, path=path)


def _request(one: kept.InspectedRequest) -> InspectedRequest:
    return InspectedRequest(**{name: getattr(one, name) for name in InspectedRequest.model_fields})


def _whole(one: kept.InspectedRequest) -> WholeRequest:
    return WholeRequest(
        **_request(one).model_dump(),
        body=_base64(one.body),
        answer_body=_base64(one.answer_body),
        curl=kept.curl_command(one),
    )


def _base64(body: bytes | None) -> str | None:
    return None if body is None else base64.b64encode(body).decode("ascii")
