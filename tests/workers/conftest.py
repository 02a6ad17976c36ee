"""A proxy of two workers as real processes, with a device at each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.daemons import DaemonSet
from support.origin import Origin, serving
from support.workers import Workers
from tunnelmux.config import Address


@pytest.fixture
async def origin() -> Origin:
    """The web server behind the agents, before it serves."""
    return Origin()


@pytest.fixture
async def web(origin: Origin) -> AsyncIterator[Address]:
    """Where that server listens."""
    async with serving(origin.handle) as address:
        yield address


@pytest.fixture
async def workers(daemons: DaemonSet, web: Address) -> Workers:
    """The proxy, which runs, and its two devices."""
    found = Workers(daemons)
    await found.start(web)
    return found
