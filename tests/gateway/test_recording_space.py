"""The recordings of one tenant together have a bound, and a full disk is seen beforehand."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import pytest

from support.gateways import Site
from tunnelmux.gateway.recording import Recording, RecordingStopped
from tunnelmux.gateway.recording_space import RecordingSpace, remove_old

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]

_BLOCK = 4096


def new_recording(space: RecordingSpace, tenant: str, name: str, stops: list[str]) -> Recording:
    path = space.folder / tenant / "2026-11-28" / f"{name}.cast"
    about = {"tenant": tenant}
    return Recording(path, about, 1 << 30, space, lambda: None, stops.append)


def test_a_tenant_that_reaches_its_bound_stops_and_another_goes_on(tmp_path: Path) -> None:
    space = RecordingSpace(tmp_path, 10 * _BLOCK, 0)
    stops: list[str] = []

    async def main() -> None:
        first, second, other = (
            new_recording(space, tenant, name, stops)
            for tenant, name in (("a", "1"), ("a", "2"), ("b", "3"))
        )
        for recording in (first, second, other):
            recording.begin(80, 24, "xterm")
        # Both of the tenant count: six blocks are taken, so that neither has room for five.
        first.output(b"x" * 2 * _BLOCK)
        assert not stops
        second.output(b"x" * 2 * _BLOCK)
        assert len(stops) == 1
        assert "reach 40960 bytes (recording.max_bytes_per_tenant" in stops[0]
        assert "its operator can" in stops[0]
        other.output(b"x" * 2 * _BLOCK)
        third = new_recording(space, "a", "4", stops)
        with pytest.raises(RecordingStopped, match=r"no recording can be made: .*per_tenant"):
            third.begin(80, 24, "xterm")
        assert not third.path.exists()
        for recording in (first, second, other, third):
            await recording.close({})
        assert (first.problem, other.problem) == ("", "")
        assert len(stops) == 1

    asyncio.run(main())


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """No file of this process may grow beyond `most` bytes: its disk takes a part of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_whose_disk_is_full_ends_with_the_last_event_that_counts(tmp_path: Path) -> None:
    stops: list[str] = []

    async def main() -> Recording:
        recording = new_recording(RecordingSpace(tmp_path, 1 << 30, 0), "a", "1", stops)
        recording.begin(80, 24, "xterm")
        recording.output(b"first")
        written = asyncio.Event()
        recording.when_written(written.set)
        await written.wait()
        with files_of(10_000):
            recording.output(b"x" * 20_000)
            written.clear()
            recording.when_written(written.set)
            await written.wait()
        await recording.close({"ended": "now"})
        return recording

    recording = asyncio.run(main())
    assert stops == ["its disk cannot take it (File too large)"]
    data = recording.path.read_bytes()
    assert [json.loads(line)[2] for line in data.splitlines()[1:]] == ["first"]
    about = json.loads(recording.path.with_suffix(".json").read_text())
    assert (about["bytes"], about["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (recording.size, recording.sha256) == (about["bytes"], about["sha256"])


def test_a_recording_that_is_refused_leaves_no_files_and_takes_no_space(tmp_path: Path) -> None:
    space = RecordingSpace(tmp_path, 10 * _BLOCK, 0)

    async def main() -> None:
        for size in (0, 50, 500):  # with nothing, a part of the header, a part of the `.json` file
            refused = new_recording(space, "a", "1", [])
            refused.about["command"] = "x" * 1000
            with files_of(size), pytest.raises(RecordingStopped, match="File too large"):
                refused.begin(80, 24, "xterm")
            assert not list(refused.path.parent.iterdir())
        for _ in range(10):  # which would be more than the tenant may have
            recording = new_recording(space, "a", "2", [])
            recording.begin(80, 24, "xterm")
            recording.output(b"x")
            await recording.discard()
            assert not list(recording.path.parent.iterdir())

    asyncio.run(main())


def test_a_draft_that_a_crash_has_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    left = tmp_path / "a" / "2026-11-28" / "1.json.new"
    left.parent.mkdir(parents=True)
    left.write_text("{")
    assert remove_old(tmp_path, 3600).removed == 0
    os.utime(left, (1000, 1000))
    assert remove_old(tmp_path, 3600).removed == 1
    assert not left.exists()


def test_a_recording_that_goes_on_is_not_removed_however_old_its_files_are(tmp_path: Path) -> None:
    """By this gateway, or by another one with the same folder."""
    space = RecordingSpace(tmp_path, 1 << 30, 0)

    def age(path: Path, *suffixes: str) -> None:
        for suffix in suffixes:
            os.utime(path.with_suffix(suffix), (1000, 1000))

    async def main() -> None:
        recording = new_recording(space, "a", "1", [])
        recording.begin(80, 24, "xterm")
        path = recording.path
        age(path, ".cast", ".index", ".json")
        assert remove_old(tmp_path, 3600).removed == 0
        await recording.close({"ended": "now"})  # which writes its .json file
        age(path, ".cast", ".index")
        assert remove_old(tmp_path, 3600).removed == 0
        age(path, ".json")
        assert remove_old(tmp_path, 3600).removed == 3
        assert not list(path.parent.iterdir())

    asyncio.run(main())


def test_what_is_there_counts_and_what_is_removed_no_more(tmp_path: Path) -> None:
    space = RecordingSpace(tmp_path, 10 * _BLOCK, 0)
    for tenant, size in (("a", 9 * _BLOCK - 1), ("b", 1)):
        (tmp_path / tenant / "day").mkdir(parents=True)
        (tmp_path / tenant / "day" / "id.cast").write_bytes(bytes(size))
    assert space.take("a", 2 * _BLOCK) == ""
    space.count()
    found = remove_old(tmp_path, 3600)
    # One that begins while they are counted may be among them or not: it is added.
    assert space.take("a", _BLOCK) == ""
    space.counted(found.left)
    assert found.left == {"a": 9 * _BLOCK, "b": _BLOCK}
    assert "max_bytes_per_tenant" in space.take("a", 1)
    assert space.take("b", 9 * _BLOCK) == ""
    space.count()
    (tmp_path / "a" / "day" / "id.cast").unlink()
    space.counted(remove_old(tmp_path, 3600).left)
    assert space.take("a", 10 * _BLOCK) == ""


def test_on_a_disk_that_is_nearly_full_none_begins_and_others_go_on(tmp_path: Path) -> None:
    free = 1000
    space = RecordingSpace(tmp_path, 1 << 30, 1000, lambda _folder: free)
    stops: list[str] = []

    async def main() -> None:
        nonlocal free
        first = new_recording(space, "a", "1", stops)
        first.begin(80, 24, "xterm")
        free = 999
        with pytest.raises(RecordingStopped, match=r"only 999 bytes are free .*min_free"):
            new_recording(space, "b", "2", stops).begin(80, 24, "xterm")
        first.output(b"still recorded")
        await first.close({})
        assert not stops
        assert "still recorded" in first.path.read_text()

    asyncio.run(main())


@pytest.mark.slow
async def test_a_session_ends_at_the_bound_of_its_tenant_and_says_so(open_site: OpenSite) -> None:
    async with open_site("[recording]\nmax_bytes_per_tenant = 65536\n") as site:
        bob = await site.user("bob")
        await site.lease(bob)
        command = "head -c 300000 /dev/zero | tr '\\0' x; cat; echo the end"
        for _ in range(2):
            result = await site.ssh(bob, f"{site.sshd.user}@cam1", command)
            assert b"recording.max_bytes_per_tenant" in result.stderr
            assert b"the end" not in result.stdout
            assert result.returncode != 0
        sizes = [file.stat().st_size for file in site.recordings()]
        assert sum(sizes) <= 65_536
