"""A missing Debian program is a skip that says what to install, and a failure in CI."""

from __future__ import annotations

from collections.abc import Callable

import pytest

ABSENT = "no-such-program-anywhere"


def test_program_that_is_there_is_found(debian_program: Callable[[str, str], str]) -> None:
    assert debian_program("sh", "dash").endswith("/sh")


def test_absent_program_skips_and_names_the_package(
    debian_program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install some-package"):
        debian_program(ABSENT, "some-package")


def test_absent_program_fails_in_ci(
    debian_program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install some-package"):
        debian_program(ABSENT, "some-package")
