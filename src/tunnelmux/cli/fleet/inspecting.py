"""The inspector of a fleet: requests to a service, kept for a while, by either way to reach it."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

import msgspec

from tunnelmux.backend import ApiCallFailed
from tunnelmux.cli.fleet.by_api import ApiFleet
from tunnelmux.cli.fleet.by_proxy import ProxyFleet
from tunnelmux.cli.fleet.errors import FleetError, NoSuchThing
from tunnelmux.cli.fleet.fleet import Fleet
from tunnelmux.errors import SessionNotFound
from tunnelmux.sessions import inspections as kept

__all__ = ["InspectedRequest", "Inspection", "Inspector", "inspector_of"]

T = TypeVar("T")


class Inspection(msgspec.Struct, kw_only=True):
    """One service under inspection. `seen` counts the requests since it began, `forgotten` those
    that were dropped for newer ones."""

    id: str
    device: str
    service: str
    began: datetime
    until: datetime
    bodies: bool
    asked_by: str
    seen: int
    forgotten: int


class InspectedRequest(msgspec.Struct, kw_only=True):
    """A request and its answer, with `***` for what may be a secret; sizes in bytes, times in
    seconds. Bodies (base64 in JSON) and `curl` are set only when one request is asked for."""

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
    body: bytes | None = None
    answer_body: bytes | None = None
    curl: str = ""


class Inspector(abc.ABC):
    """Its operations. Calls raise as those of `Fleet`, and NoSuchThing for an inspection
    that is over."""

    @abc.abstractmethod
    async def begin(
        self, device: str, service: str, seconds: float, *, bodies: bool, asked_by: str
    ) -> Inspection:
        """Keep the requests to a service from now on."""

    @abc.abstractmethod
    async def running(self, device: str) -> list[Inspection]:
        """What is inspected of a device."""

    @abc.abstractmethod
    async def requests(self, inspection: Inspection) -> list[InspectedRequest]:
        """What was kept, the newest first, without bodies."""

    @abc.abstractmethod
    async def request(
        self, inspection: Inspection, request_id: str, *, replay: bool = False
    ) -> InspectedRequest:
        """One request with its bodies; with `replay`, the result of sending it again."""

    @abc.abstractmethod
    async def end(self, inspection: Inspection) -> None:
        """End it; what it kept is forgotten."""


def inspector_of(fleet: Fleet) -> Inspector:
    """That of this fleet."""
    if isinstance(fleet, ApiFleet):
        return _ApiInspector(fleet)
    assert isinstance(fleet, ProxyFleet)
    return _ProxyInspector(fleet)


class _Requests(msgspec.Struct):
    requests: list[InspectedRequest]


class _ApiInspector(Inspector):
    def __init__(self, fleet: ApiFleet) -> None:
        self._fleet = fleet
        self._client = fleet.client

    async def begin(
        self, device: str, service: str, seconds: float, *, bodies: bool, asked_by: str
    ) -> Inspection:
        del asked_by  # the API knows who asks
        wanted = {"service": service, "seconds": round(seconds), "bodies": bodies}
        return await self._client.post(await self._path(device), Inspection, wanted)

    async def running(self, device: str) -> list[Inspection]:
        return await self._client.get(await self._path(device), list[Inspection])

    async def requests(self, inspection: Inspection) -> list[InspectedRequest]:
        return (await self._client.get(await self._of(inspection), _Requests)).requests

    async def request(
        self, inspection: Inspection, request_id: str, *, replay: bool = False
    ) -> InspectedRequest:
        path = f"{await self._of(inspection)}/requests/{quote(request_id, safe='')}"
        if replay:
            return await self._client.post(f"{path}/replay", InspectedRequest)
        return await self._client.get(path, InspectedRequest)

    async def end(self, inspection: Inspection) -> None:
        await self._client.call("DELETE", await self._of(inspection))

    async def _path(self, device: str) -> str:
        return f"/api/devices/{await self._fleet.find_id(device)}/inspections"

    async def _of(self, inspection: Inspection) -> str:
        return f"{await self._path(inspection.device)}/{inspection.id}"


class _ProxyInspector(Inspector):
    def __init__(self, fleet: ProxyFleet) -> None:
        self._fleet = fleet
        self._client = fleet.client

    async def begin(
        self, device: str, service: str, seconds: float, *, bodies: bool, asked_by: str
    ) -> Inspection:
        await self._fleet.device(device)
        begun = await self._call(
            lambda: self._client.begin_inspection(
                uuid4().hex, device, service, seconds, bodies=bodies, askedBy=asked_by
            )
        )
        return _inspection(begun)

    async def running(self, device: str) -> list[Inspection]:
        found = await self._call(self._client.list_inspections)
        return [_inspection(one) for one in found if one.device == device]

    async def requests(self, inspection: Inspection) -> list[InspectedRequest]:
        _, found = await self._call(lambda: self._client.get_inspection(inspection.id))
        return [_request(one) for one in found]

    async def request(
        self, inspection: Inspection, request_id: str, *, replay: bool = False
    ) -> InspectedRequest:
        found = await self._call(
            lambda: self._client.inspected_request(inspection.id, request_id, replay=replay)
        )
        return _request(found, curl=kept.curl_command(found))

    async def end(self, inspection: Inspection) -> None:
        await self._call(lambda: self._client.end_inspection(inspection.id))

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._fleet.ask(call)
        except SessionNotFound as exc:
            raise NoSuchThing("the inspection has ended, and its requests are gone") from exc
        except ApiCallFailed as exc:
            raise FleetError(str(exc), code=exc.code) from exc


def _inspection(one: kept.Inspection) -> Inspection:
    return Inspection(**msgspec.structs.asdict(one))


def _request(one: kept.InspectedRequest, curl: str = "") -> InspectedRequest:
    return InspectedRequest(**msgspec.structs.asdict(one), curl=curl)
