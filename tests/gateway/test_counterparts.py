"""Counterparts that are odd: a tiny sshd, one with a single session, a name without an end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from support.dropbear import running_dropbear
from support.gateways import Site

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


async def test_a_dropbear_is_logged_in_to_by_the_persons_own_agent(open_site: OpenSite) -> None:
    more = '[access]\nstanding_rights = ["exec", "agent"]\n[tunnels]\nurl = "ws://proxy.example"\n'
    async with open_site(more, authority=False) as site:
        folder = site.folder / "dropbear"
        folder.mkdir()
        async with running_dropbear(folder, site.program) as dropbear:
            ann = await site.user("ann", "admin")
            tiny = await site.ssh_device("tiny", "SN777")
            forward = ["-N", "-R", f"ssh:22:{dropbear.address}"]
            async with (
                site.connected(tiny, *forward),
                site.ssh_agent(folder / "user_key") as socket,
            ):
                await site.offers(tiny, "ssh")
                options = ["-A", "-o", f"IdentityAgent={socket}"]
                user = f"{site.sshd.user}@SN777"
                result = await site.ssh(ann, user, "echo in; exit 3", options=options)
        assert (result.stdout, result.returncode) == (b"in\n", 3), result.stderr


async def test_an_sshd_with_one_session_says_no_to_the_second(open_site: OpenSite) -> None:
    async with open_site(sshd_more="MaxSessions 1\n") as site:
        bob = await site.user("bob")
        await site.lease(bob)
        ssh = [site.program("ssh", "openssh-client"), *site.client(bob), "-p", str(site.port)]
        user = ["-l", f"{site.sshd.user}@cam1", "127.0.0.1"]
        control = ["-S", str(site.folder / "c")]
        first = await trio.lowlevel.open_process(
            [*ssh, "-M", *control, *user, "echo ready; cat"], stdin=-1, stdout=-1
        )
        assert first.stdin is not None
        assert first.stdout is not None
        with trio.fail_after(40):
            assert await first.stdout.receive_some(6) == b"ready\n"
        second = await site.run([*ssh, *control, *user, "echo too much"])
        assert second.stdout == b""
        assert b"the device's sshd gave no session" in second.stderr
        with trio.fail_after(40):
            await first.stdin.send_all(b"still here\n")
            assert await first.stdout.receive_some(11) == b"still here\n"
            await first.stdin.aclose()
            assert await first.wait() == 0


async def test_a_user_name_of_10_kb_is_refused_and_others_go_on(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    batch = ["-o", "BatchMode=yes"]
    for name in ("u" * 10_240, "u" * 1000, "u" * 300 + "@cam1"):
        refused = await site.ssh(bob, name, "true", options=batch)
        assert refused.returncode == 255
    result = await site.ssh(bob, f"{site.sshd.user}@cam1", "echo in")
    assert (result.stdout, result.returncode) == (b"in\n", 0)
