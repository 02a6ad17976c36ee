"""Whether a browser can be opened for the person at this terminal."""

from __future__ import annotations

import os
import sys

__all__ = ["has_browser"]


def has_browser() -> bool:
    """Whether there is a graphical browser: a text browser would take over the terminal."""
    if not sys.stdin.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
