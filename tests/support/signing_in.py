"""Browsers that sign in at an API by a provider that answers as a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from support.apis import LiveApi, live_api
from support.fake_oidc import FakeProvider, fake_provider
from support.oidc import Browser
from tunnelmux.api.browser_sessions.cookie import COOKIE
from tunnelmux.config.api import OIDCConfig

__all__ = [
    "api_with_fake",
    "begin",
    "browser_with",
    "come_back",
    "cookie_of",
    "jar_of",
    "sign_in",
    "who",
]


def jar_of(browser: Browser, api: LiveApi) -> dict[str, str]:
    """What a browser keeps of an API."""
    return browser.cookies.setdefault(urlsplit(api.base).netloc, {})


def cookie_of(browser: Browser, api: LiveApi) -> str:
    """The cookie of its session."""
    return jar_of(browser, api)[COOKIE]


def browser_with(api: LiveApi, cookie: str = "", **more: str) -> Browser:
    """Another browser, with the cookie of a session and further ones."""
    browser = api.browser()
    jar_of(browser, api).update({COOKIE: cookie} if cookie else {}, **more)
    return browser


async def who(browser: Browser, api: LiveApi) -> str | None:
    """The e-mail that the API has for a browser; None for a stranger."""
    answer = await browser.get(f"{api.base}/api/auth/me")
    return str(answer.json()["email"]) if answer.status_code == 200 else None


@asynccontextmanager
async def api_with_fake(
    folder: Path, **settings: Any
) -> AsyncIterator[tuple[LiveApi, FakeProvider]]:
    """An API and the provider that it asks, which answers as a test tells it to."""
    async with fake_provider() as fake:

        @asynccontextmanager
        async def provider(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=30, **settings)

        async with live_api(folder, provider) as api:
            yield api, fake


async def begin(browser: Browser, api: LiveApi, fake: FakeProvider, return_to: str = "/") -> str:
    """The provider's page to which a tab is sent."""
    url = f"{api.base}/api/auth/login?return_to={quote(return_to, safe='')}"
    there = await browser.request("GET", url, stop_at=fake.issuer)
    assert isinstance(there, str)
    return there


async def come_back(
    browser: Browser, api: LiveApi, fake: FakeProvider, page: str, **query: str
) -> httpx2.Response | str:
    """Where a tab lands after the provider; the URL where that is a page of the API."""
    callback = f"{api.base}/api/auth/callback?{fake.callback_for(page, **query)}"
    return await browser.request("GET", callback, stop_at=f"{api.base}/")


async def sign_in(browser: Browser, api: LiveApi, fake: FakeProvider, name: str = "alice") -> None:
    """Sign this person in."""
    fake.claims.update(sub=name, email=f"{name}@example.com", email_verified=True)
    page = await begin(browser, api, fake)
    assert await come_back(browser, api, fake, page, code=f"code-of-{name}") == f"{api.base}/"
