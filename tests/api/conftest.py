"""Providers for the tests of the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from support.oidc import CLIENT_SECRET, oidc_provider
from tunnelmux.config import Secret
from tunnelmux.config.api import OIDCConfig

Oidc = Callable[[str], AbstractAsyncContextManager[OIDCConfig]]


@pytest.fixture(params=["public", "confidential"])
def real_provider(request: pytest.FixtureRequest) -> Oidc:
    """npm's oidc-provider, as a public and as a confidential client."""
    secret = Secret(CLIENT_SECRET) if request.param == "confidential" else None

    @asynccontextmanager
    async def provider(base: str) -> AsyncIterator[OIDCConfig]:
        async with oidc_provider(base) as running:
            yield settings(running.issuer, request.param, secret)

    return provider


def settings(issuer: str, client_id: str = "public", secret: Any = None) -> OIDCConfig:
    return OIDCConfig(
        issuer=issuer, client_id=client_id, client_secret=secret, prompt="consent", timeout=60
    )
