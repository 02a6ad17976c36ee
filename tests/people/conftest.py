"""One installation for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installation import Installation, running_installation
from support.programs import require_program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The installation runs in a thread of its own, and the collection of garbage may meet its
    generators in the tests' thread: Trio's warning of that is about no test here."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


@pytest.fixture(scope="package")
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
