"""The holder of a device's code, who is no user: to that one device, for that lease."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from support.gateways import Site, User
from support.terminal import open_terminal
from tunnelmux.agent.assist.code import derive_key, normal_code
from tunnelmux.agent.assist.orders import Order

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


async def holder_of_a_code(site: Site) -> tuple[str, User]:
    """The lease, and who has been told the code; once the registry knows of it."""
    order = Order(do="code", seconds=600, services=["ssh"])
    made = await site.agent.assist._make_code(order)
    code = normal_code(made["code"])
    assert code is not None
    file = site.folder / "code.key"
    # In a thread: proxy and agent are in this one, and it takes long on a busy machine.
    key = await trio.to_thread.run_sync(derive_key, code, made["lease"], "SN123")
    write_key(file, key.private.reveal())
    with trio.fail_after(60):
        while True:
            leases = (await site.tenant.leases.page()).items
            if any(lease.id == made["lease"] for lease in leases):
                return made["lease"], User("", "code", file)
            await trio.sleep(0.05)


def write_key(file: Path, text: str) -> None:
    file.touch(0o600)
    file.write_text(text)


def through(site: Site, user: User, host: str, *command: str) -> list[str]:
    """ssh to the device by way of the gateway, with the one key for both."""
    ssh = site.program("ssh", "openssh-client")
    options = site.client(user, "HostKeyAlias=device")
    # The gateway is known by its address, so it needs the options without the alias.
    inner = " ".join(f"'{word}'" for word in [ssh, *site.client(user), "-p", str(site.port)])
    proxy = f"ProxyCommand={inner} -W %h:%p code@127.0.0.1"
    return [ssh, *options, "-o", proxy, f"{site.sshd.user}@{host}", *command]


async def test_a_code_leads_to_its_device_while_its_lease_runs(open_site: OpenSite) -> None:
    async with open_site(codes=True) as site:
        lease, holder = await holder_of_a_code(site)
        result = await site.run(through(site, holder, "sn123", "echo in"))
        assert (result.stdout, result.returncode) == (b"in\n", 0), result.stderr
        assert site.recordings() == []  # past the gateway
        records = [
            item["action"] for item in await site.records(await site.tenant.leases.find(lease))
        ]
        assert "lease.use" in records
        await site.tenant.devices.add("cam2", serial="SN124")
        refused = await site.run(through(site, holder, "sn124", "true"))
        assert b'you reach no device called "sn124"' in refused.stderr
        # Recorded: the code's key is in the person's agent, and logs in to the device from there.
        target, command = f"{site.sshd.user}@SN123", "echo in $TUNNELMUX_LEASE"
        refused = await site.ssh(holder, target, command)
        assert b"with your own SSH agent: use ssh -A" in refused.stderr
        async with site.ssh_agent(holder.key) as socket:
            with_agent = ["-A", "-o", f"IdentityAgent={socket}"]
            recorded = await site.ssh(holder, target, command, options=with_agent)
            assert recorded.stdout == f"in {lease}\n".encode(), recorded.stderr
            elsewhere = await site.ssh(holder, "root@SN124", "true", options=with_agent)
            assert b'you reach no device called "SN124"' in elsewhere.stderr
            words = [site.program("ssh", "openssh-client"), *with_agent, *site.client(holder)]
            words += ["-p", str(site.port), "-tt", "-l", site.sshd.user, "127.0.0.1"]
            async with await open_terminal(words) as terminal:
                await terminal.type("exit 3\n")  # to the one device, without a list
                assert await terminal.wait() == 3
        running = await site.tenant.leases.find(lease)
        sessions = await site.records_of(running, 2, "lease.session")
        assert [item["kind"] for item in sessions] == ["exec", "shell"]
        assert len(site.recordings()) == 2
        web = await site.ssh(holder, "code", options=["-W", "web--sn123:80"])
        assert b"has no service web for you (it has ssh)" in web.stderr
        async with trio.open_nursery() as nursery:
            words = through(site, holder, "sn123", "echo ready; sleep 100")
            process = await trio.lowlevel.open_process(words, stdout=-1, stderr=-1)
            assert process.stdout is not None
            with trio.fail_after(30):
                assert await process.stdout.receive_some(6) == b"ready\n"
            nursery.start_soon(site.tenant.leases.end, lease, "enough")
            with trio.fail_after(30):
                assert await process.wait() == 255
        # Its key is nobody's now: without a person to confirm it, that is the end.
        batch = site.client(holder, "BatchMode=yes")
        ssh = [site.program("ssh", "openssh-client"), *batch, "-p", str(site.port)]
        over = await site.run([*ssh, "-W", "sn123:22", "code@127.0.0.1"])
        assert over.returncode == 255
        assert b"Permission denied" in over.stderr
