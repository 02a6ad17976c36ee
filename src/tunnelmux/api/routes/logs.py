"""The log of a device's agent: `/api/devices/{device_id}/logs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import msgspec
import trio
from fastapi import APIRouter, Header, Path, Query, Request

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.event_stream import HEARTBEAT, EventStream, Say, sse
from tunnelmux.api.problems import Refused, unreachable_refusal
from tunnelmux.api.routes.events import end_with_rights, take_place
from tunnelmux.backend.agent_log import LogLine, LogRefused, read_log
from tunnelmux.errors import DeviceUnreachable
from tunnelmux.http import PeerGone
from tunnelmux.http.body import BadBody

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["logs"])

Operator = Annotated[Principal, need(Role.OPERATOR, "logs")]

DeviceId = Annotated[str, Path(max_length=64)]

_MOST_LINES = 100_000
# The most lines that a device can keep.

_LOST = (PeerGone, BadBody, trio.TooSlowError)


@router.get("/{device_id}/logs", response_class=EventStream, status_code=200)
async def read(
    request: Request,
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    lines: Annotated[int, Query(ge=0, le=_MOST_LINES)] = 100,
    follow: bool = False,
    last_event_id: Annotated[str, Header(max_length=64)] = "",
) -> EventStream:
    """The last lines of the agent's log as events `line`, and with `follow` also new ones. `begin`
    says where they begin, `missing` that some are no longer kept. With `Last-Event-ID`, only later
    lines are sent. The stream ends when the device disconnects, and when the reader's rights end.
    `[log] keep_lines` of the device sets how many lines are kept."""
    device = await tenant_for(api, principal).devices.find(device_id)
    over = await take_place(api, principal)

    async def write(say: Say) -> None:
        try:
            async with (
                api.proxies.stream_to(device.label) as stream,
                _opened(stream, wanted) as log,
            ):
                await _tell(say, request, api, principal, log)
        except DeviceUnreachable as exc:
            raise unreachable_refusal(exc) from exc

    wanted = _Wanted(lines=lines, follow=follow, after=last_event_id)
    return EventStream(write, over)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    lines: int
    follow: bool
    after: str


@asynccontextmanager
async def _opened(
    stream: trio.abc.Stream, wanted: _Wanted
) -> AsyncIterator[AsyncIterator[LogLine]]:
    async with AsyncExitStack() as stack:
        try:
            log = await stack.enter_async_context(
                read_log(stream, lines=wanted.lines, follow=wanted.follow, after=wanted.after)
            )
        except LogRefused as exc:
            said = str(exc).rstrip(".")
            raise Refused(409, "no_log", f"{said[:1].upper()}{said[1:]}.") from exc
        except _LOST as exc:
            message = "The device's connection was lost, or its agent does not answer."
            raise Refused(502, "proxy_away", message) from exc
        yield log


async def _tell(
    say: Say, request: Request, api: Api, principal: Principal, log: AsyncIterator[LogLine]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with_rights, request, api, principal, nursery.cancel_scope)
        nursery.start_soon(_keep_alive, say)
        await say(": reading\n\n")
        try:
            async for line in log:
                kind = "missing" if line.missing else "line" if line.event else "begin"
                await say(sse(kind, msgspec.json.encode(line).decode(), line.position))
        except _LOST:
            pass  # this ends the stream: the reader asks again
        nursery.cancel_scope.cancel()


async def _keep_alive(say: Say) -> None:
    while True:
        await trio.sleep(HEARTBEAT)
        await say(": still here\n\n")
