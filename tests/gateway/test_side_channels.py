"""`ssh -A` and `ssh -X` through the gateway: as rights of their own, carried to the device."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from support.gateways import Site, User
from tunnelmux.gateway.side_channels import SideChannel

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]

COOKIE = 16

X_CLIENT = """\
import os, re, socket, struct, sys
print(os.environ["DISPLAY"], flush=True)
cookie = re.findall(r"MIT-MAGIC-COOKIE-1 ([0-9a-f]{32})", open(sys.argv[1]).read())[-1]
number = int(os.environ["DISPLAY"].rpartition(":")[2].partition(".")[0])
there = socket.create_connection(("127.0.0.1", 6000 + number), 30)
setup = struct.pack("<BxHHHHxx", 0x6C, 11, 0, 18, 16) + b"MIT-MAGIC-COOKIE-1" + bytes(2)
there.sendall(setup + bytes.fromhex(cookie))
print(there.recv(100).decode(), flush=True)
if len(sys.argv) == 2:
    there.shutdown(socket.SHUT_WR)
print(there.recv(100) == b"")
"""
"""What an X client sends first (X11 protocol, section 8): the cookie that sshd gave to xauth."""

SETUP = 12 + 20 + COOKIE

NO_DISPLAY = "echo ${DISPLAY:-none}"


@dataclass
class Display:
    """An X server that says welcome."""

    number: int
    clients: trio.MemoryReceiveChannel[trio.SocketStream]
    """Those that have connected."""


@asynccontextmanager
async def display() -> AsyncIterator[Display]:
    send, clients = trio.open_memory_channel[trio.SocketStream](10)

    async def hand_over(client: trio.SocketStream) -> None:
        await send.send(client)
        await trio.sleep_forever()  # serve_listeners would close it

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hand_over, listeners)
        yield Display(listeners[0].socket.getsockname()[1] - 6000, clients)
        nursery.cancel_scope.cancel()


async def welcome(shown: Display, then: Callable[[], Awaitable[object]]) -> bytes:
    """Serve one client to its end, and return what it said first."""
    with trio.fail_after(240):
        async with await shown.clients.receive() as client:
            got = b""
            while len(got) < SETUP:
                data = await client.receive_some()
                assert data
                got += data
            await client.send_all(b"welcome")
            await then()
            assert await client.receive_some() == b""
    return got


async def with_display(
    site: Site, user: User, number: int, command: str
) -> tuple[int, list[str], str]:
    """`ssh -Y` with that display: its status, the lines of its output, its standard error."""
    words = [site.program("ssh", "openssh-client"), "-Y", "-o", "XAuthLocation=/nonexistent"]
    words += [*site.client(user), "-p", str(site.port), "-l", f"{site.sshd.user}@cam1"]
    words = ["env", f"DISPLAY=127.0.0.1:{number}", *words, "127.0.0.1", command]
    result = await site.run(words)
    return result.returncode, result.stdout.decode().splitlines(), result.stderr.decode()


async def test_the_agent_goes_to_the_device_where_the_right_is_there(site: Site) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob, rights=("exec", "agent", "x11"))
    target, command = f"{site.sshd.user}@cam1", "ssh-add -l; echo ${SSH_AUTH_SOCK:+some}"
    async with site.ssh_agent(site.sshd.folder / "user_key") as socket:
        with_agent = ["-A", "-o", f"IdentityAgent={socket}"]
        result = await site.ssh(bob, target, command, options=with_agent)
        keygen = site.program("ssh-keygen", "openssh-client")
        listed = await site.run([keygen, "-l", "-f", str(site.sshd.folder / "user_key.pub")])
        assert listed.stdout.split()[1] in result.stdout, result.stderr
        assert result.stdout.endswith(b"some\n")
        (record,) = await site.records_of(lease, 1, "lease.forward")
        assert record["what"] == "agent"
        assert record["from_device"] > 0
        assert record["to_device"] > 0
        # The sessions of one connection that ask for none get none.
        plain = await site.ssh(bob, target, command)
        assert b"some" not in plain.stdout
        # Without the right, the session goes on without the agent, and says so.
        eve = await site.user("eve")
        await site.lease(eve, rights=("exec",))
        refused = await site.ssh(eve, target, command, options=with_agent)
        assert refused.stdout == b"\n"
        assert b"your SSH agent is not forwarded: that needs the right agent" in refused.stderr
    status, lines, problem = await with_display(site, bob, 0, NO_DISPLAY)
    assert (status, lines) == (0, ["none"])
    assert "the device's sshd forwards no X11" in problem


async def test_a_display_is_reached_from_the_device(open_site: OpenSite, tmp_path: Path) -> None:
    xauth, said = tmp_path / "xauth", tmp_path / "xauth.said"
    xauth.write_text(f"#!/bin/sh\ncat >> {said}\n")
    xauth.chmod(0o755)
    client = tmp_path / "client.py"
    client.write_text(X_CLIENT)
    more = f"X11Forwarding yes\nXAuthLocation {xauth}\n"
    async with open_site(sshd_more=more) as site, display() as shown:
        bob = await site.user("bob")
        lease = await site.lease(bob, rights=("exec", "x11"))
        command = f"{sys.executable} {client} {said}"
        setups: list[bytes] = []

        async def serve(then: Callable[[], Awaitable[object]]) -> None:
            setups.append(await welcome(shown, then))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, trio.lowlevel.checkpoint)
            status, lines, problem = await with_display(site, bob, shown.number, command)
        assert (status, lines[1:]) == (0, ["welcome", "True"]), problem
        assert lines[0].startswith("localhost:")
        assert b"MIT-MAGIC-COOKIE-1" in setups[0]
        (record,) = await site.records_of(lease, 1, "lease.forward")
        assert (record["what"], record["from_device"]) == ("x11", SETUP)
        eve = await site.user("eve")
        await site.lease(eve, rights=("exec",))
        status, lines, problem = await with_display(site, eve, shown.number, NO_DISPLAY)
        assert (status, lines) == (0, ["none"])
        assert "X11 is not forwarded: that needs the right x11" in problem

        # What a lease has opened ends with it.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, partial(site.tenant.leases.end, lease.id, "enough"))
            command += " and stay"
            status, lines, problem = await with_display(site, bob, shown.number, command)
        assert "your access was taken back" in problem
        assert (status, lines[1:]) == (255, ["welcome"])


def test_a_cut_is_the_end_though_neither_side_answers_it() -> None:
    overs: list[SideChannel] = []
    end, other = SideChannel("x11", overs.append), SideChannel("x11")
    end.other, other.other = other, end
    ends: list[str] = []
    for one in (end, other):
        one.connection_made(
            SimpleNamespace(
                abort=lambda: ends.append("abort"), close=lambda: None, resume_reading=lambda: None
            )
        )
    end.cut("the lease has ended")
    end.connection_lost(None)
    assert (overs, ends) == ([end], ["abort", "abort"])
