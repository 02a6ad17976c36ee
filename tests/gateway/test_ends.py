"""A lease's end is the end of what rests on it, whoever brings it about."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio

from support.gateways import TEST, Site, User
from support.terminal import Terminal
from tunnelmux.gateway.connection import TAKEN_BACK
from tunnelmux.registry import Lease

pytestmark = pytest.mark.slow

End = Callable[[Site, User, Lease], Awaitable[object]]

ENDS: dict[str, End] = {
    "the lease was ended": lambda site, _user, lease: site.tenant.leases.end(lease.id, "enough"),
    "the user was disabled": lambda site, user, _lease: site.registry.installation(
        TEST
    ).users.set_enabled(user.id, False),
    "the user is no member": lambda site, user, _lease: site.tenant.members.remove(user.id),
    "the key was removed": lambda site, user, _lease: remove_key(site, user),
}


async def remove_key(site: Site, user: User) -> None:
    keys = site.registry.installation(TEST).ssh_keys
    (key,) = await keys.of_user(user.id)
    await keys.remove(key.id, user_id=user.id)


async def in_session(site: Site, user: User) -> Terminal:
    """A terminal on the device that has answered."""
    terminal = await site.terminal(user, f"{site.sshd.user}@cam1")
    try:
        await terminal.type("echo re''ady\n")
        await terminal.expect("ready")
    except AssertionError:
        async with terminal:
            raise
    return terminal


async def near_its_end(site: Site, user: User, seconds: float) -> tuple[Lease, Terminal]:
    """A terminal with at least `seconds` left of its lease, and not many more: as few as the
    machine allows, which may be busy with other tests."""
    for more in (3, 10, 20):
        lease = await site.lease(user, seconds=seconds + more)
        try:
            terminal = await in_session(site, user)
        except AssertionError:
            continue  # it was over before the session began
        if (lease.ends - datetime.now(UTC)).total_seconds() > seconds:
            return lease, terminal
        async with terminal:
            await site.tenant.leases.end(lease.id, "it took too long")
    pytest.fail("a log-in took 30 s")


async def test_a_tenants_people_come_from_its_addresses_only(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    await site.tenant.ssh.change(addresses=["127.0.0.1"])
    async with await in_session(site, bob) as terminal:
        elsewhere = ["-o", "BindAddress=127.0.0.2"]
        refused = await site.ssh(bob, f"{site.sshd.user}@cam1", "true", options=elsewhere)
        assert b"does not let its people use SSH from this address" in refused.stderr
        await site.tenant.ssh.change(addresses=["192.0.2.0/24"])
        await terminal.expect("your access was taken back")


async def test_what_is_taken_back_ends_at_once(site: Site) -> None:
    for number, (how, end) in enumerate(ENDS.items()):
        user = await site.user(f"user{number}")
        lease = await site.lease(user)
        async with await in_session(site, user) as terminal:
            await end(site, user, lease)
            await terminal.expect("your access was taken back")
            assert await terminal.wait() != 0
        batch = ["-o", "BatchMode=yes"]  # the key of a disabled user is not known any more
        refused = await site.ssh(user, f"{site.sshd.user}@cam1", "true", options=batch)
        assert refused.returncode == 255, how


async def test_a_lease_ends_at_its_second_and_is_told_before(site: Site) -> None:
    bob = await site.user("bob")
    _, terminal = await near_its_end(site, bob, 60)
    async with terminal:
        await terminal.expect("your lease ends in 1 minute")
    ann = await site.user("ann")
    _, terminal = await near_its_end(site, ann, 1)
    async with terminal:
        await terminal.expect("your lease has ended")
        assert await terminal.wait() != 0


async def test_what_a_frozen_ssh_has_is_over_with_its_lease_too(site: Site) -> None:
    bob = await site.user("bob")
    lease = await site.lease(bob, rights=("exec", "forward"), sealed=True)
    ssh = [site.program("ssh", "openssh-client"), *site.client(bob), "-p", str(site.port)]
    session = [*ssh, "-l", f"{site.sshd.user}@cam1", "127.0.0.1", "yes"]
    frozen = []
    try:
        for words in (session, [*ssh, "-W", "cam1:22", "x@127.0.0.1"]):
            process = await trio.lowlevel.open_process(words, stdin=-1, stdout=-1)
            frozen.append(process)
            assert process.stdout is not None
            with trio.fail_after(60):
                assert await process.stdout.receive_some(1)
            process.send_signal(signal.SIGSTOP)
        await site.tenant.leases.end(lease.id, "enough")
        (record,) = await site.records_of(lease, 1, "lease.session")
        assert record["reason"] == TAKEN_BACK
        await site.records_of(lease, 1, "lease.forward")
        (recording,) = site.recordings()
        assert (await site.listed(recording)).size > 0
    finally:
        for process in frozen:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def test_a_lease_that_is_extended_goes_on(site: Site) -> None:
    bob = await site.user("bob")
    lease, terminal = await near_its_end(site, bob, 4)
    async with terminal:
        await site.tenant.leases.extend(lease.id, lease.ends + timedelta(hours=1))
        left = (lease.ends - datetime.now(UTC)).total_seconds()
        with trio.move_on_after(left + 1) as waited:
            await terminal.expect("your lease")
        assert waited.cancelled_caught
        await terminal.type("exit 4\n")
        assert await terminal.wait() == 4


async def test_a_gateway_that_stops_says_so(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    async with await in_session(site, bob) as terminal:
        site.gateway.send_signal(signal.SIGTERM)
        await terminal.expect("the gateway is stopped for a moment")
        assert await terminal.wait() != 0
    assert await site.gateway.wait() == 0
