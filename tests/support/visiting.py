"""A registry with a device and people who are signed in, and their way to a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from support.guarded import BROWSER, Answer, Guarded, guarded
from support.tenants import TEST
from tunnelmux.api.browser_sessions.keys import KeyRing
from tunnelmux.api.visitors import VisitorProofs
from tunnelmux.config import Secret
from tunnelmux.config.access import AccessConfig, AccessRule
from tunnelmux.registry import (
    DEFAULT_TENANT,
    Lease,
    LeaseTerms,
    Registry,
    TenantRegistry,
    User,
    open_registry,
)
from tunnelmux.registry.browser_sessions import SignedIn

__all__ = ["API", "Person", "World", "visiting"]

API = "https://tunnels.example.com"


@dataclass
class Person:
    """A person who is signed in at tunnelmux-api."""

    user: User
    session_id: str


class World:
    """All of it."""

    def __init__(self, registry: Registry, this: Guarded, tenant: TenantRegistry) -> None:
        self.registry = registry
        self.this = this
        self.tenant = tenant
        self.proofs = VisitorProofs(registry, ring().signers, API)
        self.device_id = ""

    async def person(self, name: str = "anna", role: str | None = "viewer") -> Person:
        """One more, with this role in the device's tenant."""
        installation = self.registry.installation(TEST)
        user = await installation.users.sign_in(
            issuer="https://id.example.com", subject=name, email=f"{name}@example.com", name=name
        )
        if role is not None:
            await installation.users.grant(
                self.tenant.tenant_id,
                role,  # type: ignore[arg-type]
                issuer=user.issuer,
                subject=name,
                force=True,
            )
        sessions = installation.browser_sessions
        new = await sessions.begin(
            SignedIn(
                user_id=user.id,
                tenant_id=self.tenant.tenant_id,
                role=role,  # type: ignore[arg-type]
                issuer=user.issuer,
                provider_session="",
                tokens=b"",
            ),
            idle=600,
            lifetime=3600,
            address="127.0.0.1",
            user_agent="tests",
        )
        return Person(user, new.session.id)

    async def begin(self, path: str = "/x?y=1", **more: Any) -> tuple[dict[str, Any], str]:
        """Come without anything: what tunnelmux-api is told, and the browser's cookie."""
        answer = await self.this.ask(path, BROWSER, **more)
        assert answer.status == 302, answer
        location = answer.first("location")
        assert location.startswith(f"{API}/api/access/sign-in?asked=")
        asked = await self.proofs.read_asked(parse_qs(urlsplit(location).query)["asked"][0])
        return asked, answer.first("set-cookie").partition(";")[0]

    async def ticket(self, person: Person, asked: dict[str, Any]) -> str:
        """The path, with a ticket, to which tunnelmux-api sends the browser."""
        who = await self.registry.installation(TEST).users.memberships(person.user.id)
        return path_of(self.proofs.ticket_url(asked, person.session_id, who))

    async def come_in(self, person: Person, **more: Any) -> dict[str, str]:
        """Sign in: the field with the cookie that lets this person in."""
        asked, cookie = await self.begin(**more)
        answer = await self.this.ask(
            await self.ticket(person, asked), BROWSER | {"Cookie": cookie}, **more
        )
        assert answer.status == 303, answer
        return {"Cookie": access_cookie(answer)}

    async def link(self, **options: Any) -> tuple[str, str]:
        """A link to the default service: its id, and the path to open."""
        options = {"lifetime": 600, "once": False} | options
        link = await self.tenant.service_links.add(self.device_id, "", **options)
        with trio.fail_after(20):
            while (url := await self.proofs.link_url(link)) is None:  # noqa: ASYNC110
                await trio.sleep(0.01)  # until the proxy has said where visitors come in
        assert url.startswith(f"http://dev1.localhost:{self.this.port}/.well-known/tunnelmux/link?")
        return link.id, path_of(url)

    async def lease(self, person: Person, **more: Any) -> Lease:
        """A lease of this person of the service web, once the device has agreed to it."""
        now = datetime.now(UTC)
        values: dict[str, Any] = {
            "device_id": self.device_id,
            "services": ("web",),
            "holder": person.user.id,
            "reason": "ticket 7",
            "starts": now - timedelta(seconds=1),
            "ends": now + timedelta(hours=1),
        }
        lease, _ = await self.tenant.leases.add(LeaseTerms(**(values | more)), approved=True)
        assert self.this.proxy.registered is not None
        book = self.this.proxy.registered.leases
        with trio.fail_after(30):
            while book.running(lease.id, "dev1") is None:  # noqa: ASYNC110
                await trio.sleep(0.02)
        return lease

    async def set_rule(self, service: str = "", **rule: Any) -> None:
        """Say who may visit, and wait until the proxy knows."""
        change = await self.tenant.visitor_rules.set(self.device_id, service, AccessRule(**rule))
        assert not (await self.registry.changes.effects(change.change, within=10)).missing


def access_cookie(answer: Answer) -> str:
    [cookie] = [value for value in answer.all("set-cookie") if "-access=" in value]
    return cookie.partition(";")[0]


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def ring(key: int = 1) -> KeyRing:
    return KeyRing({f"k{key}": bytes([key]) * 32})


@asynccontextmanager
async def visiting(
    folder: Path, access: AccessConfig | None = None, **options: Any
) -> AsyncIterator[World]:
    """The device dev1 of the default tenant, whose rule is that of nobody having said anything."""
    url = f"sqlite:///{folder}/registry.db"
    async with open_registry(Secret(url), migrate=True) as registry:
        tenants = (await registry.installation(TEST).tenants.page()).items
        [home] = [item for item in tenants if item.name == DEFAULT_TENANT]
        tenant = registry.tenant(home.id, TEST)
        device, token = await tenant.devices.add("dev1")
        await VisitorProofs(registry, ring().signers, API).publish()
        async with guarded(access, registry_url=url, token=token, **options) as this:
            world = World(registry, this, tenant)
            world.device_id = device.id
            yield world
