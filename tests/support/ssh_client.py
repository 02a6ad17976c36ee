"""Commands for the sshd of a test, and what they leave behind there and here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import trio

from support.sshd import SshServer
from tunnelmux.commands import CommandRequest, Event, Output
from tunnelmux.config import Secret
from tunnelmux.ssh.pool import SshPool

__all__ = ["Asker", "descriptors", "nothing_open", "output_of", "processes_with", "until"]

_numbers = itertools.count(1)


class Asker:
    """Makes requests for one server, logging in as the user who runs the tests."""

    def __init__(self, server: SshServer) -> None:
        self._server = server
        self.key = Secret((server.folder / "user_key").read_text("ascii"))

    def __call__(self, command: str, timeout: float = 20.0, **changes: object) -> CommandRequest:
        fields: dict[str, object] = {
            "command_id": f"cmd_{next(_numbers)}",
            "host": self._server.address.host,
            "port": self._server.address.port,
            "username": self._server.user,
            "private_key": self.key,
            "command": command,
            "timeout": timeout,
        }
        return CommandRequest(**fields | changes)  # type: ignore[arg-type]


def output_of(events: list[Event], stream: str = "stdout") -> bytes:
    pieces = [e.data for e in events if isinstance(e, Output) and e.stream == stream]
    return b"".join(pieces)


async def until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Return once *condition* holds: for what happens in another process and tells nobody."""
    with trio.move_on_after(timeout):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)
        return
    raise AssertionError(f"still not so: {what}")


def processes_with(word: str) -> list[int]:
    """Processes of this machine whose command line has *word*, which only this test knows."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in words and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def nothing_open(pool: SshPool) -> None:
    """See that no command, channel or waiting place is left over; connections may be idle."""
    await until(lambda: pool.running == 0, "no command")
    await until(
        lambda: all(c.channel_count == 0 and not c.running for c in pool.connections()),
        "no channel",
    )
