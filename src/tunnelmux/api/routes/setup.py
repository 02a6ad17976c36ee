"""The set-up check: `/api/setup`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import ApiDependency
from tunnelmux.api.setup import SetupFinding, check_setup

router = APIRouter(prefix="/api/setup", route_class=AccessRoute, tags=["set-up"])

Admin = Annotated[Principal, need(Role.ADMIN, "tenant")]


@router.get("")
async def get_setup(api: ApiDependency, _principal: Admin) -> list[SetupFinding]:
    """Check the registry, the provider, names, certificate, proxies, visitors, gateway and
    recordings now; this takes at most 5 seconds."""
    return await check_setup(api)
