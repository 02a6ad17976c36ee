"""Recordings of people's SSH sessions: `/api/recordings`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
import trio
from fastapi import APIRouter, Path, Query
from starlette.responses import StreamingResponse

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import TEXT, After, Limit, Listing, Record, listing
from tunnelmux.errors import NoSuchRecord
from tunnelmux.registry import IndexPoint, Recording

router = APIRouter(prefix="/api/recordings", route_class=AccessRoute, tags=["recordings"])

Viewer = Annotated[Principal, need(Role.VIEWER, "recordings")]
RecordingId = Annotated[str, Path(max_length=64)]
Wanted = Annotated[str, Query(max_length=64, pattern=TEXT)]

_PIECE = 64 * 1024

_LONGEST_HEAD = 4096
# Bytes of a recording's first line: the gateway bounds the terminal's name in it.

_LONGEST_INDEX = 8 * 1024 * 1024
# Bytes: a recording of 64 GiB has no more, with a line of at most 100 bytes for each MiB.

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


class RecordingPoint(Record):
    """A place from which a player can begin. `played` is `seconds` with pauses cut to two."""

    seconds: float
    played: float
    columns: int
    rows: int


class RecordingIndex(Record):
    """The points of a recording, a MiB apart; none of one that was made without an index.

    With `complete` the last point is the end, and no piece begins there.
    """

    points: list[RecordingPoint]
    complete: bool


@router.get("/{recording_id}/index")
async def read_recording_index(
    api: ApiDependency, principal: Viewer, recording_id: RecordingId
) -> RecordingIndex:
    """The index of a recording, for players that read a large one in pieces."""
    recording = await _find(api, principal, recording_id)
    async with await _open(api, principal, recording) as file:
        size = os.fstat(file.fileno()).st_size
        points = await _points(file)
    return RecordingIndex(
        points=[RecordingPoint.model_validate(point) for point in points],
        complete=bool(points) and points[-1].offset >= size,
    )


@router.get("/{recording_id}/cast", response_class=StreamingResponse)
async def read_recording(
    api: ApiDependency,
    principal: Viewer,
    recording_id: RecordingId,
    piece: Annotated[
        int | None,
        Query(ge=0, le=2**32, description="From this point of the index to the next one only."),
    ] = None,
) -> StreamingResponse:
    """The recording, as asciicast version 2; of a session that still goes on, the part so far.

    A piece is an asciicast too: its head has the size that the terminal had there. Each call adds
    an entry to the audit.
    """
    recording = await _find(api, principal, recording_id)
    file = await _open(api, principal, recording)
    try:
        part = await _part(file, piece) if piece is not None else _Part()
        await tenant_for(api, principal).recordings.note_read(recording_id)
    except BaseException:
        with trio.CancelScope(shield=True):  # a file of this machine
            await file.aclose()
        raise
    return StreamingResponse(
        _pieces(file, part),
        media_type=ASCIICAST,
        headers={"content-disposition": f'inline; filename="{recording.id}.cast"'},
    )


async def _open(api: Api, principal: Principal, recording: Recording) -> Any:
    """The recording's file. Raises Refused."""
    folder = api.config.recordings.folder
    if folder is None:
        message = f'The recording is at the gateway "{recording.gateway}"; this server reads none.'
        raise Refused(409, "recording_elsewhere", message)
    assert principal.tenant_id is not None  # `need` has checked it
    try:
        return await trio.open_file(folder / recording.file(principal.tenant_id), "rb")
    except OSError as exc:
        message = f"The recording cannot be opened ({exc.strerror})."
        raise Refused(404, "recording_gone", message) from exc


@dataclass(frozen=True, slots=True)
class _Part:
    head: bytes = b""
    """What comes in place of what is before `begin`."""
    begin: int = 0
    end: int | None = None


async def _points(file: Any) -> list[IndexPoint]:
    """The index of an open recording; nothing where it has none, or one that cannot be read."""
    path = trio.Path(file.name).with_suffix(".index")
    try:
        async with await trio.open_file(path, "rb") as index:
            return IndexPoint.read(await index.read(_LONGEST_INDEX))
    except (OSError, ValueError):
        return []


async def _part(file: Any, piece: int) -> _Part:
    """Where a piece is in the file. Raises Refused."""
    points = await _points(file)
    if piece >= len(points):
        raise Refused(404, "recording_piece_unknown", f"The recording has no piece {piece}.")
    point = points[piece]
    line = (await file.read(_LONGEST_HEAD)).partition(b"\n")[0]
    head = msgspec.json.decode(line) | {"width": point.columns, "height": point.rows}
    end = points[piece + 1].offset if piece + 1 < len(points) else None
    return _Part(msgspec.json.encode(head) + b"\n", point.offset, end)


async def _find(api: Api, principal: Principal, recording_id: str) -> Recording:
    """Raises NoSuchRecord, also for another person's recording."""
    recording = await tenant_for(api, principal).recordings.find(recording_id)
    if not _sees_all(principal) and recording.user_id != principal.user_id:
        raise NoSuchRecord("recording", recording_id)
    return recording


def _sees_all(principal: Principal) -> bool:
    return principal.role is not None and principal.role >= Role.ADMIN


async def _pieces(file: Any, part: _Part) -> AsyncIterator[bytes]:
    async with file:
        if part.head:
            yield part.head
        at = await file.seek(part.begin)
        while part.end is None or at < part.end:
            data = await file.read(_PIECE if part.end is None else min(_PIECE, part.end - at))
            if not data:
                return
            at += len(data)
            yield data
