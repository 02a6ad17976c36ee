"""Health checks for load balancers and supervisors: alive, and ready."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from tunnelmux import __version__
from tunnelmux.api.access import AccessRoute
from tunnelmux.api.context import ApiDependency, MaybeSignedIn

router = APIRouter(prefix="/api", route_class=AccessRoute, tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: str
    version: str


@router.get("/health")
async def health(_principal: MaybeSignedIn) -> Health:
    """The process is alive."""
    return Health(status="ok", version=__version__)


@router.get("/ready")
async def ready(api: ApiDependency, _principal: MaybeSignedIn) -> Health:
    """The registry answers too; 503 when it does not."""
    await api.registry.check()
    return Health(status="ready", version=__version__)
