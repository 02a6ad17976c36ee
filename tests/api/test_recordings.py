"""Recordings over REST: who sees which, and what a look at one leaves behind."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from support.apis import live_api
from support.tenants import TEST, a_recording, person
from tunnelmux.config import DrainConfig
from tunnelmux.config.api import RecordingsConfig
from tunnelmux.registry import IndexPoint, RecordedEnd

CAST = b'{"version": 2, "width": 80, "height": 24}\n[0.1, "o", "hello"]\n'


async def test_an_admin_sees_all_and_others_their_own(tmp_path: Path) -> None:
    async with live_api(tmp_path, recordings=RecordingsConfig(folder=tmp_path / "casts")) as api:
        people = {role: await person(api, role, role) for role in ("admin", "operator", "viewer")}
        tenant = api.running.api.registry.tenant(people["admin"].tenant_id, TEST)
        device, _ = await tenant.devices.add("cam1")
        made = {}
        for role, someone in people.items():
            recorded = made[role] = a_recording(device.id, someone.user_id)
            await tenant.recordings.begin(recorded)
            file = tmp_path / "casts" / recorded.file(tenant.tenant_id)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(CAST)
        await tenant.recordings.end(
            made["viewer"].id, RecordedEnd(ended=datetime.now(UTC), size=len(CAST), sha256="ab")
        )
        for role, someone in people.items():
            seen = {*made} if role == "admin" else {role}
            listed = (await api.call("GET", "/api/recordings", someone.token)).json()["items"]
            assert {item["id"] for item in listed} == {made[other].id for other in seen}
            for other, recorded in made.items():
                path = f"/api/recordings/{recorded.id}"
                status = 200 if other in seen else 404
                assert (await api.call("GET", path, someone.token)).status_code == status
                answer = await api.call("GET", f"{path}/cast", someone.token)
                assert answer.status_code == status
                assert (answer.content == CAST) == (other in seen)
        admin = people["admin"]
        one = (await api.call("GET", f"/api/recordings/{made['viewer'].id}", admin.token)).json()
        assert (one["command"], one["size"], one["sha256"]) == ("secret-command", len(CAST), "ab")
        assert one["ended"] is not None
        mine = f"/api/recordings?user_id={people['viewer'].user_id}&device_id={device.id}"
        assert len((await api.call("GET", mine, admin.token)).json()["items"]) == 1
        looks = (await api.call("GET", "/api/audit?action=recording.read", admin.token)).json()
        assert len(looks["items"]) == 5


async def test_a_file_that_is_elsewhere_or_gone_is_said_to_be(tmp_path: Path) -> None:
    for folder, code in ((None, "recording_elsewhere"), (tmp_path / "none", "recording_gone")):
        here = tmp_path / code
        here.mkdir()
        async with live_api(here, recordings=RecordingsConfig(folder=folder)) as api:
            admin = await person(api, "admin", "admin")
            tenant = api.running.api.registry.tenant(admin.tenant_id, TEST)
            device, _ = await tenant.devices.add("cam1")
            recorded = dataclasses.replace(a_recording(device.id, admin.user_id), command="a\0b")
            await tenant.recordings.begin(recorded)
            answer = await api.call("GET", f"/api/recordings/{recorded.id}/cast", admin.token)
            assert answer.json()["code"] == code


async def test_a_large_one_is_read_in_the_pieces_of_its_index(tmp_path: Path) -> None:
    folder = tmp_path / "casts"
    async with live_api(tmp_path, recordings=RecordingsConfig(folder=folder)) as api:
        admin = await person(api, "admin", "admin")
        tenant = api.running.api.registry.tenant(admin.tenant_id, TEST)
        device, _ = await tenant.devices.add("cam1")
        recorded = a_recording(device.id, admin.user_id)
        await tenant.recordings.begin(recorded)
        file = folder / recorded.file(tenant.tenant_id)
        file.parent.mkdir(parents=True)
        head, first, second = CAST.partition(b"\n")[0] + b"\n", b'[0.1, "o", "a"]\n', b"[7.0,...\n"
        file.write_bytes(head + first + second)
        start, middle = len(head), len(head) + len(first)
        points = [IndexPoint(0.1, 0.1, start, 80, 24), IndexPoint(7.0, 2.1, middle, 100, 40)]
        index = file.with_suffix(".index")

        async def asked(what: str) -> Any:
            return await api.call("GET", f"/api/recordings/{recorded.id}/{what}", admin.token)

        # A recording that was made without an index is read as a whole.
        assert (await asked("index")).json() == {"points": [], "complete": False}
        assert (await asked("cast?piece=0")).json()["code"] == "recording_piece_unknown"
        # One that goes on has a last line that is not whole yet.
        index.write_bytes(b"".join(point.line for point in points) + b"[8.0, 3")
        told = (await asked("index")).json()
        assert not told["complete"]
        shown = {"seconds": 7.0, "played": 2.1, "columns": 100, "rows": 40}
        assert told["points"][1] == shown
        assert (await asked("cast?piece=0")).content.partition(b"\n")[2] == first
        last = (await asked("cast?piece=1")).content
        assert last.partition(b"\n")[2] == second
        assert json.loads(last.partition(b"\n")[0]) == {"version": 2, "width": 100, "height": 40}
        end = IndexPoint(7.0, 2.1, file.stat().st_size, 100, 40)
        index.write_bytes(b"".join(point.line for point in [*points, end]))
        assert (await asked("index")).json()["complete"]
        assert (await asked("cast?piece=1")).content == last
        assert (await asked("cast?piece=3")).status_code == 404
        # What is no index is none.
        index.write_bytes(b"rubbish\n")
        assert (await asked("index")).json()["points"] == []
        assert (await asked("cast")).content == head + first + second


async def test_a_connection_by_which_one_was_read_does_not_outlast_the_api(tmp_path: Path) -> None:
    """An answer that is streamed ends like any other: its connection is idle then, and is closed
    after a time or when the server stops, without waiting for the grace."""
    folder = tmp_path / "casts"
    with trio.fail_after(60):
        async with live_api(
            tmp_path, recordings=RecordingsConfig(folder=folder), drain=DrainConfig(grace=3600)
        ) as api:
            admin = await person(api, "admin", "admin")
            tenant = api.running.api.registry.tenant(admin.tenant_id, TEST)
            device, _ = await tenant.devices.add("cam1")
            recorded = a_recording(device.id, admin.user_id)
            await tenant.recordings.begin(recorded)
            file = folder / recorded.file(tenant.tenant_id)
            file.parent.mkdir(parents=True)
            file.write_bytes(CAST)
            read = await api.call("GET", f"/api/recordings/{recorded.id}/cast", admin.token)
            assert read.content == CAST
