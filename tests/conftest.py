"""What every test may ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.programs import require_program


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--interop",
        action="store_true",
        help="run every case with every other yamux implementation (some minutes)",
    )


@pytest.fixture
def debian_program() -> Callable[[str, str], str]:
    """`debian_program("sshd", "openssh-server")` is the path of sshd, or a skip that says why."""
    return require_program
