"""The OpenAPI 3.1 description of the API, at `/api/openapi.json`, made from the routes."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, Response

from tunnelmux.api.access import AccessRoute, is_public, required_access
from tunnelmux.api.browser_sessions.cookie import COOKIE
from tunnelmux.api.context import MaybeSignedIn
from tunnelmux.api.problems import MEDIA_TYPE, Problem
from tunnelmux.api.route_tree import leaves

__all__ = ["describe", "description_of"]


def describe(app: FastAPI) -> None:
    """Make *app* serve its own description; call it after all routes were included."""
    # Made at the first request: it takes a third of a second, and the start should not wait for it.
    document = functools.cache(lambda: description_of(app))
    router = APIRouter(route_class=AccessRoute)

    @router.get("/api/openapi.json", include_in_schema=False)
    async def openapi(_principal: MaybeSignedIn) -> Response:
        """This description."""
        return JSONResponse(document(), headers={"cache-control": "no-cache"})

    app.include_router(router)


def description_of(app: FastAPI) -> dict[str, Any]:
    """The description as plain data: every operation says who may call it and how it fails."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="People, devices and access: the control plane of tunnelmux.",
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    components["securitySchemes"] = {
        "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        "token": {"type": "http", "scheme": "bearer"},
    }
    access = {
        (route.path_format, method.lower()): required_access(route)
        for route in leaves(app.routes)
        if isinstance(route, AccessRoute)
        for method in route.methods or ()
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            need = access[path, method]
            operation["security"] = [] if is_public(path) else [{"cookie": []}, {"token": []}]
            if need.role is not None:
                operation["x-role"] = str(need.role)
            if need.scope is not None:
                operation["x-scope"] = need.scope
            _tell_failures(operation, open_to_all=is_public(path))
    return document


def _tell_failures(operation: dict[str, Any], *, open_to_all: bool) -> None:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses = operation["responses"]
    for response in responses.values():
        for described in response.get("content", {}).values():
            described.pop("itemSchema", None)  # a keyword of OpenAPI 3.2
    responses.pop("422", None)
    if not open_to_all:
        responses["401"] = {"description": "Not signed in.", "content": content}
    responses["default"] = {"description": "A problem document.", "content": content}
