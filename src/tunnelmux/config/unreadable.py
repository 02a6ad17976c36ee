"""What to do about a file that cannot be read, for error messages."""

from __future__ import annotations

import os
import pwd

__all__ = ["fix_for_unreadable"]


def fix_for_unreadable(error: OSError, otherwise: str) -> str:
    """The fix that belongs to `error`: for missing rights it names the user who lacks them.

    `otherwise` is the fix for every other cause, such as a name that does not exist.
    """
    if not isinstance(error, PermissionError):
        return otherwise
    return (
        f"let the user {_own_name()} read it (chgrp and chmod 640) and enter the folders above it"
    )


def _own_name() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
