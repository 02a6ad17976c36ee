"""Access tokens and browser sessions, on both databases."""

from __future__ import annotations

import contextlib

import pytest
import trio

from support.registries import ANN, WallClock
from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import (
    BrowserSession,
    BrowserSessions,
    NewBrowserSession,
    Registry,
    SignedIn,
    TenantRegistry,
)

ISSUER = "https://id.example.com"


async def make_member(registry: Registry, tenant: TenantRegistry, role: str = "operator") -> str:
    users = registry.installation(by=ANN).users
    user = await users.grant(tenant.tenant_id, role, issuer=ISSUER, subject="1", force=True)  # type: ignore[arg-type]
    return user.id


async def test_a_token_proves_its_member_until_either_ends(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    user = await make_member(registry, acme)
    token, secret = await acme.access_tokens.add(
        "ci", user_id=user, role="viewer", scopes=("devices:read",), lifetime=3600
    )
    proven = await registry.prove_token(secret, address="192.0.2.9")
    assert proven is not None
    assert (proven.tenant_id, proven.token.id, proven.user_role) == (
        acme.tenant_id,
        token.id,
        "operator",
    )
    used = await acme.access_tokens.find(token.id)
    assert (used.last_used, used.last_address) == (clock.now, "192.0.2.9")
    assert await registry.prove_token(Secret("tma_no"), address="") is None
    clock.pass_time(3601)
    assert await registry.prove_token(secret, address="") is None


async def test_a_token_ends_with_its_revocation_its_membership_and_its_tenant(
    registry: Registry, acme: TenantRegistry
) -> None:
    user = await make_member(registry, acme)
    token, secret = await acme.access_tokens.add("ci", user_id=user, role="viewer")
    tenants = registry.installation(by=ANN).tenants
    await tenants.change(acme.tenant_id, enabled=False)
    assert await registry.prove_token(secret, address="") is None
    await tenants.change(acme.tenant_id, enabled=True)
    assert await registry.prove_token(secret, address="") is not None
    await acme.access_tokens.revoke(token.id)
    assert await registry.prove_token(secret, address="") is None
    _, second = await acme.access_tokens.add("ci2", user_id=user, role="viewer")
    await acme.members.remove(user)
    assert await registry.prove_token(second, address="") is None


async def test_nobody_makes_a_token_that_may_more(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    user = await make_member(registry, acme)
    with pytest.raises(RegistryRefused) as refused:
        await acme.access_tokens.add("ci", user_id=user, role="admin")
    assert refused.value.code == "too_much"
    with pytest.raises(NoSuchRecord):
        await other.access_tokens.add("ci", user_id=user, role="viewer")
    token, _ = await acme.access_tokens.add("ci", user_id=user, role="viewer")
    with pytest.raises(NoSuchRecord):
        await other.access_tokens.revoke(token.id)


async def begin(
    sessions: BrowserSessions,
    user: str,
    *,
    earlier: BrowserSession | None = None,
    tenant_id: str | None = None,
    provider_session: str = "",
    **more: float,
) -> NewBrowserSession:
    who = SignedIn(
        user_id=user,
        tenant_id=tenant_id,
        role="viewer" if tenant_id is not None else None,
        issuer=ISSUER,
        provider_session=provider_session,
        tokens=b"sealed",
    )
    times = {"idle": 600.0, "lifetime": 3600.0} | more
    return await sessions.begin(
        who, address="192.0.2.1", user_agent="Firefox", earlier=earlier, **times
    )


async def test_signing_in_puts_another_session_in_place(
    registry: Registry, acme: TenantRegistry
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)
    old = await begin(sessions, user)
    new = await begin(sessions, user, earlier=old.session, tenant_id=acme.tenant_id)
    assert await sessions.find(old.secret) is None
    found = await sessions.find(new.secret)
    assert found is not None
    assert (found.user_id, found.tenant_id, found.tokens) == (user, acme.tenant_id, b"sealed")
    again = await begin(sessions, user, earlier=old.session)  # which has ended meanwhile
    living = [session.id for session in await sessions.of_user(user)]
    assert living == [again.session.id, found.id]
    assert "sealed" not in repr(found)


async def test_of_two_requests_that_see_a_higher_role_one_gets_the_new_secret(
    registry: Registry, acme: TenantRegistry
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)
    old = await begin(sessions, user, tenant_id=acme.tenant_id)
    first = await sessions.change_secret(old.session, tenant_id=acme.tenant_id, role="admin")
    second = await sessions.change_secret(old.session, tenant_id=acme.tenant_id, role="admin")
    assert first is not None
    assert second is None
    assert await sessions.find(old.secret) is None
    assert await sessions.find(first.secret) == first.session
    lower = await sessions.set_place(first.session, tenant_id=acme.tenant_id, role="viewer")
    assert lower is not None
    assert (lower.id, lower.role) == (old.session.id, "viewer")
    assert await sessions.set_place(first.session, tenant_id=None, role=None) is None


async def test_a_browser_session_ends_idle_and_absolutely(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)
    new = await begin(sessions, user, idle=600, lifetime=2000)
    for _ in range(3):
        clock.pass_time(500)
        assert await sessions.find(new.secret) is not None
    clock.pass_time(501)
    assert await sessions.find(new.secret) is None
    idle = await begin(sessions, user, idle=600, lifetime=2000)
    clock.pass_time(601)
    assert await sessions.find(idle.secret) is None


async def test_two_requests_do_not_overwrite_each_others_tokens(
    registry: Registry, acme: TenantRegistry
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    new = await begin(sessions, await make_member(registry, acme))
    first = await sessions.save(new.session, tokens=b"one")
    assert first is not None
    assert await sessions.save(new.session, tokens=b"two") is None
    found = await sessions.find(new.secret)
    assert found is not None
    assert found.tokens == b"one"
    assert await sessions.save(first, tokens=b"two") is not None


async def test_one_request_at_a_time_refreshes(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    new = await begin(sessions, await make_member(registry, acme))
    claims: list[bool] = []

    async def claim() -> None:
        claims.append(await sessions.claim_refresh(new.session, 10))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(claim)
    assert sorted(claims) == [False] * 7 + [True]
    clock.pass_time(11)
    assert await sessions.claim_refresh(new.session, 10)
    # One who read the session before its tokens were renewed would send an old refresh token, which
    # the provider takes for a stolen one.
    renewed = await sessions.save(new.session, tokens=b"new")
    assert renewed is not None
    assert not await sessions.claim_refresh(new.session, 10)
    assert await sessions.claim_refresh(renewed, 10)


async def test_the_provider_ends_what_it_names_and_nothing_else(
    registry: Registry, acme: TenantRegistry
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)
    for provider_session in ("a", "b"):
        await begin(sessions, user, provider_session=provider_session)
    bystander = await registry.installation(by=ANN).users.sign_in(
        issuer=ISSUER, subject="2", email="bystander@example.com"
    )
    other = await begin(sessions, bystander.id)
    end = sessions.end_for_provider
    assert await end(issuer=ISSUER, subject=None, provider_session=None) == 0
    assert await end(issuer="https://else.example.com", subject="1", provider_session=None) == 0
    assert await end(issuer=ISSUER, subject=None, provider_session="a") == 1
    assert await end(issuer=ISSUER, subject="1", provider_session=None) == 1
    assert await sessions.find(other.secret) is not None
    assert await sessions.use_once("jti", other.session.ends)
    assert not await sessions.use_once("jti", other.session.ends)


async def test_a_session_that_the_provider_ended_before_the_browser_came_back_does_not_begin(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)
    end = sessions.end_for_provider
    assert await end(issuer=ISSUER, subject="1", provider_session="a") == 0
    with pytest.raises(RegistryRefused) as refused:
        await begin(sessions, user, provider_session="a")
    assert refused.value.code == "session_ended"
    await begin(sessions, user, provider_session="b")
    clock.pass_time(601)
    await registry.tidy()
    await begin(sessions, user, provider_session="a")


async def test_a_logout_and_a_sign_in_at_once_leave_no_session(
    registry: Registry, acme: TenantRegistry
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)

    async def sign_in(name: str) -> None:
        with contextlib.suppress(RegistryRefused):
            await begin(sessions, user, provider_session=name)

    async def log_out(name: str) -> None:
        await sessions.end_for_provider(issuer=ISSUER, subject=None, provider_session=name)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            for step in (sign_in, log_out) if number % 2 else (log_out, sign_in):
                nursery.start_soon(step, f"s{number}")
    assert await sessions.of_user(user) == []


async def test_a_long_name_of_a_session_at_the_provider_is_that_of_no_other(
    registry: Registry, acme: TenantRegistry
) -> None:
    sessions = registry.installation(by=ANN).browser_sessions
    user = await make_member(registry, acme)
    same = "x" * 400
    for last in ("a", "b"):
        await begin(sessions, user, provider_session=same + last)
    end = sessions.end_for_provider
    assert await end(issuer=ISSUER, subject=None, provider_session=same) == 0
    assert await end(issuer=ISSUER, subject=None, provider_session=same + "a") == 1
    assert await end(issuer=ISSUER, subject=None, provider_session=same + "a") == 0
    assert await end(issuer=ISSUER, subject=None, provider_session=same + "b") == 1
