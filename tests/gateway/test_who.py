"""Who gets in, who does not, and what they are told."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from support.front_proxies import running_haproxy
from support.gateways import TEST, Site, User
from tunnelmux.registry import Actor

pytestmark = pytest.mark.slow

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


async def test_nobody_is_let_in_by_default(site: Site) -> None:
    account = site.sshd.user
    stranger = await site.user("stranger", None, registered=False)
    batch = ["-o", "BatchMode=yes"]
    refused = await site.ssh(stranger, f"{account}@cam1", "true", options=batch)
    assert refused.returncode == 255
    assert b"Permission denied" in refused.stderr
    for name, role in (("of-no-tenant", None), ("viewer", "viewer"), ("owner", "owner")):
        person = await site.user(name, role)
        refused = await site.ssh(person, f"{account}@cam1", "true")
        assert refused.returncode == 255
        words = b'no device called "cam1"' if role is None else b"ask for a lease"
        assert words in refused.stderr
        # What is not there is not told apart from what may not be known.
        refused = await site.ssh(person, f"{account}@cam2", "true")
        assert b'you reach no device called "cam2"' in refused.stderr
    # Somebody who has only the public half of a key cannot sign, and is not its owner.
    owner = await site.user("owner2")
    await site.lease(owner)
    public = owner.key.with_suffix(".key.pub")
    thief = User("", "thief", owner.key.with_name("thief"))
    thief.key.write_bytes(public.read_bytes())
    thief.key.chmod(0o600)
    thief.key.with_name("thief.pub").write_bytes(public.read_bytes())
    refused = await site.ssh(thief, f"{account}@cam1", "true", options=batch)
    assert (refused.returncode, b"Permission denied" in refused.stderr) == (255, True)
    (key,) = await site.registry.installation(TEST).ssh_keys.of_user(owner.id)
    assert key.last_used is None
    viewer = await site.user("viewer2")
    await site.lease(viewer, rights=("exec",), addresses=("192.0.2.0/24",))
    refused = await site.ssh(viewer, f"{account}@cam1", "true")
    assert b"nothing lets you into" in refused.stderr
    await site.lease(viewer, rights=("exec",), addresses=("127.0.0.0/8",))
    assert (await site.ssh(viewer, f"{account}@cam1", "true")).returncode == 0
    shell = await site.ssh(viewer, f"{account}@cam1", options=["-T"])
    assert b"you may exec" in shell.stderr


async def test_an_unknown_key_is_confirmed_in_a_browser_and_registered_when_it_signs(
    site: Site,
) -> None:
    ada = await site.user("ada", registered=False)
    await site.lease(ada)
    keys = site.registry.installation(TEST).ssh_keys
    target = f"{site.sshd.user}@cam1"
    async with await site.terminal(ada, target) as terminal:
        await terminal.expect("Open https://console.example.com/terminal?code=")
        await terminal.expect("Then press Enter")
        code = re.findall(r"code=([A-Z0-9-]+)", terminal.shown)[0]
        me = Actor(kind="user", id=ada.id, name=ada.name)
        mine = site.registry.tenant(site.tenant.tenant_id, me)
        assert "ssh with the key SHA256:" in (await mine.terminals.find(code)).client
        token = await mine.terminals.approve(
            code, user_id=ada.id, role="viewer", scopes=(), lifetime=600.0
        )
        await terminal.type("\n")
        await terminal.type("echo in as $TUNNELMUX_ACTOR\n")
        await terminal.expect("in as ada@example.com")
    assert (await mine.access_tokens.find(token.id)).revoked is not None
    assert await keys.of_user(ada.id) == []  # nothing was signed with it yet
    assert (await site.ssh(ada, target, "true")).returncode == 0
    await site.gateway.logged("key registered", person=ada.name)
    (key,) = await keys.of_user(ada.id)
    assert key.line.split()[1] in ada.key.with_suffix(".key.pub").read_text()
    assert (await site.ssh(ada, target, "true")).returncode == 0
    # Whoever does not confirm is not let in.
    eve = await site.user("eve", registered=False)
    async with await site.terminal(eve, target) as terminal:
        await terminal.expect("Then press Enter")
        code = re.findall(r"code=([A-Z0-9-]+)", terminal.shown)[0]
        await mine.terminals.deny(code)
        await terminal.type("\n")
        assert await terminal.wait() == 255
        assert "Permission denied" in terminal.shown


async def test_a_ticket_lets_one_session_in_once(site: Site) -> None:
    bob = await site.user("bob", registered=False)
    await site.lease(bob)
    _, ticket = await site.tenant.tickets.add(user_id=bob.id, device_id=site.device_id)
    site.daemons.secrets.add(ticket.reveal())
    target = f"ticket-{ticket.reveal()}@{site.sshd.user}"
    first = await site.ssh(bob, target, "echo in")
    assert (first.stdout, first.returncode) == (b"in\n", 0), first.stderr
    again = await site.ssh(bob, target, "echo in")
    assert again.returncode == 255
    assert b"this ticket is not valid" in again.stderr


async def test_an_operator_may_what_the_configuration_says_without_a_lease(
    open_site: OpenSite,
) -> None:
    more = '[access]\nstanding_rights = ["exec"]\naccounts = ["nobody", "root"]\n'
    async with open_site(more) as site:
        ann = await site.user("ann", "operator")
        result = await site.ssh(ann, f"{site.sshd.user}@cam1", "echo $TUNNELMUX_LEASE.")
        assert result.stdout == b".\n"
        terminal = await site.terminal(ann, site.sshd.user)
        async with terminal:
            await terminal.expect("1  cam1")
            await terminal.type("1\r")
            await terminal.expect("you may exec")
        other = await site.ssh(ann, "daemon@cam1", "true")
        assert b'the account "daemon" is not one of nobody, root' in other.stderr
        assert (await site.ssh(await site.user("eve"), "root@cam1", "true")).returncode == 255


async def test_an_address_that_fails_often_is_slowed_down_and_keeps_no_one_out(
    open_site: OpenSite,
) -> None:
    more = "[limits]\nmax_failures = 3\nfailure_period = 600.0\n"
    async with open_site(more) as site:
        stranger = await site.user("stranger", registered=False)
        batch = ["-o", "BatchMode=yes"]
        nothing = [*batch, "-o", "PreferredAuthentications=none"]
        # A client that shows no credential, and another name each time, has failed too.
        for name, options in (("root@cam1", batch), ("root@cam2", nothing), ("x@cam3", nothing)):
            before = len(site.gateway.events)
            await site.ssh(stranger, name, "true", options=options)
            await site.gateway.logged("ssh login failed", since=before)
        bob = await site.user("bob")
        await site.lease(bob)
        # Its next thousand hang up before their turns come; others do not notice.
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(come_again, site.port, 50)
            elsewhere = await site.ssh(
                bob, f"{site.sshd.user}@cam1", "true", options=["-o", "BindAddress=127.0.0.2"]
            )
        assert elsewhere.returncode == 0, elsewhere.stderr
        # Nor does one keep out a neighbour at the same address.
        beside = await site.ssh(bob, f"{site.sshd.user}@cam1", "true")
        assert beside.returncode == 0, beside.stderr


async def come_again(port: int, times: int) -> None:
    """Connect so often, say hello, and hang up."""
    for _ in range(times):
        with trio.fail_after(40), contextlib.suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"SSH-2.0-again\r\n")


async def test_what_is_no_user_name_is_told_how_to_write_one(site: Site) -> None:
    bob = await site.user("bob")
    for name in ("a b@cam1", "@cam1", "x@y@z", "u" * 300):
        refused = await site.ssh(bob, name, "true")
        assert refused.returncode == 255
        assert b"write ssh ACCOUNT@DEVICE@GATEWAY" in refused.stderr
    # Longer ones end in the library, before there is anybody to talk to.
    assert (await site.ssh(bob, "u" * 10_240, "true")).returncode == 255
    await site.lease(bob)
    assert (await site.ssh(bob, f"{site.sshd.user}@cam1", "true")).returncode == 0
    # Without a device a program is told the same, and a person gets a list.
    refused = await site.ssh(bob, site.sshd.user, "true")
    assert b"no device is named: write ssh ACCOUNT@DEVICE@GATEWAY" in refused.stderr
    async with await site.terminal(bob, site.sshd.user) as terminal:
        await terminal.expect("1  cam1")
        await terminal.expect("A number, or a part of a name")
        await terminal.type("1\recho the de''vice\r")  # the second for the device
        await terminal.expect("the device")
        await terminal.type("exit 3\n")
        assert await terminal.wait() == 3


async def test_connections_from_elsewhere_end_at_once_and_those_without_a_log_in_after_a_time(
    open_site: OpenSite,
) -> None:
    more = '[gateway]\nallow = ["127.0.0.1/32"]\n[limits]\nlogin_timeout = 1\n'
    async with open_site(more) as site:
        elsewhere = "127.0.0.2"
        stream = await trio.open_tcp_stream("127.0.0.1", site.port, local_address=elsewhere)
        async with stream:
            with trio.fail_after(30):
                assert await stream.receive_some() == b""
        await site.gateway.logged("ssh connection refused", reason="not in gateway.allow")
        stream = await trio.open_tcp_stream("127.0.0.1", site.port)
        async with stream:
            await stream.send_all(b"SSH-2.0-silent\r\n")
            with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass


async def test_a_host_certificate_is_served(open_site: OpenSite, tmp_path: Path) -> None:
    state = tmp_path / "gateway-state"
    state.mkdir(mode=0o700)
    key, authority = state / "ssh_host_ed25519_key", tmp_path / "host_ca"
    for file in (key, authority):
        await trio.run_process(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True
        )
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "gw", "-h", "-n", "127.0.0.1"]
    await trio.run_process([*sign, f"{key}.pub"])
    known = tmp_path / "by_authority"
    known.write_text(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    more = f'[gateway]\nhost_certificate = "{key}-cert.pub"\n'
    async with open_site(more) as site:
        bob = await site.user("bob")
        await site.lease(bob)
        options = ["-o", f"UserKnownHostsFile={known}"]
        result = await site.ssh(bob, f"{site.sshd.user}@cam1", "echo in", options=options)
        assert (result.stdout, result.returncode) == (b"in\n", 0), result.stderr
        plain = await site.ssh(bob, f"{site.sshd.user}@cam1", "echo in")
        assert plain.stdout == b"in\n"  # who has the plain key goes on with it


async def test_a_certificate_by_the_tenants_authority_is_its_member(site: Site) -> None:
    keygen = site.program("ssh-keygen", "openssh-client")
    authority = site.folder / "people_ca"
    await site.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(authority)])
    bob = await site.user("bob", registered=False)
    lease = await site.lease(bob)
    certificate = bob.key.with_name(f"{bob.key.name}-cert.pub")

    async def log_in_with(principals: str, *more: str) -> subprocess.CompletedProcess[bytes]:
        certificate.unlink(missing_ok=True)
        words = [keygen, "-q", "-s", str(authority), "-I", "bob", "-n", principals, *more]
        made = await site.run([*words, f"{bob.key}.pub"])
        assert made.returncode == 0, made.stderr
        options = ["-o", "BatchMode=yes", "-o", f"CertificateFile={certificate}"]
        user = f"{site.sshd.user}@cam1"
        return await site.ssh(bob, user, "echo $TUNNELMUX_ACTOR", options=options)

    assert (await log_in_with("bob@example.com")).returncode == 255  # its authority is not known
    line = authority.with_suffix(".pub").read_text()
    await site.tenant.ssh.change(user_authorities=[line])
    result = await log_in_with("bob@example.com", "-V", "+5m")
    assert (result.stdout, result.returncode) == (b"bob@example.com\n", 0), result.stderr
    assert len(await site.records_of(lease, 1, "lease.session")) == 1
    for refused in (
        await log_in_with("ann@example.com"),  # no member
        await log_in_with("bob@example.com", "-V", "-2d:-1d"),
        await log_in_with("bob@example.com", "-O", "source-address=192.0.2.1"),
        await log_in_with("bob@example.com", "-h"),  # a host's
    ):
        assert (refused.stdout, refused.returncode) == (b"", 255)
    # What goes on ends when the authority is trusted no more.
    await log_in_with("bob@example.com")
    async with await site.terminal(bob, f"{site.sshd.user}@cam1") as terminal:
        await terminal.type("echo re''ady\n")
        await terminal.expect("ready")
        await site.tenant.ssh.change(user_authorities=[])
        await terminal.expect("your access was taken back")
        assert await terminal.wait() != 0


async def test_behind_a_load_balancer_each_address_counts_for_itself(
    open_site: OpenSite, tmp_path: Path, debian_program: Callable[[str, str], str]
) -> None:
    """HAProxy in front, which speaks of two addresses: one may come in, one not."""
    more = '[gateway]\ntrusted_proxies = ["127.0.0.1"]\nallow = ["127.0.0.2"]\n'
    async with open_site(more) as site:
        bob = await site.user("bob")
        await site.lease(bob)
        async with running_haproxy(tmp_path, debian_program, site.port) as port:
            known = (tmp_path / "gateway_known_hosts").read_text().partition(" ")[2]
            (tmp_path / "behind_haproxy").write_text(f"gateway {known}")
            hosts = [
                "-o",
                "HostKeyAlias=gateway",
                "-o",
                f"UserKnownHostsFile={tmp_path}/behind_haproxy",
            ]
            for address, outcome in (("127.0.0.2", 0), ("127.0.0.3", 255)):
                options = [*hosts, "-o", f"BindAddress={address}", "-p", str(port)]
                result = await site.ssh(bob, f"{site.sshd.user}@cam1", "true", options=options)
                assert result.returncode == outcome, result.stderr
        await site.gateway.logged("ssh connection refused", address="127.0.0.3")
        # What comes from the balancer's address without a head is not a person's.
        stream = await trio.open_tcp_stream("127.0.0.1", site.port)
        async with stream:
            await stream.send_all(b"SSH-2.0-direct\r\n")
            with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        await site.gateway.logged("no PROXY protocol head")
