"""A Redis for each file, a page behind a device, and two nodes that beat fast."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from support.nodes import Nodes, running_nodes
from support.origin import Origin, serving
from support.redis_server import RedisServer, run_redis
from tunnelmux.config import Address


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


@pytest.fixture
async def nodes(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    async with running_nodes(redis) as nodes:
        yield nodes


@pytest.fixture
async def origin() -> Origin:
    return Origin()


@pytest.fixture
async def web(origin: Origin) -> AsyncIterator[Address]:
    async with serving(origin.handle) as address:
        yield address
