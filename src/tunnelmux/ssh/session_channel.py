"""Channels for sessions that other ends open, with a bound for what asyncssh keeps of them."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["LOCALE", "MOST_VARIABLES", "channel_count", "discard_unsent", "new_session_channel"]

LOCALE = r"LANG|LC_[A-Z]{1,32}|TERM|COLORTERM|NO_COLOR"
"""What Debian's sshd takes, as a regular expression; others say things about the person's
machine."""

MOST_VARIABLES = 32
"""Variables of one session: there are some 15 of these names. Without a bound, one channel could
fill the memory before it asks for anything."""

_PACKET = 32_768
# Bytes of one message of a channel: RFC 4253 section 6.1, and what OpenSSH sends.

_LONGEST = 1024
# Bytes of a value: a locale has 20.


class _Environment(dict[bytes, bytes]):
    """The variables that are passed on; all others are forgotten."""

    def __init__(self, passed_on: re.Pattern[bytes]) -> None:
        super().__init__()
        self._passed_on = passed_on

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if len(self) >= MOST_VARIABLES and name not in self:
            return
        if b"\0" in value:
            return  # no variable can have one, and sshd ends the connection for it
        if len(value) <= _LONGEST and self._passed_on.fullmatch(name):
            super().__setitem__(name, value)


def new_session_channel(connection: Any, window: int, names: str = LOCALE) -> Any:
    """A channel of this connection for one session, with `window` bytes under way at most; of the
    variables that come, those whose names match are kept."""
    channel = connection.create_server_channel(None, "strict", window, _PACKET)
    # asyncssh keeps each variable that is sent, and has no option that bounds them.
    channel._env = _Environment(re.compile(names.encode("ascii")))  # noqa: SLF001
    return channel


def discard_unsent(channel: Any) -> None:
    """Drop what waits until the other end reads: what is written next is read next. asyncssh has no
    call for that."""
    channel._send_buf.clear()  # noqa: SLF001
    channel._send_buf_len = 0  # noqa: SLF001


def channel_count(connection: Any) -> int:
    """Channels of this connection, those included that its other end leaves without an answer: it
    may never confirm one that is opened, nor the end of one."""
    return len(connection._channels)  # noqa: SLF001  there is no public way
