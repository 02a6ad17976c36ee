"""Rules that hold for every route there is, made from the route table itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIWebSocketRoute

from support.apis import LiveApi, live_api
from support.tenants import BODIES, TEST, objects_of, person
from tunnelmux.api.access import AccessRoute, Role, is_public, need, required_access, seal
from tunnelmux.api.app import application
from tunnelmux.api.route_tree import leaves
from tunnelmux.registry import new_id

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")


def routes(api: LiveApi) -> list[tuple[str, Any]]:
    """Every (method, route); the method of a WebSocket is "WS"."""
    found: list[tuple[str, Any]] = []
    for route in leaves(application(api.running.api).routes):
        if isinstance(route, APIWebSocketRoute):
            found.append(("WS", route))
        else:
            found += [(method, route) for method in sorted(route.methods)]
    assert len(found) > 50
    return found


def path_of(route: Any, values: dict[str, str]) -> str:
    return _PARAMETER.sub(lambda match: values.get(match[1], "x"), route.path)


async def status_of(api: LiveApi, method: str, path: str, token: str = "") -> int:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    if method == "WS":
        method = "GET"
        headers |= {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
    return (await api.client.request(method, api.base + path, headers=headers)).status_code


async def test_every_route_asks_who_you_are(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        for method, route in routes(api):
            path = path_of(route, {})
            status = await status_of(api, method, path)
            if is_public(path):
                assert status != 401, (method, path)
            else:
                assert status == 401, (method, path, status)
        for path in ("/", "/api/nothing", "/api/devices/%2e%2e/health", "/api/health/"):
            assert await status_of(api, "GET", path) == 401, path


async def test_no_route_lets_a_lesser_role_in(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        people = {role: await person(api, str(role), str(role)) for role in Role}  # type: ignore[arg-type]
        for method, route in routes(api):
            least = required_access(route).role
            for role, someone in people.items():
                if least is None or role >= least or method == "WS":
                    continue
                values = {"device_id": new_id(), "service": "web"}
                status = await status_of(api, method, path_of(route, values), someone.token)
                assert status in {403, 422}, (method, route.path, role, status)


async def test_no_route_works_without_its_scope(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        owner = await person(api, "owner")
        tenant = api.running.api.registry.tenant(owner.tenant_id, TEST)
        for method, route in routes(api):
            scope = required_access(route).scope
            if scope is None or method == "WS":
                continue
            _, token = await tenant.access_tokens.add(
                "limited", user_id=owner.user_id, role="owner", scopes=("none",)
            )
            status = await status_of(api, method, path_of(route, {}), token.reveal())
            assert status in {403, 422}, (method, route.path, status)


async def test_no_cache_keeps_what_a_route_answers(tmp_path: Path) -> None:
    """Neither a browser's nor a proxy's: answers have tokens, invitations and people in them."""
    async with live_api(tmp_path) as api:
        owner = await person(api, "owner")
        values = {"version": "0" * 12, "name": "app.css"} | await objects_of(api, owner)
        seen = set()
        # Signing out ends the token, and so comes last.
        for method, route in sorted(routes(api), key=lambda one: "/logout" in one[1].path):
            if method == "WS" or is_endless(route.path):
                continue
            path = path_of(route, values)
            body = BODIES.get(f"{method} {route.path}", {})
            for token in (owner.token, ""):
                answer = await api.call(method, path, token, json=body)
                kept = "no-cache" if path == "/api/openapi.json" else "no-store"
                about = (method, path, answer.status_code)
                assert answer.headers["cache-control"] == kept, about
                seen.add(answer.status_code)
        assert {200, 201, 303, 401, 404, 422} <= seen


def is_endless(path: str) -> bool:
    """Whether the answer ends only when the caller leaves."""
    return path.endswith("/events") or "/requests" in path


def test_a_route_without_an_access_rule_cannot_be_registered() -> None:
    router = APIRouter(route_class=AccessRoute)

    async def open_to_all() -> None: ...

    def synchronous(_principal: Annotated[Any, need(Role.VIEWER, "self")]) -> None: ...

    async def twice(
        _one: Annotated[Any, need(Role.VIEWER, "self")],
        _two: Annotated[Any, need(Role.OWNER, "self")],
    ) -> None: ...

    for endpoint in (open_to_all, synchronous, twice):
        with pytest.raises(TypeError):
            router.get("/x")(endpoint)


def test_a_router_of_another_class_is_found() -> None:
    async def endpoint(_principal: Annotated[Any, need(Role.VIEWER, "self")]) -> None: ...

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    router = APIRouter()
    router.get("/x")(endpoint)
    app.include_router(router)
    with pytest.raises(TypeError):
        seal(app)
