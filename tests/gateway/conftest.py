"""A whole installation with a gateway, for one test each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from support.daemons import DaemonSet
from support.gateways import Site, running_site
from support.origin import Origin, serving
from support.registries import Templates
from tunnelmux.config import Secret
from tunnelmux.registry import open_registry

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of these tests starts several programs, which takes its time on a busy machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(480))


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture
async def origin() -> Origin:
    return Origin()


@pytest.fixture
async def open_site(
    tmp_path: Path,
    templates: Templates,
    debian_program: Callable[[str, str], str],
    daemons: DaemonSet,
    origin: Origin,
) -> AsyncIterator[OpenSite]:
    """`async with open_site(GATEWAY_CONFIGURATION) as site`."""
    url = templates.sqlite(tmp_path)
    async with (
        open_registry(Secret(url), migrate=False) as registry,
        serving(origin.handle) as web,
    ):

        def make(more: str = "", **options: Any) -> AbstractAsyncContextManager[Site]:
            return running_site(
                tmp_path,
                registry,
                url,
                debian_program,
                daemons,
                f"http://{web}",
                more,
                **options,
            )

        yield make


@pytest.fixture
async def site(open_site: OpenSite) -> AsyncIterator[Site]:
    async with open_site() as running:
        yield running
