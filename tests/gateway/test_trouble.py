"""Bad luck and bad counterparts: what the person is told, and that others never notice."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from support.gateways import Site
from tunnelmux.registry import RecordingFailure

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


async def test_a_device_that_refuses_or_is_away(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    account = site.sshd.user
    refused = await site.ssh(bob, "nobody-at-all@cam1", "true")
    assert b'does not let the account "nobody-at-all" in' in refused.stderr
    assert b"TrustedUserCAKeys" in refused.stderr
    assert (await site.ssh(bob, f"{account}@cam1", "true")).returncode == 0
    await site.stop_agent()
    refused = await site.ssh(bob, f"{account}@cam1", "true")
    assert b'"cam1": the device is not connected now' in refused.stderr
    assert refused.returncode == 255


@pytest.mark.parametrize(
    ("rule", "of_gateway", "of_tenant"),
    [("stop", "stop", ""), ("continue", "continue", ""), ("continue", "stop", "continue")],
)
async def test_a_recording_that_cannot_go_on(
    open_site: OpenSite, rule: str, of_gateway: str, of_tenant: RecordingFailure
) -> None:
    more = f'[recording]\nmax_bytes = 65536\non_failure = "{of_gateway}"\n'
    async with open_site(more) as site:
        await site.tenant.ssh.change(on_recording_failure=of_tenant)
        bob = await site.user("bob")
        await site.lease(bob)
        command = "head -c 300000 /dev/zero | tr '\\0' x; cat; echo the end"
        result = await site.ssh(bob, f"{site.sshd.user}@cam1", command)
        assert b"it has reached recording.max_bytes" in result.stderr
        assert result.stdout.endswith(b"the end\n") == (rule == "continue")
        assert (result.returncode == 0) == (rule == "continue")
        await site.gateway.logged("ssh session over")
        (recording,) = site.recordings()
        assert recording.stat().st_size <= 65_536
        about = await site.about(recording)
        assert about["incomplete"] == "it has reached recording.max_bytes"
        # A folder that cannot be written is the same for `stop`, and never a silent session.
        recording.parent.rename(recording.parent.with_name("moved"))
        recording.parent.write_text("no folder")
        result = await site.ssh(bob, f"{site.sshd.user}@cam1", "echo unseen")
        assert b"no recording can be made" in result.stderr
        assert result.stdout == b""


async def test_a_disk_that_is_full_stops_a_session_or_not_as_the_tenant_says(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    most = 4 * 1024 * 1024  # more than the registry has
    resource.prlimit(site.gateway.pid, resource.RLIMIT_FSIZE, (most, most))
    command = f"head -c {2 * most} /dev/zero | tr '\\0' x; cat; echo the end"
    rules: tuple[RecordingFailure, ...] = ("", "continue")
    for rule in rules:
        await site.tenant.ssh.change(on_recording_failure=rule)
        result = await site.ssh(bob, f"{site.sshd.user}@cam1", command)
        assert b"its disk cannot take it (File too large)" in result.stderr
        assert result.stdout.endswith(b"the end\n") == (rule == "continue")
        assert (result.returncode == 0) == (rule == "continue")
    for recording in site.recordings():
        assert (await site.about(recording))["incomplete"].startswith("its disk cannot take it")


async def test_log_in_by_the_persons_own_agent(open_site: OpenSite) -> None:
    more = '[access]\nstanding_rights = ["exec", "agent"]\n'
    async with open_site(more, authority=False) as site:
        ann = await site.user("ann", "admin")
        refused = await site.ssh(ann, f"{site.sshd.user}@cam1", "true")
        assert b"use ssh -A" in refused.stderr
        async with site.ssh_agent(site.sshd.folder / "user_key") as socket:
            options = ["-A", "-o", f"IdentityAgent={socket}"]
            result = await site.ssh(ann, f"{site.sshd.user}@cam1", "echo in", options=options)
        assert (result.stdout, result.returncode) == (b"in\n", 0), result.stderr


async def test_the_record_of_a_session_that_was_killed_is_whole(site: Site) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob)
    terminal = await site.terminal(bob, f"{site.sshd.user}@cam1")
    async with terminal:
        await terminal.type("echo re''ady\n")
        await terminal.expect("ready")
    await site.records_of(lease, 1, "lease.session")
    (recording,) = site.recordings()
    for line in recording.read_text().splitlines()[1:]:
        assert len(json.loads(line)) == 3
    assert "sha256" in await site.about(recording)
