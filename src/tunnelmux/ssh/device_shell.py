"""The SSH server of a device without one: shells and commands of one account, and no more.

Each connection comes as a socket that is connected already. Who may log in stands in a file like
OpenSSH's authorized_keys; asyncssh judges keys, certificates, `from`, `principals` and `command`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import pwd
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import trio

from tunnelmux.limits import ShellLimits
from tunnelmux.observability import get_logger
from tunnelmux.ssh.back_pressure import BackPressure
from tunnelmux.ssh.bridge import Bridge, open_bridge
from tunnelmux.ssh.session_channel import LOCALE, new_session_channel
from tunnelmux.ssh.shell_process import RunningShell, Terminal, login_environment, start_shell

__all__ = ["DeviceShell", "ShellRules", "new_host_key", "open_device_shell"]

_log = get_logger("agent.shell")

_WINDOW = 256 * 1024
# Bytes of a channel under way: as much as a stream of the tunnel.

_UNSENT_BEFORE_LOGIN = 65_536
_UNSENT = 8 * 1024 * 1024
# Bytes that a peer may leave unread, of which all but a little is the windows of its channels.

_HELD = 64 * 1024
# Bytes of input that may wait for a process; then its channel is not read.

_QUIET_AFTER_EXIT = 2.0
# Seconds for output that comes behind the exit: a process in the background may hold it open.

_LARGEST_FILE = 1_000_000

_FROM_GATEWAY = r"TUNNELMUX_ACTOR|TUNNELMUX_LEASE"

_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")

_NOT_RUN = 126  # as a shell has it


@dataclass(frozen=True, slots=True)
class ShellRules:
    """What the shell is."""

    account: pwd.struct_passwd
    command: Sequence[str]
    """In the place of the account's login shell, unless empty."""
    authorized_keys: Path
    host_key: str
    """Private, in the OpenSSH format."""
    limits: ShellLimits


Note = Callable[..., None]
"""Writes down what happened: `note(what, **details)`."""


def new_host_key() -> tuple[str, str]:
    """A private key in the OpenSSH format, and its public half as `TYPE BASE64`."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode("ascii"), key.export_public_key().decode("ascii")


@asynccontextmanager
async def open_device_shell(note: Note) -> AsyncIterator[DeviceShell]:
    """The server for the length of the block, which must not raise out of it."""
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        shell = DeviceShell(bridge, nursery, note)
        try:
            yield shell
        finally:
            shell.end_all()
            nursery.cancel_scope.cancel(reason="the shell is closed")


class DeviceShell:
    """What all connections share."""

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, note: Note) -> None:
        self.bridge = bridge
        self.nursery = nursery
        self.note = note
        self.sessions: set[_Session] = set()
        self.connections: set[_Connection] = set()

    async def serve(self, sock: socket.socket, rules: ShellRules) -> None:
        """One connection, to its end."""
        await self.bridge.call(self._serve(sock, rules))

    async def _serve(self, sock: socket.socket, rules: ShellRules) -> None:
        connection = _Connection(self, rules)
        try:
            running = await asyncssh.run_server(
                sock,
                server_factory=lambda: connection,
                server_host_keys=[asyncssh.import_private_key(rules.host_key)],
                authorized_client_keys=_read_keys(rules.authorized_keys),
                encoding=None,
                line_editor=False,
                agent_forwarding=False,
                x11_forwarding=False,
                allow_scp=False,
                password_auth=False,
                kbdint_auth=False,
                host_based_auth=False,
                compression_algs=None,
                login_timeout=rules.limits.login_timeout,
                keepalive_interval=15,
                gss_host=None,
                config=None,
                server_version="tunnelmux",
                x509_trusted_certs=None,
            )
            await running.wait_closed()
        except (OSError, asyncssh.Error, TimeoutError, ValueError) as exc:
            _log.info("shell not reached", cause=str(exc) or type(exc).__name__)
        finally:
            connection.abort()
            sock.close()

    def end_all(self) -> None:
        """End all sessions and connections now."""
        with self.bridge.entered():
            for connection in list(self.connections):
                connection.abort()


def _read_keys(path: Path) -> Any:
    with path.open("rb") as file:
        lines = file.read(_LARGEST_FILE).decode("utf-8", "replace")
    return asyncssh.import_authorized_keys(lines)


class _Connection(asyncssh.SSHServer):
    """What asyncssh calls about one connection."""

    def __init__(self, shell: DeviceShell, rules: ShellRules) -> None:
        self.shell = shell
        self.rules = rules
        self.account = ""
        """Who they want to be."""
        self.key = ""
        """The fingerprint of the key that logged in; empty for a certificate, whose authority
        answers for what it says in variables."""
        self._connection: Any = None
        self._check: Any = None
        self._pressure: BackPressure | None = None

    def connection_made(self, conn: Any) -> None:
        self.shell.connections.add(self)
        self._connection = conn
        # As for an sshd here, whom the agent would call from this machine: `from` of a line.
        conn._peer_addr = "127.0.0.1"  # noqa: SLF001
        self._check = conn.validate_public_key
        conn.validate_public_key = self._remember
        self._pressure = BackPressure(conn, asyncio.get_running_loop(), _UNSENT_BEFORE_LOGIN)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.shell.connections.discard(self)

    def auth_completed(self) -> None:
        assert self._pressure is not None
        self._pressure.most_unsent = _UNSENT

    def begin_auth(self, username: str) -> bool:
        self.account = username
        return True

    async def _remember(self, user: str, key: bytes, message: bytes, signature: bytes) -> bool:
        if not await self._check(user, key, message, signature):
            return False
        kind = key[4 : 4 + int.from_bytes(key[:4], "big")]
        digest = base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")
        self.key = "" if kind.endswith(b"-cert-v01@openssh.com") else f"SHA256:{digest}"
        return True

    def session_requested(self) -> Any:
        most = self.rules.limits.max_sessions
        if len(self.shell.sessions) >= most:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE,
                f"{most} sessions are open on this device: end one (shell.max_sessions)",
            )
        session = _Session(self)
        self.shell.sessions.add(session)
        names = LOCALE if self.key else f"{LOCALE}|{_FROM_GATEWAY}"
        return new_session_channel(self._connection, _WINDOW, names), session

    def objection(self, *, wants_terminal: bool) -> str:
        """Why this log-in may not have such a session; empty where it may."""
        name = self.rules.account.pw_name
        if self.account != name:
            return f'the shell of this device is that of "{name}": log in with this name'
        option = self._connection.get_key_option
        ends = option("expiry-time")
        if ends and _is_over(ends[0]):
            return "the time of this key is over"
        if wants_terminal and option("restrict") and not option("pty"):
            return "this key is not for terminals: ssh -T"
        return ""

    def abort(self) -> None:
        """End it now, if it began and is not over."""
        if self in self.shell.connections:
            self._connection.abort()


def _is_over(ends: str) -> bool:
    """Whether this time has come, or is none; as in sshd(8), `expiry-time`."""
    in_utc, text = ends.endswith("Z"), ends.removesuffix("Z")
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(text), "")
    try:
        until = time.strptime(text, form)
    except ValueError:
        return True
    return (time.gmtime() if in_utc else time.localtime())[:6] >= until[:6]


class _Session(asyncssh.SSHServerSession[bytes]):
    """One shell or command. Its process belongs to a task of Trio's, `_run`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._shell = connection.shell
        self._rules = connection.rules
        self._channel: Any = None
        self._terminal: Terminal | None = None
        self._command: str | None = None
        self._running: RunningShell | None = None
        self._input = bytearray()
        self._is_eof = False
        self._is_held = False
        self._has_input = trio.Event()
        self._may_write = trio.Event()
        self._may_write.set()
        self._scope = trio.CancelScope()
        self._began = time.monotonic()
        self._has_task = False

    # -- called by asyncssh -------------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], _modes: Any
    ) -> bool:
        kind = term_type if _TERM.fullmatch(term_type) else "dumb"
        self._terminal = Terminal(kind, term_size)
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def session_started(self) -> None:
        self._has_task = True
        self._shell.nursery.start_soon(self._run)

    def data_received(self, data: bytes, _datatype: object) -> None:
        self._input += data
        if len(self._input) > _HELD and not self._is_held:
            self._is_held = True
            self._channel.pause_reading()
        self._has_input.set()

    def eof_received(self) -> bool:
        self._is_eof = True
        self._has_input.set()
        return True  # its output goes on

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        size = (width, height, pixwidth, pixheight)
        if self._running is not None:
            self._running.resize(size)
        elif self._terminal is not None:
            self._terminal = Terminal(self._terminal.kind, size)

    def signal_received(self, name: str) -> None:
        if self._running is not None:
            self._running.send_signal(name)

    def pause_writing(self) -> None:
        self._may_write = trio.Event()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._may_write.set()
        if not self._has_task:
            self._shell.sessions.discard(self)
        self._scope.cancel(reason="the person, or what let them in, is gone")

    # -- in Trio ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._run_process()
        except Exception as exc:  # noqa: BLE001  one session's failure is its own
            _log.error("unhandled error in shell", exc_info=exc)
            self._refuse("the shell failed; the log of this device says how")
        finally:
            self._shell.sessions.discard(self)

    async def _run_process(self) -> None:
        objection = self._connection.objection(wants_terminal=self._terminal is not None)
        if objection:
            self._refuse(objection)
            return
        environment = self._environment()
        try:
            with trio.CancelScope(shield=True):  # it is short, and a process must have its owner
                running = await start_shell(
                    self._rules.account, self._words(), environment, self._terminal
                )
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            self._refuse(f"the shell cannot be started: {exc}")
            return
        self._running = running
        details = self._details(environment)
        self._shell.note("shell begins", **details)
        status: int | None = None
        try:
            with self._scope:
                status = await self._serve(running)
                await running.let_go()
        finally:
            if status is None:
                await running.end()
            seconds = round(time.monotonic() - self._began, 1)
            self._shell.note("shell over", **details, status=status, seconds=seconds)
        if status is not None:
            self._say_end(status)

    async def _serve(self, running: RunningShell) -> int:
        """Pass on both ways until the process is over; its return code."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, running)
            over = [trio.Event() for _ in running.outputs]
            kinds = (None, asyncssh.EXTENDED_DATA_STDERR)
            for output, kind, end in zip(running.outputs, kinds, over, strict=False):
                nursery.start_soon(self._pass_on, output, kind, end)
            status = await running.process.wait()
            with trio.move_on_after(_QUIET_AFTER_EXIT):
                for end in over:
                    await end.wait()
            nursery.cancel_scope.cancel(reason="the process is over")
        return status

    async def _feed(self, running: RunningShell) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                # No deadline: a person types when they like.
                await self._has_input.wait()
                self._has_input = trio.Event()
                data, self._input = self._input, bytearray()
                if data:
                    await running.input.send_all(data)
                if self._is_held and len(self._input) < _HELD:
                    self._is_held = False
                    with self._shell.bridge.entered():
                        self._channel.resume_reading()
                if self._is_eof and not self._input:
                    break
        if self._terminal is None:
            await running.input.aclose()

    async def _pass_on(
        self, output: trio.abc.ReceiveStream, kind: int | None, end: trio.Event
    ) -> None:
        # A terminal whose processes are gone is broken: that is its end.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await output.receive_some(32_768):
                await self._may_write.wait()
                self._write(bytes(data), kind)
        end.set()

    def _write(self, data: bytes, kind: int | None) -> None:
        if not self._channel.is_closing():
            with self._shell.bridge.entered(), suppress(OSError):
                self._channel.write(data, kind)

    def _words(self) -> list[str]:
        account = self._rules.account
        login_shell = account.pw_shell or "/bin/sh"
        if self._rules.command:
            return list(self._rules.command)
        if self._command is None:
            return [login_shell, "-l"]
        return [login_shell, "-c", self._command]

    def _environment(self) -> dict[str, str]:
        said = self._channel.get_environment_bytes()
        environment = {
            name.decode("ascii"): value.decode("utf-8", "replace").replace("\0", "")
            for name, value in said.items()
        }
        if self._connection.key:
            environment["TUNNELMUX_ACTOR"] = self._connection.key
        environment |= login_environment(self._rules.account)
        environment.pop("TERM", None)
        if self._terminal is not None:
            environment["TERM"] = self._terminal.kind
        if self._rules.command and self._command is not None:
            environment["SSH_ORIGINAL_COMMAND"] = self._command
        return environment

    def _details(self, environment: dict[str, str]) -> dict[str, object]:
        return {
            "account": self._connection.account,
            "actor": environment.get("TUNNELMUX_ACTOR", ""),
            "lease": environment.get("TUNNELMUX_LEASE", ""),
            "command": self._command or "",
        }

    def _refuse(self, why: str) -> None:
        line = f"tunnelmux: {why}\n".encode()
        if self._terminal is not None:
            self._write(line.replace(b"\n", b"\r\n"), None)
        else:
            self._write(line, asyncssh.EXTENDED_DATA_STDERR)
        self._say_end(_NOT_RUN)

    def _say_end(self, status: int) -> None:
        if self._channel.is_closing():
            return
        with self._shell.bridge.entered(), suppress(OSError):
            if status >= 0:
                self._channel.exit(status)
            else:
                name = signal.Signals(-status).name.removeprefix("SIG")
                self._channel.exit_with_signal(name, False, "")
