"""A process of an account for one SSH session, with pipes or with a terminal, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tunnelmux.descriptors import lower_descriptor_limit

__all__ = ["RunningShell", "Terminal", "login_environment", "start_shell"]

_GRACE = 1.0
# Seconds that what hangs up may take to end before SIGKILL.

_LOOKS = 25
_BETWEEN_LOOKS = 0.04
# A process that is killed takes a moment to go, and may have started another one just before.

_ON_TERMINAL = 'exec "$@" 0<>"$0" 1>&0 2>&0'
# For sh: a session's leader that opens a terminal gets it as its own (tty_ioctl(4), TIOCSCTTY), so
# that no code of ours has to run between fork and exec.

_PATH = "/usr/local/bin:/usr/bin:/bin"
_PATH_OF_ROOT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a person's terminal is."""

    kind: str
    """For TERM."""
    size: tuple[int, int, int, int]
    """Columns, rows, and both in pixels."""


def login_environment(account: pwd.struct_passwd) -> dict[str, str]:
    """The variables of a new session: none of this process, which may hold secrets."""
    return {
        "HOME": account.pw_dir,
        "LOGNAME": account.pw_name,
        "PATH": _PATH if account.pw_uid else _PATH_OF_ROOT,
        "SHELL": account.pw_shell or "/bin/sh",
        "USER": account.pw_name,
    }


class RunningShell:
    """A process that was started, the leader of a session of its own."""

    def __init__(
        self,
        process: trio.Process,
        input_: trio.abc.SendStream,
        outputs: Sequence[trio.abc.ReceiveStream],
        terminal: int | None,
    ) -> None:
        self.process = process
        self.input = input_
        """What it reads."""
        self.outputs = outputs
        """What it writes: the terminal's output, or standard output and standard error."""
        self._terminal = terminal

    def resize(self, size: tuple[int, int, int, int]) -> None:
        """The terminal has another size."""
        if self._terminal is not None:
            _set_size(self._terminal, size)

    def send_signal(self, name: str) -> None:
        """Signal, by its name without SIG, what runs in the foreground (RFC 4254 section 6.9)."""
        number = getattr(signal, f"SIG{name}", None)
        if not isinstance(number, signal.Signals) or self.process.returncode is not None:
            return
        group = self.process.pid
        with contextlib.suppress(OSError):
            if self._terminal is not None:
                group = os.tcgetpgrp(self._terminal)
            os.killpg(group, number)

    async def let_go(self) -> None:
        """Close what leads to it. What it left in the background goes on, as with sshd."""
        self._terminal = None
        for stream in {self.input, *self.outputs}:
            await trio.aclose_forcefully(stream)

    async def end(self) -> None:
        """Hang up, and kill what does not end by that, with all of its session."""
        with trio.CancelScope(shield=True):
            await self.let_go()
            for number in (signal.SIGHUP, signal.SIGCONT):
                with contextlib.suppress(OSError):
                    os.killpg(self.process.pid, number)
            with trio.move_on_after(_GRACE):
                await self.process.wait()
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()
            for _ in range(_LOOKS):
                left = _members(self.process.pid)
                for pid in left:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                if not left:
                    break
                await trio.sleep(_BETWEEN_LOOKS)


async def start_shell(
    account: pwd.struct_passwd,
    words: Sequence[str],
    environment: Mapping[str, str],
    terminal: Terminal | None,
) -> RunningShell:
    """Start this program as the account, in its home folder. Raises OSError."""
    home = account.pw_dir if await trio.Path(account.pw_dir).is_dir() else "/"
    changes: dict[str, Any] = {}
    if os.geteuid() != account.pw_uid:
        # As sshd does: also the groups, which would else be those of root.
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
        changes = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    options: dict[str, Any] = {
        "cwd": home,
        "env": dict(environment),
        "start_new_session": True,
        "umask": 0o022,
        **changes,
    }
    if terminal is None:
        process = await trio.lowlevel.open_process(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        lower_descriptor_limit(process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        return RunningShell(process, process.stdin, (process.stdout, process.stderr), None)
    return await _start_on_terminal(account, words, terminal, options)


async def _start_on_terminal(
    account: pwd.struct_passwd, words: Sequence[str], terminal: Terminal, options: dict[str, Any]
) -> RunningShell:
    ours, theirs = os.openpty()
    try:
        name = os.ttyname(theirs)
        _set_size(theirs, terminal.size)
        if os.geteuid() != account.pw_uid:
            os.fchown(theirs, account.pw_uid, -1)
        os.fchmod(theirs, 0o600)  # else others on this device could write to it
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", _ON_TERMINAL, name, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            **options,
        )
        lower_descriptor_limit(process.pid)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    stream = trio.lowlevel.FdStream(ours)
    return RunningShell(process, stream, (stream,), ours)


def _set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    columns, rows, width, height = (min(max(0, value), 0xFFFF) for value in size)
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


def _members(session: int) -> list[int]:
    """The processes of a session, where the system tells of them (proc(5), `stat`)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if int(after_name[3]) == session:
                found.append(int(folder.name))
    return found
