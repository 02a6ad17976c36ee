"""Whether a person here has a browser to open something in."""

from __future__ import annotations

import os
import sys

__all__ = ["has_browser"]


def has_browser() -> bool:
    """Whether there is one that shows itself: a text browser would take the terminal over."""
    if not sys.stdin.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
