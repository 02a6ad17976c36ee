"""What was recorded, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from support.registries import WallClock
from support.tenants import a_recording
from tunnelmux.errors import NoSuchRecord
from tunnelmux.registry import RecordedEnd, Registry, TenantRegistry, new_id


async def test_recordings_are_listed_until_they_expire_and_in_their_tenant_only(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    cam1, _ = await acme.devices.add("cam1")
    cam2, _ = await acme.devices.add("cam2")
    now = clock()
    made = [
        a_recording(device.id, user, id=key, command=command, expires=now + timedelta(hours=hours))
        for key, (device, user, command, hours) in zip(
            sorted(new_id() for _ in range(3)),
            (
                (cam1, "u1", "one", 1),
                (cam1, "u2", "two\0", 3),
                (cam2, "u2", "x" * 5000, 3),
            ),
            strict=True,
        )
    ]
    for recorded in made:
        await acme.recordings.begin(recorded)
    with pytest.raises(NoSuchRecord):
        await other.recordings.begin(a_recording(cam1.id, "u1"))
    ended = datetime(2026, 11, 28, tzinfo=UTC)
    end = RecordedEnd(ended=ended, size=7, sha256="ab", problem="its disk cannot take it")
    await acme.recordings.end(made[0].id, end)
    found = await acme.recordings.find(made[0].id)
    assert (found.ended, found.size, found.sha256) == (ended, 7, "ab")
    assert found.problem == end.problem
    assert len((await acme.recordings.find(made[2].id)).command) == 4096

    async def ids(**where: str) -> list[str]:
        return [item.id for item in (await acme.recordings.page(**where)).items]

    assert await ids() == [item.id for item in reversed(made)]
    assert await ids(user_id="u2") == [made[2].id, made[1].id]
    assert await ids(device_id=cam1.id) == [made[1].id, made[0].id]
    assert (await other.recordings.page()).items == []
    for call in (other.recordings.find, other.recordings.note_read):
        with pytest.raises(NoSuchRecord):
            await call(made[0].id)
    with pytest.raises(NoSuchRecord):
        await other.recordings.end(made[0].id, end)
    await acme.devices.remove(cam1.id)
    clock.pass_time(7200)
    await registry.tidy()
    assert await ids() == [made[2].id, made[1].id]
