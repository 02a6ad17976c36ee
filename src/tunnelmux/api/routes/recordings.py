"""Recordings of people's SSH sessions: `/api/recordings`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import trio
from fastapi import APIRouter, Path, Query
from starlette.responses import StreamingResponse

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import TEXT, After, Limit, Listing, Record, listing
from tunnelmux.errors import NoSuchRecord
from tunnelmux.registry import Recording

router = APIRouter(prefix="/api/recordings", route_class=AccessRoute, tags=["recordings"])

Viewer = Annotated[Principal, need(Role.VIEWER, "recordings")]
RecordingId = Annotated[str, Path(max_length=64)]
Wanted = Annotated[str, Query(max_length=64, pattern=TEXT)]

_PIECE = 64 * 1024

ASCIICAST = "application/x-asciicast"


class RecordingRecord(Record):
    """A recorded session. Without `ended` it still goes on, or its gateway was killed."""

    id: str
    device_id: str
    device_label: str
    user_id: str
    user_name: str
    account: str
    address: str
    lease_id: str
    kind: str
    command: str
    gateway: str
    began: datetime
    ended: datetime | None
    expires: datetime
    size: int
    sha256: str
    problem: str


@router.get("")
async def list_recordings(
    api: ApiDependency,
    principal: Viewer,
    device_id: Wanted = "",
    user_id: Wanted = "",
    lease_id: Wanted = "",
    text: Annotated[
        str,
        Query(
            max_length=64,
            pattern=TEXT,
            description="A part of the device's or person's name, the account or the command.",
        ),
    ] = "",
    limit: Limit = 50,
    after: After = None,
) -> Listing[RecordingRecord]:
    """Recorded sessions, the newest first; an admin sees all, other people see their own."""
    page = await tenant_for(api, principal).recordings.page(
        device_id=device_id or None,
        user_id=(user_id or None) if _sees_all(principal) else principal.user_id,
        lease_id=lease_id or None,
        text=text,
        limit=limit,
        after=after,
    )
    return listing(page, RecordingRecord.model_validate)


@router.get("/{recording_id}")
async def get_recording(
    api: ApiDependency, principal: Viewer, recording_id: RecordingId
) -> RecordingRecord:
    """One recorded session."""
    return RecordingRecord.model_validate(await _find(api, principal, recording_id))


@router.get("/{recording_id}/cast", response_class=StreamingResponse)
async def read_recording(
    api: ApiDependency, principal: Viewer, recording_id: RecordingId
) -> StreamingResponse:
    """The recording, as asciicast version 2; of a session that still goes on, the part so far.

    Each call adds an entry to the audit.
    """
    recording = await _find(api, principal, recording_id)
    folder = api.config.recordings.folder
    if folder is None:
        message = f'The recording is at the gateway "{recording.gateway}"; this server reads none.'
        raise Refused(409, "recording_elsewhere", message)
    assert principal.tenant_id is not None  # `need` has checked it
    try:
        file = await trio.open_file(folder / recording.file(principal.tenant_id), "rb")
    except OSError as exc:
        message = f"The recording cannot be opened ({exc.strerror})."
        raise Refused(404, "recording_gone", message) from exc
    try:
        await tenant_for(api, principal).recordings.note_read(recording_id)
    except BaseException:
        with trio.CancelScope(shield=True):  # a file of this machine
            await file.aclose()
        raise
    return StreamingResponse(
        _pieces(file),
        media_type=ASCIICAST,
        headers={"content-disposition": f'inline; filename="{recording.id}.cast"'},
    )


async def _find(api: Api, principal: Principal, recording_id: str) -> Recording:
    """Raises NoSuchRecord, also for another person's recording."""
    recording = await tenant_for(api, principal).recordings.find(recording_id)
    if not _sees_all(principal) and recording.user_id != principal.user_id:
        raise NoSuchRecord("recording", recording_id)
    return recording


def _sees_all(principal: Principal) -> bool:
    return principal.role is not None and principal.role >= Role.ADMIN


async def _pieces(file: Any) -> AsyncIterator[bytes]:
    async with file:
        while data := await file.read(_PIECE):
            yield data
