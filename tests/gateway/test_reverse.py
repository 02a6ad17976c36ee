"""Devices that have nothing but OpenSSH: `ssh -R` makes them devices like any other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from support.gateways import Site
from support.visitor import fetch
from tunnelmux.config import Address
from tunnelmux.gateway.reverse import KEY_EXPIRED, TAKEN_BACK, parse_assist, service_of

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]

TUNNELS = '[tunnels]\nurl = "ws://proxy.example"\n'


def visitors(site: Site) -> Address:
    address = site.proxy.http_address
    assert address is not None
    return address


def web_of(site: Site) -> str:
    (web,) = [one.address for one in site.agent.config.services if one.name == "web"]
    return str(web)


@pytest.mark.slow
async def test_its_forwards_are_services_for_as_long_as_it_is_connected(
    open_site: OpenSite,
) -> None:
    async with open_site(TUNNELS, public=("old1",)) as site:
        old = await site.ssh_device("old1", "SN777")
        bob = await site.user("bob")
        account = site.sshd.user
        words = ["-N", "-R", f"ssh:22:{site.sshd.address}", "-R", f"web:80:{web_of(site)}"]
        async with site.connected(old, *words) as process:
            await site.offers(old, "ssh", "web")
            lease = await site.lease(bob, device_id=old.id, rights=("exec", "forward"), sealed=True)
            result = await site.ssh(
                bob, f"{account}@SN777", "echo $TUNNELMUX_LEASE; cat", send=b"x" * 300_000
            )
            assert (result.returncode, result.stderr) == (0, b"")
            assert result.stdout == lease.id.encode() + b"\n" + b"x" * 300_000
            for _ in range(2):
                answer = await fetch(visitors(site), device="old1", service="web")
                assert (answer.status, answer.body) == (200, b"hello\n")
            ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            web = await site.ssh(bob, "any", options=["-W", "web--sn777:80"], send=ask)
            assert web.stdout.endswith(b"\r\n\r\nhello\n")
            process.terminate()
            await process.wait()
            await site.offers(old)
        refused = await site.ssh(bob, f"{account}@SN777", "true")
        assert refused.returncode == 255
        assert (await fetch(visitors(site), device="old1", service="web")).status == 503


@pytest.mark.slow
async def test_forwards_as_old_clients_write_them(open_site: OpenSite) -> None:
    async with open_site(TUNNELS, public=("rsa", "ecdsa", "ed25519")) as site:
        bob = await site.user("bob")
        for kind, forwards, services in (
            ("rsa", ("0:{ssh}", "0:{web}"), ("ssh", "web")),
            ("ecdsa", ("2222:{ssh}", "8080:{web}"), ("ssh", "web")),
            ("ed25519", ("*:22:{ssh}", "printer:9100:{web}"), ("ssh", "printer")),
        ):
            old = await site.ssh_device(kind, f"sn-{kind}", kind=kind)
            words = ["-N"]
            for forward in forwards:
                words += ["-R", forward.format(ssh=site.sshd.address, web=web_of(site))]
            async with site.connected(old, *words):
                await site.offers(old, *services)
                await site.lease(bob, device_id=old.id, services=services)
                result = await site.ssh(bob, f"{site.sshd.user}@{kind}", "echo in")
                assert (result.stdout, result.stderr) == (b"in\n", b"")
                answer = await fetch(visitors(site), device=kind, service=services[1])
                assert answer.status == 200


@pytest.mark.slow
async def test_it_says_itself_how_long(open_site: OpenSite) -> None:
    async with open_site(TUNNELS) as site:
        old = await site.ssh_device("old1", "SN777")
        forward = ["-R", f"ssh:22:{site.sshd.address}"]
        async with site.connected(old, *forward, "assist --for 3s") as process:
            await site.gateway.logged("ssh device connected", device="old1")
            with trio.fail_after(30):
                assert await process.wait() == 0
            assert process.stderr is not None
            said = bytes(await process.stderr.receive_some())
            assert b"old1 (SN777) offers ssh" in said
            assert b"its time is over" in said
        await site.offers(old)
        async with site.connected(old, *forward, "rm -rf /") as process:
            with trio.fail_after(30):
                assert await process.wait() == 64


@pytest.mark.slow
async def test_a_key_that_is_taken_back_ends_it_and_nobody_else_is_let_in(
    open_site: OpenSite,
) -> None:
    async with open_site(TUNNELS) as site:
        old = await site.ssh_device("old1", "SN777")
        forward = ["-N", "-R", f"ssh:22:{site.sshd.address}"]
        async with site.connected(old, *forward) as process:
            await site.offers(old, "ssh")
            await site.tenant.device_ssh_keys.remove(old.id, old.key_id)
            with trio.fail_after(30):
                assert await process.wait() == 255
            await site.gateway.logged("ssh device ended", reason=TAKEN_BACK)
        await site.offers(old)
        async with site.connected(old, *forward) as process:
            with trio.fail_after(30):
                assert await process.wait() == 255
        other = await site.ssh_device("old2", "SN888")
        other.serial = old.serial
        async with site.connected(other, *forward) as process:
            with trio.fail_after(30):
                assert await process.wait() == 255
        # A person's key opens no service on a device, and a device's reaches none.
        other.serial = "SN888"
        refused = ["-o", "ExitOnForwardFailure=yes"]
        async with site.connected(other, *refused, "-N", "-R", "a.b:1:localhost:1") as process:
            with trio.fail_after(30):
                assert await process.wait() == 255
        bob = await site.user("bob")
        options = [*refused, "-N", "-R", "ssh:22:localhost:22"]
        assert (await site.ssh(bob, "any", options=options)).returncode == 255


def test_what_a_forward_is_called() -> None:
    for host, port, taken, service in (
        ("ssh", 22, set(), "ssh"),
        ("web", 80, set(), "web"),
        ("web", 81, {"web"}, None),
        ("localhost", 0, set(), "ssh"),
        ("", 0, {"ssh"}, "web"),
        ("", 0, {"ssh", "web"}, None),
        ("localhost", 2222, set(), "ssh"),
        ("*", 443, set(), "https"),
        ("localhost", 9100, set(), "port-9100"),
        ("192.0.2.7", 80, set(), None),
        ("a--b", 80, set(), None),
        ("x" * 33, 80, set(), None),
    ):
        assert service_of(host, port, taken) == service, (host, port)


def test_how_long_assist_is() -> None:
    for command, seconds in (
        ("assist --for 2h", 7200),
        (" assist  --for=90m ", 5400),
        ("assist --for 5s", 5),
        ("assist", 43_200),
        ("assist --for 99h", 43_200),
        ("assist --for", None),
        ("assist; reboot", None),
        ("", None),
    ):
        assert parse_assist(command) == seconds, command


@pytest.mark.slow
async def test_a_key_ends_at_its_second_and_a_later_end_is_taken_over(open_site: OpenSite) -> None:
    async with open_site(TUNNELS) as site:
        old = await site.ssh_device("old1", "SN777")
        line = old.key.with_suffix(".key.pub").read_text()
        forward = ["-N", "-R", f"ssh:22:{site.sshd.address}"]
        async with site.connected(old, *forward) as process:
            await site.offers(old, "ssh")
            await site.tenant.device_ssh_keys.add(old.id, line, 4)
            await site.tenant.device_ssh_keys.add(old.id, line, 3600)
            with trio.move_on_after(6) as waited:
                await process.wait()
            assert waited.cancelled_caught
            await site.tenant.device_ssh_keys.add(old.id, line, 2)
            with trio.fail_after(30):
                assert await process.wait() == 255
            await site.gateway.logged("ssh device ended", reason=KEY_EXPIRED)
