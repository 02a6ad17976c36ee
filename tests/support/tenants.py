"""People and programs of a tenant, made in the registry as signing in and inviting would."""

from __future__ import annotations

from dataclasses import dataclass

from support.apis import LiveApi
from tunnelmux.api.access import SCOPES
from tunnelmux.registry import Actor, Role

__all__ = ["Person", "person"]

TEST = Actor.program("tests")


@dataclass
class Person:
    """A member of a tenant, with an access token that may all that the person may."""

    user_id: str
    tenant_id: str
    token: str


async def person(
    api: LiveApi, name: str, role: Role = "owner", *, tenant: str = "default"
) -> Person:
    """A person with this role; the tenant is made where there is none of that name."""
    registry = api.running.api.registry
    installation = registry.installation(TEST)
    known = {item.name: item for item in (await installation.tenants.page()).items}
    home = known.get(tenant) or await installation.tenants.add(tenant)
    user = await installation.users.sign_in(
        issuer="https://id.example.com", subject=name, email=f"{name}@example.com", name=name
    )
    await installation.users.grant(
        home.id, role, issuer=user.issuer, subject=user.subject, force=True
    )
    _, token = await registry.tenant(home.id, TEST).access_tokens.add(
        f"{name}'s", user_id=user.id, role=role, scopes=tuple(SCOPES)
    )
    return Person(user.id, home.id, token.reveal())
