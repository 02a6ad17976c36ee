"""A running tunnelmux-api for a test: real sockets, a registry in SQLite, and a way to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from support.oidc import Browser
from tunnelmux.api import server
from tunnelmux.api.app import RunningApi, run_api
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.config import Address, Secret
from tunnelmux.config.api import (
    ApiConfig,
    ApiLimits,
    ApiListener,
    BrowserSessionConfig,
    OIDCConfig,
    RegistryConfig,
)
from tunnelmux.transports.certificates import CertificatePair

__all__ = ["LiveApi", "live_api"]


@dataclass
class LiveApi:
    """Where a running API is called."""

    base: str
    running: RunningApi
    client: httpx2.AsyncClient

    def browser(self) -> Browser:
        """A browser that has never been here."""
        return Browser(self.client)

    async def call(
        self, method: str, path: str, token: str = "", **options: Any
    ) -> httpx2.Response:
        """What a program gets."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.client.request(method, self.base + path, headers=headers, **options)


@asynccontextmanager
async def live_api(
    folder: Path,
    oidc: Any = None,
    *,
    registry_url: str | None = None,
    registry: Mapping[str, Any] | None = None,
    limits: ApiLimits | None = None,
    trusted_proxies: list[str] | None = None,
    tls: CertificatePair | None = None,
    public_url: str | None = None,
    **more: Any,
) -> AsyncIterator[LiveApi]:
    """An API on a free port while the block runs.

    `oidc` is called with the API's own URL and gives the settings of the provider, as an
    asynchronous context manager; without it, no provider answers. With `tls` it speaks TLS, and a
    client has to trust the certificate: `client` does not. With `public_url` there is another
    server in front. `registry` are more settings of the registry.
    """
    listener = server.listen("api.listen", Address("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    base = f"{'https' if tls else 'http'}://{address}"
    keys = folder / "session-keys"
    if not keys.exists():
        keys.write_text(new_key_line())

    @asynccontextmanager
    async def no_provider(_base: str) -> AsyncIterator[OIDCConfig]:
        yield OIDCConfig(issuer="http://127.0.0.1:9", client_id="public", timeout=1)

    public = public_url or base
    async with (oidc or no_provider)(public) as provider:
        config = ApiConfig(
            api=ApiListener(
                listen=address,
                tls_certificate=tls[0] if tls else None,
                tls_key=tls[1] if tls else None,
                public_url=public,
                trusted_proxies=trusted_proxies or [],
            ),
            registry=RegistryConfig(
                url=Secret(registry_url or f"sqlite:///{folder}/registry.db"),
                timeout=60,  # a busy machine writes slowly
                **(registry or {}),
            ),
            oidc=provider,
            browser_sessions=BrowserSessionConfig(key_file=keys),
            limits=limits or ApiLimits(),
            **more,
        )
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=90, follow_redirects=False) as client,
            run_api(config, listener) as running,
        ):
            yield LiveApi(base, running, client)
