"""Browsers that are signed in at a running API, for tests of its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import trio

from support.apis import LiveApi, live_api
from support.browser import BrowserPage
from support.fake_oidc import FakeProvider, fake_provider
from support.internal import Bench
from support.oidc import Browser
from support.tenants import TEST
from tunnelmux.config.api import OIDCConfig
from tunnelmux.http import RequestHead, ResponseHead
from tunnelmux.registry import Registry, Role, SessionBegan, Sighting, new_id

__all__ = ["EVIL", "Console", "beating", "connected", "console", "keep_two"]

EVIL = "<script>alert(1)</script>"


@dataclass
class Console:
    """An API, and people in front of its pages."""

    api: LiveApi
    provider: FakeProvider
    user_ids: dict[str, str] = field(default_factory=dict)

    async def sign_in(self, name: str, role: Role | None, *, tenant: str = "default") -> Browser:
        """The browser of a person with this role in a tenant; without a role, in none."""
        installation = self.api.running.api.registry.installation(TEST)
        if role is not None:
            known = {item.name: item for item in (await installation.tenants.page()).items}
            home = known.get(tenant) or await installation.tenants.add(tenant)
            await installation.users.grant(
                home.id, role, issuer=self.provider.issuer, subject=name, force=True
            )
        self.provider.claims.update(
            sub=name,
            name=name,
            email=f"{urlsplit('//' + name).hostname or 'x'}@example.com",
            email_verified=True,
        )
        browser = self.api.browser()
        login = f"{self.api.base}/api/auth/login"
        page = await browser.request("GET", login, stop_at=self.provider.issuer)
        assert isinstance(page, str)
        query = self.provider.callback_for(page, code=f"code-of-{len(self.user_ids)}")
        there = f"{self.api.base}/api/auth/callback?{query}"
        await browser.request("GET", there, stop_at=f"{self.api.base}/")
        me = await browser.get(f"{self.api.base}/api/auth/me")
        self.user_ids[name] = me.json()["user_id"]
        return browser

    async def show_cookies(self, page: BrowserPage, browser: Browser) -> None:
        """Have a tab of Chromium come as the person of this browser."""
        base = self.api.base
        await page.set_cookies(base, browser.cookies[urlsplit(base).netloc])

    async def connected(self, device_id: str, *services: str) -> None:
        """Have the registry believe that a proxy has a tunnel of this device."""
        await connected(self.api.running.api.registry, device_id, *services)

    async def page(self, browser: Browser, path: str, status: int = 200) -> str:
        """The HTML of a page, which has the status it is to have and the headers of all pages."""
        answer = await browser.get(self.api.base + path)
        assert answer.status_code == status, (path, answer.status_code, answer.text)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        check_headers(answer)
        return str(answer.text)


async def connected(registry: Registry, device_id: str, *services: str) -> str:
    """Have the registry believe that a proxy has a tunnel of this device, for the 15 s until it
    takes the proxy for dead. Returns the id of the proxy.
    """
    fleet = registry.fleet
    proxy_id, now = new_id(), datetime.now(UTC)
    await fleet.hello(proxy_id, name="edge", internal_url="", version="1")
    began = SessionBegan(
        session_id=new_id(),
        device_id=device_id,
        at=now,
        address="192.0.2.7",
        agent_version="1.2.3",
    )
    seen = Sighting(device_id=device_id, at=now, services=services)
    await fleet.report(proxy_id, began=[began], ended=[], seen=[seen])
    return proxy_id


async def beating(registry: Registry, proxy_id: str) -> None:
    """Have the registry believe that this proxy lives, until cancelled."""
    while True:
        await registry.fleet.beat(proxy_id, applied=0, effects={})
        await trio.sleep(1)


def keep_two(bench: Bench) -> list[str]:
    """The ids of two requests that the inspection has kept, with content that would be a script."""
    running = bench.dispatcher.visits.inspector.get("inspection-1")
    assert running is not None
    ids = []
    for number in (1, 2):
        fields = [(b"Host", b"cam-1.example"), (b"X-Evil", EVIL.encode())]
        fields += [(b"Cookie", b"sid=1"), (b"X-Number", b"%d" % number)]
        head = RequestHead(b"POST", b"/x?a=" + EVIL.encode(), b"1.1", fields)
        kept = running.tap(head, "192.0.2.1:5", "https")
        kept.asked(EVIL.encode())
        kept.began(ResponseHead(200, b"OK", [(b"Content-Type", b"text/plain")]))
        kept.answered(b"\xff\xfe")
        kept.over(200)
        ids.append(kept.id)
    return ids


def check_headers(answer: httpx2.Response) -> None:
    """Nothing inline, nothing from elsewhere, in no frame."""
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@asynccontextmanager
async def console(folder: Path, **more: Any) -> AsyncIterator[Console]:
    """An API whose provider signs in whoever a test names. `more` are tables of its settings."""
    async with fake_provider() as fake:

        @asynccontextmanager
        async def provider(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=20)

        async with live_api(folder, provider, **more) as api:
            yield Console(api, fake)
