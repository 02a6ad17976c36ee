"""How much each channel may have under way, so that all of one person or device stay bounded.

What a channel has under way waits in this process while the other side takes nothing. One channel
needs half a megabyte for a fast transfer over a long way; a thousand that nothing reads would keep
as many halves. So each new one gets a part of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["WINDOW", "window_among"]

WINDOW = 512 * 1024
"""Bytes that a channel may have under way, where few are open."""

_LEAST = 32 * 1024
# Bytes, of however many channels: one packet (RFC 4253 section 6.1), so that each still moves.

_TOGETHER = 32 * 1024 * 1024
# Bytes for all channels of one person or device, beside `_LEAST` for each.

_PART = 16
# What a new channel gets of what is left: 53 channels have WINDOW, and the next ones less and less.


def window_among(connections: Iterable[Any]) -> int:
    """The window of one more channel beside all that these connections have, in bytes."""
    taken: int = sum(
        channel.get_recv_window() - _LEAST
        for connection in connections
        for channel in connection._channels.values()  # noqa: SLF001  there is no public way
    )
    return _LEAST + min(WINDOW - _LEAST, max(0, _TOGETHER - taken) // _PART)
