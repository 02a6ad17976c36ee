"""How many files and sockets this process may have open, and whether one more can be."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

if sys.platform != "win32":  # on Unix, it tells how many files a process may open
    import resource

__all__ = ["files_allowed", "lower_descriptor_limit", "raise_descriptor_limit", "ran_out"]

_MOST = 65_536
# Enough for the default limits of a proxy, and for 10,000 agents.

_given: list[int] = []
# The limit before it was raised: one of the process, as the limit is.


def files_allowed() -> int:
    """How many this process may have open."""
    if sys.platform == "win32":
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize


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
            _given.append(soft)


def lower_descriptor_limit(child: int) -> None:
    """Give a process that was just started the limit that this one was given, where the system
    can: other programs may be of those for which it is meant."""
    if _given and sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):  # it has ended, for one
            _, hard = resource.prlimit(child, resource.RLIMIT_NOFILE)
            resource.prlimit(child, resource.RLIMIT_NOFILE, (min(_given[0], hard), hard))


def ran_out() -> bool:
    """Whether no more can be opened now. What needs one for its work may say only that it failed,
    or something else: that a name does not resolve, for one."""
    try:
        os.close(os.dup(2))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False
