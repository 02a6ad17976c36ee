"""Programs of the machine that some tests talk to: a real sshd, curl, nc."""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["require_program"]

DAEMON_FOLDERS = ("/usr/sbin", "/sbin")
"""Where Debian keeps daemons, and where an ordinary user's PATH does not look."""


def require_program(name: str, package: str) -> str:
    """The path of the program *name*; without it the test is skipped, or fails where CI=true.

    *package* is the Debian package to install, and is named in the reason.
    """
    folders = [os.environ.get("PATH", os.defpath), *DAEMON_FOLDERS]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is not None:
        return found
    reason = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (in CI this is a failure, not a skip)", pytrace=False)
    pytest.skip(reason)
