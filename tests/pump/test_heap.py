"""Memory that nothing uses any more goes back to the system."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the pump needs epoll", allow_module_level=True)

from tunnelmux.pump.epoll import trim_heap

SIZE, COUNT = 20_000, 2_000
"""Below what the C library maps by itself; 40 MB together."""


def resident() -> int:
    """Bytes of this process in memory now (statm of proc(5))."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


# Marked slow, so that the sanitizers leave it out: they have a heap of their own.
@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such call")
def test_what_lies_free_below_something_in_use_is_given_back() -> None:
    blocks = [bytearray(SIZE) for _ in range(COUNT)]
    last = bytearray(SIZE)  # keeps the heap from shrinking by itself
    full = resident()
    del blocks
    trim_heap()
    assert full - resident() > SIZE * COUNT // 2
    assert len(last) == SIZE
