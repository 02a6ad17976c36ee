"""One installation for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.installation import Installation, running_installation
from support.programs import require_program


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    with running_installation(
        folder, tmp_path_factory.getbasetemp() / "bytecode", require_program
    ) as here:
        yield here


@pytest.fixture(params=["api", "proxy"])
def way(request: pytest.FixtureRequest) -> str:
    """By which of the two a command reaches the fleet."""
    return str(request.param)
