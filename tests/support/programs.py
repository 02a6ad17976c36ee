"""Programs of the machine that some tests talk to: a real sshd, curl, nc."""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["find_program", "require_program"]

DAEMON_FOLDERS = ("/usr/sbin", "/sbin")
"""Where Debian keeps daemons, and where an ordinary user's PATH does not look."""


def find_program(name: str) -> str | None:
    """The path of the program *name*, or None when it is not installed."""
    folders = [os.environ.get("PATH", os.defpath), *DAEMON_FOLDERS]
    return shutil.which(name, path=os.pathsep.join(folders))


def require_program(name: str, package: str) -> str:
    """The path of the program *name*; without it the test is skipped, or fails where CI=true.

    *package* is the Debian package to install, and is named in the reason.
    """
    found = find_program(name)
    if found is not None:
        return found
    reason = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (in CI this is a failure, not a skip)", pytrace=False)
    pytest.skip(reason)
