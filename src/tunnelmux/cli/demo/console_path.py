"""The main path through the console's demo, as checks: a person's first minutes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from tunnelmux.api.quickstart import OWNER
from tunnelmux.cli.demo.checks import Check, CheckFailed
from tunnelmux.cli.demo.console_cast import ACCOUNT, WAITING
from tunnelmux.cli.demo.console_stage import ConsoleStage
from tunnelmux.cli.demo.console_visitor import Visitor, expect_status, visiting

__all__ = ["console_checks"]

_TIMEOUT = 60.0
# Seconds for a step: the proxies write down what they see of devices some seconds late.

_LOOK = 0.2  # seconds between two looks at what no event tells


@asynccontextmanager
async def console_checks(stage: ConsoleStage, *, once: bool) -> AsyncIterator[list[Check]]:
    """The checks, for the length of the block. Without `once` those are left out that would take
    something from who looks around afterwards: the requests in the inbox, and a session."""
    async with visiting(stage.url) as visitor:
        path = _Path(stage, visitor)
        steps: list[tuple[str, str, Callable[[], Awaitable[str]], bool]] = [
            ("sign in", "the provider", path.sign_in, False),
            ("a call for help", "assist on, at till", path.see_who_asks, False),
            ("pair a device", "the inbox", path.pair, True),
            ("a page, signed in", "camera's own host name", path.open_page, False),
            ("a command", "/api/exec, SSH", path.execute, False),
            ("a terminal", "the gateway, recorded", path.use_terminal, False),
            ("approve a lease", "the inbox", path.approve, True),
            ("end a session", "the device's page", path.end_session, True),
        ]
        yield [
            Check(name, through, run, _TIMEOUT)
            for name, through, run, takes in steps
            if once or not takes
        ]


class _Path:
    """Each step is one method; later ones need the first."""

    def __init__(self, stage: ConsoleStage, visitor: Visitor) -> None:
        self._stage = stage
        self._visitor = visitor

    async def sign_in(self) -> str:
        await self._visitor.sign_in(OWNER)
        me = await self._visitor.api("GET", "/api/auth/me")
        page = await self._visitor.get("/")
        expect_status(page, 200)
        if "Overview" not in page.text:
            raise CheckFailed("the console's first page is another one")
        return f"as {OWNER}, role {me['role']}"

    async def see_who_asks(self) -> str:
        async def asking() -> Any:
            found = await self._visitor.api("GET", "/api/overview")
            return next((one for one in found["attention"] if one["until"]), None)

        one = await self._until(asking)
        return f"{one['device']} {one['state']}"

    async def pair(self) -> str:
        waiting = await self._until(self._waiting_device)
        await self._visitor.api("POST", f"/api/pairings/{waiting['id']}/approve", {"name": WAITING})
        await self._online(WAITING)
        return f"{WAITING} is let in, and connected"

    async def open_page(self) -> str:
        answer = await self._visitor.get(self._stage.page_url("camera"))
        expect_status(answer, 200)
        if "</html>" not in answer.text:
            raise CheckFailed("the page is not complete")
        return "200, after the edge's login"

    async def execute(self) -> str:
        answer = await self._visitor.api(
            "POST",
            "/api/exec",
            {
                "devices": ["camera"],
                "port": self._stage.shell_ports["camera"],
                "username": ACCOUNT,
                "privateKey": self._stage.shell_key.reveal(),
                "command": "uname",
            },
        )
        result = answer["results"]["camera"]
        if result.get("exitCode") != 0:
            raise CheckFailed(str(result.get("stderr") or result))
        return f"uname: {result['stdout'].split()[0]}, status 0"

    async def use_terminal(self) -> str:
        device = await self._online("camera")
        shown = await self._visitor.type_in_terminal(device["id"], ACCOUNT, "uptime")
        if "load" not in shown:
            raise CheckFailed(f"it shows {shown[-100:]!r}")
        return "uptime typed, its answer seen"

    async def approve(self) -> str:
        lease = await self._until(self._wished_lease)
        await self._visitor.api("POST", f"/api/leases/{lease['id']}/approve")

        async def running() -> Any:
            found = await self._visitor.api("GET", f"/api/leases/{lease['id']}")
            return found if found["state"] == "running" else None

        await self._until(running)
        return f"{lease['holder_name']} may, and the device agreed"

    async def end_session(self) -> str:
        device = await self._online("camera")
        before = await self._sessions(device["id"])
        closed = await self._visitor.api("POST", f"/api/devices/{device['id']}/session/close")
        if closed["closed"] != 1:
            raise CheckFailed(f"{closed['closed']} were ended")

        async def back() -> Any:
            return (await self._sessions(device["id"])) - before

        await self._until(back)
        return "ended, and the device is back with a new one"

    async def _sessions(self, device_id: str) -> set[str]:
        found = await self._visitor.api("GET", f"/api/devices/{device_id}/sessions")
        return {item["id"] for item in found["items"]}

    async def _waiting_device(self) -> Any:
        found = await self._visitor.api("GET", "/api/pairings?waiting=true")
        return next((item for item in found["items"] if item["name"] == WAITING), None)

    async def _wished_lease(self) -> Any:
        found = await self._visitor.api("GET", "/api/leases?living=true")
        return next((item for item in found["items"] if item["state"] == "requested"), None)

    async def _online(self, name: str) -> Any:
        async def look() -> Any:
            found = await self._visitor.api("GET", f"/api/devices?name={name}")
            return next((item for item in found["items"] if item["state"]["online"]), None)

        return await self._until(look)

    async def _until(self, look: Callable[[], Awaitable[Any]]) -> Any:
        while not (found := await look()):  # noqa: ASYNC110  the check has a deadline
            await trio.sleep(_LOOK)
        return found
