"""Terminals that people sign in, on both databases."""

from __future__ import annotations

import pytest

from support.registries import ANN, OpenRegistry, WallClock, add_tenant
from tunnelmux.config import Secret
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import PairingRules, Registry, TenantRegistry

ISSUER = "https://id.example.com"


async def member(registry: Registry, tenant: TenantRegistry) -> str:
    users = registry.installation(by=ANN).users
    user = await users.grant(tenant.tenant_id, "operator", issuer=ISSUER, subject="1", force=True)
    return user.id


async def refusal(call: object) -> str:
    with pytest.raises(RegistryRefused) as caught:
        await call  # type: ignore[misc]
    return caught.value.code


async def test_the_secret_becomes_a_token_when_a_person_says_so(
    registry: Registry, acme: TenantRegistry
) -> None:
    user = await member(registry, acme)
    waiting, code, secret = await registry.terminals.ask(client="ada@laptop", address="192.0.2.7")
    assert (await registry.terminals.poll(secret)).state == "open"
    assert await registry.prove_token(secret, address="") is None
    found = await acme.terminals.find(code.reveal().lower().replace("-", " "))
    assert (found.id, found.client, found.address) == (waiting.id, "ada@laptop", "192.0.2.7")
    token = await acme.terminals.approve(
        code.reveal(), user_id=user, role="viewer", scopes=("self",), lifetime=3600
    )
    assert (await registry.terminals.poll(secret)).state == "approved"
    proven = await registry.prove_token(secret, address="")
    assert proven is not None
    assert (proven.token.id, proven.token.name) == (token.id, "tunnelmux of ada@laptop")
    assert (proven.tenant_id, proven.token.scopes) == (acme.tenant_id, ("self",))
    again = acme.terminals.approve(
        code.reveal(), user_id=user, role="viewer", scopes=(), lifetime=60
    )
    assert await refusal(again) == "code_used"


async def test_what_was_denied_or_left_alone_is_worth_nothing(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    _, code, secret = await registry.terminals.ask(client="x", address="192.0.2.7")
    await acme.terminals.deny(code.reveal())
    assert await refusal(registry.terminals.poll(secret)) == "access_denied"
    _, code, secret = await registry.terminals.ask(client="x", address="192.0.2.7")
    clock.pass_time(601)
    assert await refusal(registry.terminals.poll(secret)) == "expired_token"
    assert await refusal(acme.terminals.find(code.reveal())) == "code_expired"
    assert await refusal(registry.terminals.poll(Secret("tma_no"))) == "request_unknown"
    clock.pass_time(40 * 86_400)
    await registry.tidy()
    assert await refusal(registry.terminals.poll(secret)) == "request_unknown"


async def test_guesses_and_requests_have_their_budgets(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(rules=PairingRules(address_budget=3)) as registry:
        acme = await add_tenant(registry, "acme")
        for _ in range(3):
            assert await refusal(acme.terminals.find("BCDF-GHJK")) == "code_unknown"
            _, code, _ = await registry.terminals.ask(client="x", address="192.0.2.7")
        assert await refusal(acme.terminals.find("BCDF-GHJK")) == "too_many_guesses"
        asking = registry.terminals.ask(client="x", address="192.0.2.7")
        assert await refusal(asking) == "too_many_requests"
        await registry.terminals.ask(client="x", address="192.0.2.8")
        clock.pass_time(2.1)
        await registry.terminals.ask(client="x", address="192.0.2.7")
        assert await refusal(acme.terminals.find(code.reveal())) == "too_many_guesses"
        clock.pass_time(601)
        await registry.terminals.ask(client="x", address="192.0.2.7")
        assert await refusal(acme.terminals.find("BCDF-GHJK")) == "code_unknown"


async def test_a_flood_from_the_same_address_keeps_no_terminal_out(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(rules=PairingRules(address_budget=2)) as registry:
        acme = await add_tenant(registry, "acme")
        user = await member(registry, acme)
        here = {"client": "x", "address": "192.0.2.7"}

        async def flood() -> None:
            for number in range(20):
                await registry.terminals.ask(**here)
                if number % 2:
                    clock.pass_time(2.1)

        await flood()
        # A new terminal gets its code, and it stays once the person's browser has opened the page.
        _, code, secret = await registry.terminals.ask(**here)
        await acme.terminals.find(code.reveal())
        clock.pass_time(2.1)
        await flood()
        token = await acme.terminals.approve(
            code.reveal(), user_id=user, role="viewer", scopes=(), lifetime=60
        )
        assert token.user_id == user

        # One that was signed in before has a budget of its own, also when its token has expired.
        clock.pass_time(120)
        await registry.terminals.ask(**here)
        await registry.terminals.ask(**here)
        assert await refusal(registry.terminals.ask(**here)) == "too_many_requests"
        _, code, again = await registry.terminals.ask(**here, earlier=secret)
        clock.pass_time(2.1)
        await flood()
        assert (await registry.terminals.poll(again)).state == "open"
        await registry.terminals.ask(**here, earlier=secret)
        asking = registry.terminals.ask(**here, earlier=secret)
        assert await refusal(asking) == "too_many_requests"
        # A token that was revoked, or never was one, is worth nothing.
        await acme.access_tokens.revoke(token.id)
        await registry.terminals.ask(**here)
        await registry.terminals.ask(**here)
        for earlier in (secret, Secret("tma_no")):
            asking = registry.terminals.ask(**here, earlier=earlier)
            assert await refusal(asking) == "too_many_requests"


async def test_a_clock_that_was_ahead_for_a_moment_shuts_no_address_out(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(rules=PairingRules(address_budget=1)) as registry:
        acme = await add_tenant(registry, "acme")
        clock.pass_time(86_400)
        assert await refusal(acme.terminals.find("BCDF-GHJK")) == "code_unknown"
        assert await refusal(acme.terminals.find("BCDF-GHJK")) == "too_many_guesses"
        clock.pass_time(-86_400)
        assert await refusal(acme.terminals.find("BCDF-GHJK")) == "code_unknown"
        # Another copy of the API may be some seconds behind.
        clock.pass_time(-5)
        assert await refusal(acme.terminals.find("BCDF-GHJK")) == "too_many_guesses"
