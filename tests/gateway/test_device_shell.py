"""A device without an SSH server: people reach the agent's own shell by the same words."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from support.gateways import Site
from tunnelmux.config.shell import ShellConfig

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]

ME = pwd.getpwuid(os.geteuid()).pw_name
SHELL = ShellConfig(enabled=True, user=ME, authorized_keys="overwritten")  # type: ignore[arg-type]


def written_down(site: Site) -> list[dict[str, object]]:
    """What the device itself has written down."""
    lines = (site.folder / "d" / "cam1.assist.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_people_reach_it_recorded_and_sealed_and_the_device_has_the_last_word(
    open_site: OpenSite,
) -> None:
    async with open_site(shell=SHELL) as site:
        bob = await site.user("bob")
        # It is for leases only, unless the device says otherwise; the gateway asks for one, too.
        early = await site.ssh(bob, f"{ME}@SN123", "true")
        assert b"nothing lets you into" in early.stderr
        lease = await site.lease(bob, rights=("shell", "exec", "forward"), sealed=True)
        command = "cat; echo warn >&2; echo $TUNNELMUX_ACTOR $TUNNELMUX_LEASE; exit 7"
        result = await site.ssh(bob, f"{ME}@SN123", command, send=b"over\n")
        assert (result.returncode, result.stderr) == (7, b"warn\n")
        assert result.stdout == f"over\nbob@example.com {lease.id}\n".encode()
        assert "over" in site.recordings()[0].read_text()
        begun = next(line for line in written_down(site) if line["what"] == "shell begins")
        assert (begun["actor"], begun["lease"]) == ("bob@example.com", lease.id)
        # Its host key was pinned as that of an sshd is.
        (pinned,) = (await site.tenant.devices.host_keys(site.device_id)).pinned
        assert [pinned] == site.agent.own_shell.host_keys()  # and reported from now on
        hosts = site.folder / "shell_known_hosts"
        hosts.write_text(f"device {pinned}\n")
        words = [site.program("ssh", "openssh-client"), "-F", str(site.jump_configuration(bob))]
        words += ["-o", "HostKeyAlias=device", "-i", f"{site.sshd.folder}/user_key", "-J", "x@gw"]
        words += ["-o", f"UserKnownHostsFile={hosts}", f"{ME}@SN123", "echo sealed; exit 5"]
        sealed = await site.run(words)
        assert (sealed.stdout, sealed.returncode) == (b"sealed\n", 5), sealed.stderr
        # The agent ends it by its own clock.
        async with await site.terminal(bob, f"{ME}@cam1") as terminal:
            await terminal.type("trap '' HUP TERM; tty; echo pid $$ re''ady\n")
            await terminal.expect("/dev/pts/")
            await terminal.expect("ready")
            pid = int(terminal.shown.rpartition("pid ")[2].split()[0])
            clock = site.agent.assist.desk.clock
            now = clock.now
            clock.now = lambda: now() + 3700  # to proxy and gateway an hour is left
            await terminal.expect("tunnelmux: ")
            assert await terminal.wait() != 0
        ended = [line for line in written_down(site) if line["what"] == "ended"]
        assert ended[0]["reason"] == "its time is over"
        await gone(pid)
        # The switch of the device ends it at once.
        await site.lease(bob)
        async with await site.terminal(bob, f"{ME}@cam1") as terminal:
            await terminal.type("echo re''ady\n")
            await terminal.expect("ready")
            site.agent.assist.desk.turn_off(by="a person at the device")
            await terminal.expect("tunnelmux: ")
            assert await terminal.wait() != 0
        assert (await site.ssh(bob, f"{ME}@cam1", "true")).returncode == 255


async def gone(pid: int) -> None:
    """Until there is no such process."""
    with trio.fail_after(30):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            await trio.sleep(0.02)
