"""`ssh -J`, `-W` and `-L`: the gateway carries what it cannot read, to declared services only."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from support.gateways import Site
from support.proxies import free_port

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


async def test_a_jump_reaches_the_devices_own_sshd(site: Site) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob, rights=("forward",), sealed=True, recorded=False)
    file = site.jump_configuration(bob)
    ssh = site.program("ssh", "openssh-client")
    for name in ("SN123", "cam1", "ssh--cam1"):
        words = [ssh, "-F", str(file), "-o", "HostKeyAlias=device", "-J", "x@gw"]
        words += ["-i", f"{site.sshd.folder}/user_key"]
        words += ["-o", f"UserKnownHostsFile={site.sshd.folder}/known_hosts"]
        result = await site.run([*words, f"{site.sshd.user}@{name}", "echo sealed; exit 5"])
        assert (result.stdout, result.returncode) == (b"sealed\n", 5), result.stderr
    (first, *_) = await site.records_of(lease, 3, "lease.forward")
    assert first["service"] == "ssh"
    assert first["from_device"] > 1000
    assert first["recording"] == "none: this is sealed"
    assert site.recordings() == []
    recorded = await site.ssh(bob, f"{site.sshd.user}@cam1", "true")
    assert recorded.returncode == 255
    assert b"you may forward" in recorded.stderr


async def test_only_declared_services_of_the_lease_are_reached(site: Site) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob, services=("web",), rights=("forward",))
    file = site.jump_configuration(bob)
    ssh = site.program("ssh", "openssh-client")
    port = free_port()
    words = [ssh, "-F", str(file), "-N", "-L", f"127.0.0.1:{port}:web--cam1:80", "x@gw"]
    process = await trio.lowlevel.open_process(words, stdin=subprocess.DEVNULL)
    try:
        await site.gateway.logged("ssh login")
        curl = site.program("curl", "curl")
        url = f"http://127.0.0.1:{port}/"
        answer = await site.run([curl, "-s", "--retry", "10", "--retry-connrefused", url])
        assert answer.stdout == b"hello\n"
    finally:
        process.terminate()
        await process.wait()
    (forward, *_) = await site.records_of(lease, 1, "lease.forward")
    assert (forward["service"], forward["recording"]) == ("web", "none: this is sealed")
    for target, why in (
        ("cam1:22", b"no service ssh for you (it has web)"),
        ("cam1:8080", b"is no service: write SERVICE--cam1"),
        ("other:80", b'no device called "other"'),
        ("10.0.0.1:80", b'no device called "10.0.0.1"'),
    ):
        refused = await site.run([ssh, "-F", str(file), "-W", target, "x@gw"])
        assert refused.returncode != 0
        assert why in refused.stderr, refused.stderr


async def test_a_connection_has_so_many_forwards_and_gets_them_back(open_site: OpenSite) -> None:
    async with open_site("[limits]\nmax_sessions = 2\n") as site:
        bob = await site.user("bob")
        await site.lease(bob, rights=("forward",))
        file = site.jump_configuration(bob)
        port = free_port()
        words = [site.program("ssh", "openssh-client"), "-F", str(file), "-N"]
        words += ["-L", f"127.0.0.1:{port}:web--cam1:80", "x@gw"]
        process = await trio.lowlevel.open_process(words, stdin=subprocess.DEVNULL)
        try:
            await site.gateway.logged("ssh login")
            await wait_listening(port)
            async with (
                await trio.open_tcp_stream("127.0.0.1", port) as first,
                await trio.open_tcp_stream("127.0.0.1", port) as second,
            ):
                await first.send_all(b"GET / HTTP/1.1\r\n")
                await second.send_all(b"GET / HTTP/1.1\r\n")
                with trio.fail_after(30):
                    while not await is_closed_at_once(port):
                        pass
            url = f"http://127.0.0.1:{port}/"
            for _ in range(5):
                again = ["--retry", "20", "--retry-all-errors", "--retry-delay", "1"]
                answer = await site.run([site.program("curl", "curl"), "-s", *again, url])
                assert answer.stdout == b"hello\n"
        finally:
            process.terminate()
            await process.wait()


async def is_closed_at_once(port: int) -> bool:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with trio.move_on_after(1):
            return await stream.receive_some() == b""
    return False


async def wait_listening(port: int) -> None:
    with trio.fail_after(20):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return


async def test_a_recorded_lease_is_not_gone_past_and_no_remote_forward_is_made(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob, rights=("shell", "exec", "forward"))
    file = site.jump_configuration(bob)
    ssh = site.program("ssh", "openssh-client")
    refused = await site.run([ssh, "-F", str(file), "-W", "cam1:22", "x@gw"])
    assert b"this lease is for recorded sessions" in refused.stderr
    options = ["-o", "ExitOnForwardFailure=yes", "-N", "-R", "0:127.0.0.1:1"]
    refused = await site.run([ssh, "-F", str(file), *options, "x@gw"])
    assert refused.returncode == 255
    assert b"remote port forwarding failed" in refused.stderr
