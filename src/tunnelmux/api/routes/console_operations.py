"""The console's pages about what was done and what it stands on: recordings, the set-up."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from tunnelmux.api.access import Principal, Role, need
from tunnelmux.api.context import ApiDependency
from tunnelmux.api.records import TEXT, After
from tunnelmux.api.routes import recordings
from tunnelmux.api.routes.console import PageRoute, console_assets, frame_of, show
from tunnelmux.api.setup import check_setup

router = APIRouter(route_class=PageRoute, include_in_schema=False)

Viewer = Annotated[Principal, need(Role.VIEWER, "recordings")]
Admin = Annotated[Principal, need(Role.ADMIN, "tenant")]

_ROWS = 50


@router.get("/recordings")
async def recording_list(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    q: Annotated[str, Query(max_length=64, pattern=TEXT)] = "",
    device: Annotated[str, Query(max_length=64, pattern=TEXT)] = "",
    after: After = None,
) -> Response:
    """Recorded sessions, the newest first."""
    me = await frame_of(request, api, principal)
    found = await recordings.list_recordings(
        api, principal, device_id=device, text=q, limit=_ROWS, after=after
    )
    more = urlencode({"q": q, "device": device, "after": found.next}) if found.next else ""
    return show(
        "recordings", "/recordings", me, recordings=found.items, q=q, device=device, more=more
    )


@router.get("/recordings/{recording_id}")
async def recording_page(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    recording_id: recordings.RecordingId,
) -> Response:
    """One of them, to be played."""
    found = await recordings.get_recording(api, principal, recording_id)
    me = await frame_of(request, api, principal)
    return show(
        "recording",
        "/recordings",
        me,
        recording=found,
        is_elsewhere=api.config.recordings.folder is None,
        has_screen=console_assets().has_terminal,
    )


@router.get("/setup")
async def setup_page(request: Request, api: ApiDependency, principal: Admin) -> Response:
    """Whether what the API stands on is there."""
    me = await frame_of(request, api, principal)
    return show("setup", "/setup", me, findings=await check_setup(api))
