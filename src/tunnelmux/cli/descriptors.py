"""How many files and sockets this process may have open."""

from __future__ import annotations

import contextlib
import sys

if sys.platform != "win32":  # on Unix, it tells how many files a process may open
    import resource

__all__ = ["raise_descriptor_limit"]

_MOST = 65_536
# Enough for the default limits of a proxy, and for 10,000 agents.


def raise_descriptor_limit() -> None:
    """Let this process have as many open as its user may. What a shell gives, often 1024, is meant
    for programs that can number no more of them (select)."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
