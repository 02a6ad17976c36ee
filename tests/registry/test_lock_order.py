"""On PostgreSQL several change one tenant at once: each waits for its turn, and what it knew from
before its turn may not be true any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
import trio

from support.postgresql import PostgreSQL
from support.registries import ANN, OpenRegistry
from support.tenants import SSH_KEY
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import Arrival, Registry, SignedIn, TenantRegistry, User

Act = Callable[[], Awaitable[Any]]

ISSUER = "https://id.example.com"

SYSTEM = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
async def registry(open_registry: OpenRegistry) -> AsyncIterator[Registry]:
    async with open_registry(timeout=30.0) as opened:
        yield opened


class Turns:
    """Lets acts wait for one tenant's turn in an order, and tells what became of each."""

    def __init__(self, server: PostgreSQL, url: str) -> None:
        self._server = server
        self._url = url

    async def in_order(self, tenant_id: str, *acts: Act) -> list[Any]:
        """What they returned, or the code with which each was refused."""
        results: list[Any] = [None] * len(acts)

        async def run(number: int, act: Act) -> None:
            try:
                results[number] = await act()
            except RegistryRefused as refused:
                results[number] = refused.code
            except NoSuchRecord:
                results[number] = "none"

        async with trio.open_nursery() as nursery, self._held(tenant_id):
            for number, act in enumerate(acts):
                nursery.start_soon(run, number, act)
                with trio.fail_after(20):
                    while await self._waiting() <= number:
                        await trio.lowlevel.checkpoint()
        return results

    @asynccontextmanager
    async def _held(self, tenant_id: str) -> AsyncIterator[None]:
        with psycopg.connect(self._url) as connection:
            connection.execute(
                "SELECT id FROM tenants WHERE id = %s FOR NO KEY UPDATE", [tenant_id]
            )
            yield

    async def _waiting(self) -> int:
        asked = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        ((number,),) = await trio.to_thread.run_sync(self._server.execute, self._url, asked)
        return int(str(number))

    def deadlocks(self) -> int:
        """How many the server has ended so far."""
        return (self._server.folder / "log").read_text().count("deadlock detected")


@pytest.fixture
def turns(postgresql: PostgreSQL, database_url: str) -> Turns:
    return Turns(postgresql, database_url)


async def test_an_operator_and_a_device_decide_about_a_code_at_once(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    pairing, code = await acme.pairings.make_code(name="cam1")
    denied, exchanged = await turns.in_order(
        acme.tenant_id,
        partial(acme.pairings.deny, pairing.id),
        partial(registry.joining.exchange, code.reveal(), address="192.0.2.9"),
    )
    assert (denied, exchanged) == (None, "code_used")
    assert turns.deadlocks() == before


async def test_an_operator_is_late_and_the_device_fetches_its_token(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    asked, code, poll = await registry.joining.request(address="192.0.2.9", name="cam1")
    await acme.pairings.find_request(code.reveal())
    await acme.pairings.approve(asked.id, name="cam1")
    denied, once, again = await turns.in_order(
        acme.tenant_id,
        partial(acme.pairings.deny, asked.id),
        partial(registry.joining.poll, poll),
        partial(registry.joining.poll, poll),
    )
    assert denied == "pairing_over"
    assert "pairing_used" in (once, again)
    assert isinstance(once, Arrival) or isinstance(again, Arrival)
    assert turns.deadlocks() == before


async def test_an_install_key_is_used_while_it_is_revoked(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    key, secret = await acme.install_keys.add("batch", lifetime=600, max_uses=9)
    _, arrived = await turns.in_order(
        acme.tenant_id,
        partial(acme.install_keys.revoke, key.id, devices="remove"),
        partial(registry.joining.install, secret, address="192.0.2.9", name="cam1"),
    )
    assert arrived == "key_revoked"
    assert not (await acme.devices.page()).items
    assert turns.deadlocks() == before


async def test_the_last_use_of_an_install_key_is_used_once(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    _, secret = await acme.install_keys.add("one", lifetime=600, max_uses=1)
    acts = [
        partial(registry.joining.install, secret, address="192.0.2.9", name=name)
        for name in ("cam1", "cam2")
    ]
    first, second = await turns.in_order(acme.tenant_id, *acts)
    assert isinstance(first, Arrival)
    assert second == "key_used_up"


async def test_an_invitation_that_is_revoked_first_makes_no_member(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    users = registry.installation(ANN).users
    bob = await users.sign_in(issuer=ISSUER, subject="bob")
    invitation, secret = await acme.invitations.add("bob@example.com", "admin", lifetime=600)
    _, accepted = await turns.in_order(
        acme.tenant_id,
        partial(acme.invitations.revoke, invitation.id),
        partial(users.accept_invitation, bob.id, secret),
    )
    assert accepted == "invitation_unknown"
    assert await users.memberships(bob.id) == []


async def test_a_sign_in_goes_on_without_an_invitation_that_has_just_ended(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    users = registry.installation(ANN).users
    invitation, _ = await acme.invitations.add(
        "bob@example.com", "admin", lifetime=600, issuer=ISSUER
    )
    _, user = await turns.in_order(
        acme.tenant_id,
        partial(acme.invitations.revoke, invitation.id),
        partial(users.sign_in, issuer=ISSUER, subject="bob", email="bob@example.com"),
    )
    assert isinstance(user, User)
    assert await users.memberships(user.id) == []


async def test_a_role_that_an_owner_gives_stays_when_the_provider_says_another(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    users = registry.installation(ANN).users
    signed_in = partial(users.sign_in, issuer=ISSUER, subject="bob")
    bob = await signed_in(claims={"acme": "viewer"})
    await turns.in_order(
        acme.tenant_id,
        partial(acme.members.set_role, bob.id, "admin"),
        partial(signed_in, claims={"acme": "operator"}),
    )
    (mine,) = await users.memberships(bob.id)
    assert (mine.role, mine.source) == ("admin", "grant")


async def test_a_tenant_is_changed_while_a_new_person_joins_it(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    installation = registry.installation(ANN)
    await turns.in_order(
        SYSTEM,
        partial(installation.tenants.change, acme.tenant_id, display_name="ACME"),
        partial(
            installation.users.sign_in, issuer=ISSUER, subject="new", claims={"acme": "viewer"}
        ),
        partial(installation.users.grant, acme.tenant_id, "viewer", issuer=ISSUER, subject="newer"),
    )
    assert turns.deadlocks() == before
    assert len((await acme.members.page()).items) == 2


@pytest.mark.parametrize("how", ["remove the key", "quarantine", "disable", "revoke"])
async def test_a_device_that_logs_in_by_ssh_while_it_is_shut_out_gets_no_credential(
    registry: Registry, acme: TenantRegistry, turns: Turns, how: str
) -> None:
    device, _ = await acme.devices.add("cam1")
    key = await acme.device_ssh_keys.add(device.id, SSH_KEY, 3600)
    ends: dict[str, Act] = {
        "remove the key": partial(acme.device_ssh_keys.remove, device.id, key.id),
        "quarantine": partial(acme.devices.set_quarantine, device.id, "stolen"),
        "disable": partial(acme.devices.set_enabled, device.id, False),
        "revoke": partial(acme.credentials.revoke, device.id),
    }
    _, begun = await turns.in_order(
        acme.tenant_id, ends[how], partial(registry.ssh_devices.begin, key.id, "192.0.2.9")
    )
    assert begun is None
    living = [one for one in await acme.credentials.of(device.id) if one.state == "active"]
    assert len(living) == (0 if how == "revoke" else 1)  # the one it was made with


def begin_session(registry: Registry, user: User, **more: Any) -> Act:
    signed_in = SignedIn(
        user_id=user.id,
        tenant_id=None,
        role=None,
        issuer=ISSUER,
        provider_session="",
        tokens=b"",
    )
    about = {"idle": 600, "lifetime": 3600, "address": "192.0.2.9", "user_agent": "x"}
    return partial(registry.installation(ANN).browser_sessions.begin, signed_in, **about, **more)


async def test_a_person_who_signs_in_while_being_disabled_has_nothing_when_enabled_again(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    users = registry.installation(ANN).users
    bob = await users.sign_in(issuer=ISSUER, subject="bob", claims={"acme": "viewer"})
    token = partial(acme.access_tokens.add, "t", user_id=bob.id, role="viewer")
    disable = partial(users.set_enabled, bob.id, False)
    _, session, added = await turns.in_order(SYSTEM, disable, begin_session(registry, bob), token)
    assert (session, added) == ("user_disabled", "user_disabled")
    await users.set_enabled(bob.id, True)
    assert await registry.installation(ANN).browser_sessions.of_user(bob.id) == []
    assert (await acme.access_tokens.page(user_id=bob.id)).items == []
    assert turns.deadlocks() == before


async def test_a_token_is_made_while_its_person_signs_in_and_the_provider_says_another_role(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    users = registry.installation(ANN).users
    signed_in = partial(users.sign_in, issuer=ISSUER, subject="bob")
    bob = await signed_in(claims={"acme": "operator"})
    token = partial(acme.access_tokens.add, "t", user_id=bob.id, role="viewer")
    again = partial(signed_in, claims={"acme": "viewer"}, name="Bob")
    made, known = await turns.in_order(acme.tenant_id, token, again)
    assert isinstance(made, tuple)
    assert isinstance(known, User)
    assert known.name == "Bob"
    assert turns.deadlocks() == before


async def test_a_session_is_replaced_while_it_is_ended(
    registry: Registry, acme: TenantRegistry, turns: Turns
) -> None:
    before = turns.deadlocks()
    bob = await registry.installation(ANN).users.sign_in(issuer=ISSUER, subject="bob")
    earlier = (await begin_session(registry, bob)()).session
    begun, _ = await turns.in_order(
        SYSTEM,
        begin_session(registry, bob, earlier=earlier),
        partial(registry.installation(ANN).browser_sessions.end, earlier.id),
    )
    assert [
        one.id for one in await registry.installation(ANN).browser_sessions.of_user(bob.id)
    ] == [begun.session.id]
    assert turns.deadlocks() == before
