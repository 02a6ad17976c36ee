"""Ids of another tenant, wherever a route takes one: as if there were no such thing.

The calls are made from the route table: each parameter of each path, each parameter of a query and
each field of a body is given each id of the other tenant.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from fastapi.params import Form

from support.apis import LiveApi, live_api
from support.tenants import BODIES, Person, everything, objects_of, person
from tunnelmux.api.access import Role, required_access
from tunnelmux.api.app import application
from tunnelmux.api.route_tree import leaves
from tunnelmux.config.api import ApiLimits

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")

_UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}

_NO_RECORDS = frozenset({"path", "service", "version", "name", "serial"})
_NOT_KEPT = frozenset({"visit_id", "command_id", "inspection_id", "request_id", "session_id"})
# Ids of what no tenant's records have: no id of the other tenant can be one.

_IN_A_BROWSER = "/api/devices/{device_id}/terminal"
# Refused to a program before any id is looked at.


@dataclass
class Stage:
    """A tenant with one object of each kind, and its members who want those of another one."""

    api: LiveApi
    victim: Person
    theirs: dict[str, str]
    mine: dict[str, str]
    attackers: dict[Role, Person]

    def routes(self) -> Iterator[tuple[str, Any]]:
        """Every (method, route); a WebSocket's handshake is a GET."""
        for route in leaves(application(self.api.running.api).routes):
            for method in sorted(getattr(route, "methods", None) or {"WS"}):
                yield method, route

    async def call(
        self, method: str, path: str, values: dict[str, str], role: Role, **options: Any
    ) -> httpx2.Response:
        """What a member with this role gets; no text of the other tenant may be in it."""
        shown = {"authorization": f"Bearer {self.attackers[role].token}"}
        if method == "WS":
            method, shown = "GET", shown | _UPGRADE
        url = self.api.base + _PARAMETER.sub(lambda match: values.get(match[1], "x"), path)
        is_endless = path.endswith(("/events", "/requests"))
        with trio.move_on_after(0.3 if is_endless else 30):
            answer = await self.api.client.request(method, url, headers=shown, **options)
            assert "hidden" not in answer.text, (method, url, role, options, answer.text)
            assert "victim" not in answer.text, (method, url, role, options, answer.text)
            return answer
        return httpx2.Response(200)


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    limits = ApiLimits(max_changes_per_minute=1_000_000)
    async with live_api(folder, limits=limits) as api:
        victim = await person(api, "victim", tenant="victims")
        theirs = await objects_of(api, victim, "hidden")
        attackers = {
            role: await person(api, f"mallory-{role}", str(role), tenant="attackers")  # type: ignore[arg-type]
            for role in Role
        }
        mine = await objects_of(api, attackers[Role.OWNER], "mine")
        before = await everything(api, victim)
        yield Stage(api, victim, theirs, mine, attackers)
        assert await everything(api, victim) == before


@pytest.mark.slow
@pytest.mark.parametrize("role", list(Role), ids=str)
async def test_in_a_path(tmp_path: Path, role: Role) -> None:
    async with stage(tmp_path) as here:
        tried = 0
        for method, route in here.routes():
            named = set(_PARAMETER.findall(route.path)) - _NO_RECORDS - _NOT_KEPT
            assert named <= set(here.theirs), f"{route.path}: objects_of makes no such object"
            body = BODIES.get(f"{method} {route.path}", {})
            # Each one alone, too: their link, of my device.
            for foreign in ({name} for name in named):
                values = here.mine | {name: here.theirs[name] for name in foreign}
                answer = await here.call(method, route.path, values, role, json=body)
                told = (method, route.path, foreign, answer.status_code, answer.text)
                # Else a client would send its next request into a connection that is closed.
                assert method != "WS" or answer.headers["connection"] == "close", told
                least = required_access(route).role
                may = least is None or role >= least
                if may and route.path == _IN_A_BROWSER:
                    assert "no_browser_session" in answer.text, told
                else:
                    assert answer.status_code == (404 if may else 403), told
                tried += 1
        assert tried > 70


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("role", [Role.VIEWER, Role.OWNER], ids=str)
async def test_in_a_query(tmp_path: Path, role: Role) -> None:
    async with stage(tmp_path) as here:
        tried = 0
        for method, route in here.routes():
            if method != "GET" or route.path.startswith("/static"):
                continue
            for name, value in product(query_of(route), sorted(set(here.theirs.values()))):
                await here.call(method, route.path, here.mine, role, params={name: value})
                tried += 1
        assert tried > 400


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_in_a_body(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        tried = set()
        for method, route in here.routes():
            fields = fields_of(route)
            if not fields:
                continue
            said = f"{method} {route.path}"
            base = filled(BODIES[said], here.mine)
            for (name, kind), value in product(fields.items(), sorted(set(here.theirs.values()))):
                body = base | {name: as_kind(kind, value)}
                await here.call(method, route.path, here.mine, Role.OWNER, json=body)
            tried.add(said)
        assert tried == set(BODIES)


def query_of(route: Any) -> list[str]:
    dependants = [route.dependant, *route.dependant.dependencies]
    return [field.alias for one in dependants for field in one.query_params]


def fields_of(route: Any) -> dict[str, Any]:
    """The names and types of the fields of a route's JSON."""
    field = getattr(route, "body_field", None)
    if field is not None and isinstance(field.field_info, Form):
        return {}
    model = field.field_info.annotation if field is not None else None
    while typing.get_origin(model) is not None:  # one that may be left out
        model = next(one for one in typing.get_args(model) if one is not type(None))
    fields = getattr(model, "model_fields", {})
    return {name: one.annotation for name, one in fields.items()}


def as_kind(kind: Any, value: str) -> Any:
    """An id as a field of this type takes it."""
    origin = typing.get_origin(kind)
    if origin in {typing.Union, types.UnionType}:
        return as_kind(typing.get_args(kind)[0], value)
    if origin is typing.Annotated:
        return as_kind(typing.get_args(kind)[0], value)
    return [value] if origin is list else {"a": value} if origin is dict else value


def filled(body: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    """A body with its ids in place."""

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(one) for one in value]
        return value.format(**values) if isinstance(value, str) and value[:1] == "{" else value

    return {name: fill(value) for name, value in body.items()}
