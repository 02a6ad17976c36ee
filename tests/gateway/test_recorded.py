"""`ssh root@cam1@GATEWAY`: by way of the gateway, which keeps what is seen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from support.gateways import Site
from tunnelmux.gateway.recording import Recording
from tunnelmux.gateway.recording_space import RecordingSpace, remove_old

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


async def test_a_command_goes_through_with_its_streams_and_its_status(site: Site) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob)
    account = site.sshd.user
    command = "cat; echo warn >&2; echo $TUNNELMUX_ACTOR $TUNNELMUX_LEASE; exit 7"
    result = await site.ssh(bob, f"{account}@cam1", command, send=b"over\n")
    assert result.stderr == b"warn\n"
    assert result.stdout == f"over\nbob@example.com {lease.id}\n".encode()
    assert result.returncode == 7
    by_serial = await site.ssh(bob, f"{account}#SN123", "echo hello")
    assert by_serial.stdout == b"hello\n"
    (first, second) = site.recordings()
    header, *events = [json.loads(line) for line in first.read_text().splitlines()]
    assert header["version"] == 2
    shown = "".join(text for _, kind, text in events if kind == "o")
    assert "over\n" in shown
    assert "warn\n" in shown
    about = json.loads(second.with_suffix(".json").read_text())
    assert (about["person"], about["command"]) == ("bob@example.com", "echo hello")
    assert (about["lease"], about["device"]) == (lease.id, "cam1")
    await site.gateway.logged("ssh session over", text="echo hello", from_device=6)
    records = await site.records_of(lease, 2, "lease.session")
    assert [record["text"] for record in records] == [command, "echo hello"]
    assert records[1]["recording"] == second.stem
    listed = (await site.tenant.recordings.page(lease_id=lease.id)).items
    assert [(item.id, item.command) for item in listed] == [
        (second.stem, "echo hello"),
        (first.stem, command),
    ]
    found = await site.listed(second)
    assert (found.size, found.problem) == (second.stat().st_size, "")
    assert found.sha256 == hashlib.sha256(second.read_bytes()).hexdigest()
    assert second == second.parents[2] / found.file(site.tenant.tenant_id)


async def test_a_terminal_has_its_size_and_is_recorded_with_every_change(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    terminal = await site.terminal(bob, f"{site.sshd.user}@cam1")
    async with terminal:
        await terminal.type("stty size; echo re''ady\n")
        await terminal.expect("24 80")
        await terminal.expect("ready")
        terminal.resize(100, 40)
        await terminal.type("sleep 0.2; stty size\n")
        await terminal.expect("40 100")
        await terminal.type("exit 3\n")
        assert await terminal.wait() == 3
    (recording,) = site.recordings()
    events = [json.loads(line) for line in recording.read_text().splitlines()[1:]]
    assert [text for _, kind, text in events if kind == "r"] == ["100x40"]
    assert "40 100" in "".join(text for _, kind, text in events if kind == "o")


async def test_what_is_typed_is_recorded_where_the_tenant_says_so(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    await site.tenant.ssh.change(record_input=True)
    async with await site.terminal(bob, f"{site.sshd.user}@cam1") as terminal:
        await terminal.expect("what you type is recorded here, too")
        await terminal.type("stty -echo; echo re''ady; read word\n")
        await terminal.expect("ready")
        await terminal.type("unseen\n")
        await terminal.type("exit 3\n")
        assert await terminal.wait() == 3
    # Without a terminal nothing is typed: it is a program's.
    await site.ssh(bob, f"{site.sshd.user}@cam1", "cat", send=b"a file\n")
    first, second = (
        [json.loads(line) for line in file.read_text().splitlines()[1:]]
        for file in site.recordings()
    )
    assert "unseen" in "".join(text for _, kind, text in first if kind == "i")
    assert "unseen" not in "".join(text for _, kind, text in first if kind == "o")
    assert [kind for _, kind, _ in second if kind == "i"] == []


async def test_files_go_both_ways_by_sftp_scp_rsync_and_git(site: Site, tmp_path: Path) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob)
    there = tmp_path / "there"
    there.mkdir()
    data = bytes(range(256)) * 4000
    (tmp_path / "file").write_bytes(data)
    user = f"{site.sshd.user}@cam1"
    options = [*site.client(bob), "-o", f"User={user}"]
    ssh = " ".join(["ssh", *(f"'{word}'" for word in options), "-p", str(site.port)])
    port = ["-P", str(site.port)]
    for number, words in enumerate(
        (
            ["scp", *options, *port, "file", "127.0.0.1:there/0"],
            ["scp", "-O", *options, *port, "file", "127.0.0.1:there/1"],
            ["rsync", "-e", ssh, "file", "127.0.0.1:there/2"],
        )
    ):
        words[0] = site.program(words[0], "openssh-client" if number < 2 else "rsync")
        words = [str(tmp_path / word) if word == "file" else word for word in words]
        words = [word.replace(":there", f":{there}") for word in words]
        result = await site.run(words)
        assert (result.returncode, result.stderr) == (0, b"")
        assert (there / str(number)).read_bytes() == data
    git = site.program("git", "git")
    await site.run([git, "init", "-q", "--bare", str(there / "repository.git")])
    environment = f"GIT_SSH_COMMAND={ssh}"
    url = f"ssh://127.0.0.1:{site.port}{there}/repository.git"
    clone = ["env", environment, git, "clone", "-q", url, str(tmp_path / "clone")]
    result = await site.run(clone)
    assert result.returncode == 0, result.stderr
    records = await site.records_of(lease, 4, "lease.session")
    assert [record["kind"] for record in records] == ["sftp", "exec", "exec", "exec"]
    # The old protocol is a command, which says the path; the new one is told file by file.
    assert records[1]["text"] == f"scp -t {there}/1"
    (copied,) = await site.records_of(lease, 1, "lease.files")
    assert f"write {there}/0 ({len(data)} bytes written)" in copied["files"]
    assert copied["recording"] == records[0]["recording"]


async def test_what_sftp_does_is_written_down_file_by_file(open_site: OpenSite) -> None:
    async with open_site("[limits]\nmax_file_lines = 6\n") as site:
        bob = await site.user("bob")
        lease = await site.lease(bob)
        there = site.folder / "there"
        there.mkdir()
        (there / "old").write_bytes(b"o" * 70_000)
        (site.folder / "new").write_bytes(b"n" * 50_000)
        orders = f"""\
get {there}/old {site.folder}/got
put {site.folder}/new {there}/new
-get /nothing/at/all {site.folder}/none
mkdir {there}/folder
rename {there}/new {there}/folder/new
chmod 600 {there}/folder/new
rm {there}/folder/new
rmdir {there}/folder
"""
        sftp = site.program("sftp", "openssh-client")
        words = [sftp, *site.client(bob, f"User={site.sshd.user}@cam1"), "-P", str(site.port)]
        result = await site.run([*words, "-b", "-", "127.0.0.1"], send=orders.encode())
        assert result.returncode == 0, result.stderr
        assert (site.folder / "got").read_bytes() == b"o" * 70_000
        expected = [
            f"read {there}/old (70000 bytes read)",
            f"write {there}/new (50000 bytes written)",
            f"make directory {there}/folder",
            f"rename {there}/new to {there}/folder/new",
            f"set attributes of {there}/folder/new",
            f"remove {there}/folder/new",
            f"remove directory {there}/folder",
        ]
        (session,) = await site.records_of(lease, 1, "lease.session")
        (recording,) = site.recordings()
        assert session["recording"] == recording.stem
        listed = await site.listed(recording)
        assert (listed.kind, listed.problem) == ("sftp", "")
        events = [json.loads(line) for line in recording.read_text().splitlines()[1:]]
        lines = "".join(text for _, kind, text in events if kind == "o").splitlines()
        assert [line for line in lines if line in expected] == expected
        # The record of the lease has as many as fit.
        with trio.fail_after(30):
            while True:
                entries = await site.records_of(lease, 1, "lease.files")
                written = [line for entry in entries for line in entry["files"]]
                if written[-1].startswith("and "):
                    break
        assert written == [*lines[:6], f"and {len(lines) - 6} more, which the recording has"]


async def test_a_reader_that_stops_holds_the_device_back(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    words = [site.program("ssh", "openssh-client"), *site.client(bob), "-p", str(site.port)]
    command = "head -c 200000000 /dev/zero | tr '\\0' x"
    words += ["-l", f"{site.sshd.user}@cam1", "127.0.0.1", command]
    process = await trio.lowlevel.open_process(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    await site.gateway.logged("ssh session begins")
    before = site.gateway.peak_memory
    with trio.move_on_after(3):
        await process.wait()
    assert process.returncode is None
    assert site.gateway.peak_memory - before < 40_000_000
    process.kill()
    await process.wait()
    await site.gateway.logged("ssh session over")


async def test_what_is_old_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "tenant" / "2020-01-01"
    folder.mkdir(parents=True)
    for name in ("old.cast", "old.index", "old.json", "new.cast"):
        (folder / name).write_text("x")
    for name in ("old.cast", "old.index", "old.json"):
        os.utime(folder / name, (1, 1))
    found = remove_old(tmp_path, 3600)
    assert found.removed == 3
    assert [file.name for file in folder.iterdir()] == ["new.cast"]


@pytest.mark.parametrize(("shared", "modes"), [(0o2750, (0o750, 0o640)), (0o700, (0o700, 0o600))])
def test_recordings_are_for_the_group_where_their_folder_is(
    tmp_path: Path, shared: int, modes: tuple[int, int]
) -> None:
    tmp_path.chmod(shared)
    path = tmp_path / "tenant" / "2026-11-28" / "id.cast"
    space = RecordingSpace(tmp_path, 1 << 30, 0)
    recording = Recording(path, {"tenant": "tenant"}, 65_536, space, lambda: None, lambda _: None)
    recording.begin(80, 24, "xterm")
    for folder in path.parents[:2]:
        assert folder.stat().st_mode & 0o777 == modes[0]
    for file in (path, path.with_suffix(".index"), path.with_suffix(".json")):
        assert file.stat().st_mode & 0o777 == modes[1]
    asyncio.run(recording.close({}))
