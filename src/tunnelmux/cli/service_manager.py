"""State messages from a daemon to the service manager that started it: sd_notify(3) of systemd.

One datagram for each state, to the socket that NOTIFY_SOCKET names. Without that variable
nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

import trio

__all__ = ["ServiceManager"]

_MICROSECONDS = 1e6


class ServiceManager:
    """The service manager of this process, if it has one that listens."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environ) if self._address is not None else None

    def ready(self) -> None:
        """The daemon serves; also the message that ends a reload."""
        self._send("READY=1", "STATUS=")

    def reloading(self) -> None:
        """A reload begins. `ready` or `reload_failed` has to follow."""
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC) * _MICROSECONDS)
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the configuration again")

    def reload_failed(self, cause: str) -> None:
        """The configuration before stays; `systemctl status` shows why."""
        self._send("READY=1", "STATUS=not reloaded: " + " ".join(cause.split()))

    def followed_by(self, process: int) -> None:
        """That process is the daemon from now on; this ends a reload as well."""
        self._send(f"MAINPID={process}", "READY=1", "STATUS=")

    def stopping(self) -> None:
        """The daemon drains."""
        self._send("STOPPING=1", "STATUS=draining")

    async def watch(self) -> None:
        """Tell the watchdog that the event loop runs, twice in each of its periods.

        Runs until it is cancelled, or returns at once where no watchdog waits for this process.
        """
        if self._watchdog is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog / 2)

    def _send(self, *states: str) -> None:
        if self._address is None:
            return
        # A manager that is gone or too busy must not delay a daemon.
        with (
            contextlib.suppress(OSError),
            socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender,
        ):
            sender.sendto("\n".join(states).encode(), self._address)


def _socket_address(name: str) -> str | None:
    """A path, or a name in the abstract namespace, which is written with "@" in front."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """The watchdog's period, if one waits for this process and not for its parent."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        process = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    if microseconds <= 0 or process != os.getpid():
        return None
    return microseconds / _MICROSECONDS
