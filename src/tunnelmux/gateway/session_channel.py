"""Channels for sessions that other ends open, with a bound for what asyncssh keeps of them."""

from __future__ import annotations

import re
from typing import Any

from tunnelmux.gateway.relay import WINDOW

__all__ = ["MOST_VARIABLES", "new_session_channel"]

_PACKET = 32_768
# Bytes of one message of a channel: RFC 4253 section 6.1, and what OpenSSH sends.

_PASSED_ON = re.compile(rb"LANG|LC_[A-Z]{1,32}|TERM|COLORTERM|NO_COLOR")
# What Debian's sshd takes; others say things about the person's machine.

MOST_VARIABLES = 32
"""Variables of one session: there are some 15 of these names. Without a bound, one channel could
fill the gateway's memory before it asks for anything."""

_LONGEST = 1024
# Bytes of a value: a locale has 20.


class _Environment(dict[bytes, bytes]):
    """The variables that are passed on to a device; all others are forgotten."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if len(self) >= MOST_VARIABLES and name not in self:
            return
        if len(value) <= _LONGEST and _PASSED_ON.fullmatch(name):
            super().__setitem__(name, value)


def new_session_channel(connection: Any) -> Any:
    """A channel of this connection for one session."""
    channel = connection.create_server_channel(None, "strict", WINDOW, _PACKET)
    # asyncssh keeps each variable that is sent, and has no option that bounds them.
    channel._env = _Environment()  # noqa: SLF001
    return channel
