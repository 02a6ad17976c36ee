"""Services of devices, for programs: HTTP, WebSockets and raw connections.

Only access tokens may use these: a page that a device sends must not run with the rights of the
person whose browser shows it. People reach devices by host name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Path, Request, WebSocket
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocketState

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.forwarding import (
    ForwardedResponse,
    refuse_websocket,
    relay_raw,
    relay_websocket,
)
from tunnelmux.api.problems import Refused, registry_refusal
from tunnelmux.api.rights import LOST, RightfulResponse
from tunnelmux.errors import RegistryError
from tunnelmux.registry import Device

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["forwarding"])

Operator = Annotated[Principal, need(Role.OPERATOR, "forward")]

DeviceId = Annotated[str, Path(max_length=64)]
Service = Annotated[str, Path(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

_DOTS = re.compile(rb"(?:^|/|%2f|\\|%5c)\.{1,2}(?:$|/|%2f|\\|%5c)", re.IGNORECASE)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def forward(
    request: Request, api: ApiDependency, principal: Operator, device_id: DeviceId, service: Service
) -> Response:
    """Pass a request on to a service of the device; both bodies are streamed."""
    device = await _device(api, principal, device_id)
    target = _target(request.scope, b"/http/" + service.encode("ascii"))
    answer = ForwardedResponse(
        api.proxies, device.label, service, target, api.config.proxies.forward_timeout
    )
    return RightfulResponse(api.rights, request, principal, answer)


_PATH_PARAMETER = {
    "name": "path",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "The path for the service, passed on unchanged.",
}

for _method in _METHODS:
    router.add_api_route(
        "/{device_id}/http/{service}/{path:path}",
        forward,
        methods=[_method],
        operation_id=f"forward_{_method.lower()}",
        response_class=Response,
        openapi_extra={"parameters": [_PATH_PARAMETER]},
    )


@router.websocket("/{device_id}/ws/{service}/{path:path}")
async def forward_websocket(
    websocket: WebSocket,
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    service: Service,
) -> None:
    """A WebSocket to a service of the device, message by message."""
    try:
        device = await _device(api, principal, device_id)
        target = _target(websocket.scope, b"/ws/" + service.encode("ascii"))
    except (Refused, RegistryError) as exc:
        await refuse_websocket(websocket, _as_refusal(exc))
        return

    async def work() -> None:
        await relay_websocket(api.proxies, device.label, service, websocket, target)

    await _relay(api, principal, websocket, work)


@router.websocket("/{device_id}/connect/{service}")
async def connect(
    websocket: WebSocket,
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    service: Service,
) -> None:
    """A raw connection to a service: binary messages hold its bytes; an empty message is the end of
    one direction."""
    try:
        device = await _device(api, principal, device_id)
    except (Refused, RegistryError) as exc:
        await refuse_websocket(websocket, _as_refusal(exc))
        return

    async def work() -> None:
        await relay_raw(api.proxies, device.label, service, websocket)

    await _relay(api, principal, websocket, work)


async def _relay(
    api: Api, principal: Principal, websocket: WebSocket, work: Callable[[], Awaitable[None]]
) -> None:
    if await api.rights.run(websocket, principal, work):
        return
    if websocket.application_state is WebSocketState.CONNECTED:
        with contextlib.suppress(RuntimeError):
            await websocket.close(1008, LOST)
    else:
        await refuse_websocket(websocket, Refused(401, "not_signed_in", f"{LOST.capitalize()}."))


def _as_refusal(exc: Refused | RegistryError) -> Refused:
    return exc if isinstance(exc, Refused) else registry_refusal(exc)


async def _device(api: Api, principal: Principal, device_id: str) -> Device:
    if principal.is_browser:
        message = (
            "Forwarding is for programs with an access token; what a device sends must not act "
            "as a page of this server. Open the device's own host name in the browser."
        )
        raise Refused(403, "token_needed", message)
    return await tenant_for(api, principal).devices.find(device_id)


def _target(scope: Scope, marker: bytes) -> bytes:
    """The path after the service, as the caller wrote it, with the query.

    Steps up are refused: targets read them in different ways, and a decoded `%2e%2e` would leave
    the service's own path.
    """
    raw: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    path = raw.split(marker, 1)[1] or b"/"
    if _DOTS.search(path.replace(b"%2e", b".").replace(b"%2E", b".")):
        raise Refused(400, "path_refused", 'The path has a "." or ".." step: write it without.')
    return path + (b"?" + query if query else b"")
