"""The signal that asks a proxy to make way for its program anew, and the answer to it.

How it went is told by a datagram, to a name in the abstract namespace (unix(7)) that says which
process was asked. It is believed if it comes from that process, which the kernel says.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path

import trio

from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.errors import ConfigError, TunnelmuxError

__all__ = ["PATIENCE", "UPGRADE_SIGNAL", "UpgradeFailed", "ask_for_upgrade", "tell_of_upgrade"]

UPGRADE_SIGNAL = signal.SIGUSR2

PATIENCE = 120.0
"""Seconds until the next program serves: it starts, and all agents make sessions with it."""

_DONE, _FAILED = b"done ", b"failed "
_MOST_BYTES = 4096
_CREDENTIALS = struct.Struct("iII")  # of unix(7): process, user, group


class UpgradeFailed(TunnelmuxError):
    """The running proxy goes on as before."""


def _address_of(process: int) -> str:
    return f"\0tunnelmux-upgrade-{process}"


def tell_of_upgrade(new: int | None, problem: str = "") -> None:
    """Tell which process serves now, or what went wrong, if there is an `upgrade` that waits."""
    said = _FAILED + problem.encode() if new is None else _DONE + str(new).encode()
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(said[:_MOST_BYTES], _address_of(os.getpid()))


def ask_for_upgrade(process: int) -> int:
    """Ask that process, and wait; answers the process that serves now. Raises ConfigError where it
    is no proxy that can be asked, and UpgradeFailed."""
    _check(process)
    return run_interruptible(_ask, process)


async def _ask(process: int) -> int:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            await heard.bind(_address_of(process))
        except OSError as error:
            raise UpgradeFailed(f"another upgrade of {process} is under way") from error
        os.kill(process, UPGRADE_SIGNAL)
        with trio.move_on_after(PATIENCE + 10):
            while True:
                said, passed, _, _ = await heard.recvmsg(
                    _MOST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
                if _sender_of(passed) == process:
                    break
            if said.startswith(_DONE):
                return int(said.removeprefix(_DONE))
            problem = said.removeprefix(_FAILED).decode("utf-8", "replace")
            raise UpgradeFailed(f"{problem}. Process {process} goes on as before")
        raise UpgradeFailed(f"process {process} gave no answer: see its log")


def _sender_of(passed: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in passed:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            process: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            return process
    return -1


def _is_ours(words: list[bytes]) -> bool:
    """Whether this command line runs tunnelmux: a shell catches the signal too, and ends by it."""
    is_python = words[0].rpartition(b"/")[2].startswith(b"python")
    return is_python and any(b"tunnelmux" in word for word in words[1:])


def _check(process: int) -> None:
    """The signal would end a process that does not expect it."""
    folder = Path(f"/proc/{process}")
    try:
        status = (folder / "status").read_text("ascii", "replace")
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError as error:
        raise ConfigError(f"there is no process {process} that can be seen from here") from error
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    expects_it = int(caught.split()[1], 16) >> (UPGRADE_SIGNAL - 1) & 1
    if not expects_it or not _is_ours(words):
        raise ConfigError(
            f"process {process} takes no upgrade: give the first process of a tunnelmux-proxy that "
            "was started with --config"
        )
