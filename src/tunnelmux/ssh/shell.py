"""A person's shell with a terminal on an SSH server, as bytes: for a terminal in a browser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncssh
import trio

from tunnelmux.printable import said
from tunnelmux.ssh.back_pressure import BackPressure
from tunnelmux.ssh.bridge import Bridge, open_bridge
from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.gathering import Way
from tunnelmux.transports.tcp import explain_os_error

__all__ = ["Shell", "ShellLogin", "open_shell", "read_host_key"]

_WINDOW = 65_536
# Bytes the server may send before we have taken them: the memory that a stopped terminal holds.

_UNSENT = 1024 * 1024
# Bytes of typed input that the server may leave unread: the window that our gateway gives, twice.

_CLOSE_TIME = 2.0
# Seconds for a connection to be closed in good order; then it is cut.

_KEEPALIVE = 15
# Seconds between two keepalives; three may go unanswered.


@dataclass(frozen=True, slots=True)
class ShellLogin:
    """Where to open a shell, and for which user. The user name is the only proof: it is a
    ticket."""

    host: str
    port: int
    username: str = field(repr=False)
    host_key: str
    """The only key that the server may have, in the format of a `.pub` file."""
    columns: int = 80
    rows: int = 24
    timeout: float = 30.0
    """Seconds within which the shell must be open."""


class Shell:
    """One shell. Only one task may call `receive`, and only one `send`."""

    def __init__(self, bridge: Bridge, session: _Session, process: Any) -> None:
        self._bridge = bridge
        self._session = session
        self._channel = process

    async def receive(self) -> bytes:
        """The next output for the terminal; empty at the end of the shell."""
        session = self._session
        while not session.output and not session.ended.is_set():
            session.changed = trio.Event()
            await session.changed.wait()
        data = bytes(session.output)
        session.output.clear()
        if session.is_paused:
            session.is_paused = False
            with self._bridge.entered():
                self._channel.resume_reading()
        return data

    async def send(self, data: bytes) -> None:
        """Send this as typed input; waits while the server takes no more."""
        with self._bridge.entered():
            if not self._session.ended.is_set():
                self._channel.write(data)
        await self._session.writable.wait()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the server that the terminal has another size now."""
        with self._bridge.entered():
            if not self._session.ended.is_set():
                self._channel.change_terminal_size(columns, rows)

    @property
    def story(self) -> str:
        """A sentence about how it ended; only to be read after its end."""
        session = self._session
        if session.status is not None:
            return "the shell ended" + (f" with {session.status}" if session.status else "")
        return (
            f"the connection ended: {said(str(session.lost))}"
            if session.lost
            else "the shell ended"
        )


class _Session(asyncssh.SSHClientSession[bytes]):
    """The session that asyncssh calls; none of its methods waits."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.changed = trio.Event()
        self.writable = trio.Event()
        self.writable.set()
        self.ended = trio.Event()
        self.is_paused = False
        self.status: int | None = None
        self.lost: Exception | None = None
        self._channel: Any = None

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def data_received(self, data: bytes, _datatype: int | None) -> None:
        self.output += data
        if len(self.output) >= _WINDOW and not self.is_paused:
            self.is_paused = True
            self._channel.pause_reading()
        self.changed.set()

    def pause_writing(self) -> None:
        self.writable = trio.Event()

    def resume_writing(self) -> None:
        self.writable.set()

    def exit_status_received(self, status: int) -> None:
        self.status = status

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self.ended.set()
        self.writable.set()
        self.changed.set()


class _Client(asyncssh.SSHClient):
    """Answers the server during the login: it has no prompts, at most a message."""

    def __init__(self) -> None:
        self.said = ""
        """The server's message when it refuses the login."""

    def connection_made(self, conn: Any) -> None:
        BackPressure(conn, asyncio.get_running_loop(), _UNSENT)

    def auth_banner_received(self, msg: str, _lang: str) -> None:
        self.said = self.said or said(msg)

    def kbdint_auth_requested(self) -> str:
        return ""

    def kbdint_challenge_received(
        self, _name: str, instructions: str, _lang: str, prompts: Any
    ) -> list[str] | None:
        self.said = said(instructions)
        return [] if not prompts else None


def read_host_key(line: str) -> str:
    """Return the line if it is a public key. Raises ValueError otherwise."""
    try:
        asyncssh.import_public_key(line)
    except asyncssh.KeyImportError as exc:
        raise ValueError(str(exc)) from exc
    return line


@asynccontextmanager
async def open_shell(login: ShellLogin) -> AsyncIterator[Shell]:
    """A shell for the length of the block. Raises SshFailure."""
    problem: Exception | None = None
    async with open_bridge() as bridge:  # no error may pass through it
        connection: Any = None
        shell: Shell | None = None
        sock: socket.socket | None = None
        client = _Client()
        try:
            with trio.fail_after(login.timeout):
                sock = await _reach(login)
                connection = await bridge.call(_dial(login, client, sock))
                session = _Session()
                channel = await _open(bridge, connection, session, login)
                shell = Shell(bridge, session, channel)
        except trio.TooSlowError:
            problem = SshFailure("timeout", f"no shell came within {login.timeout:g} s")
        except (asyncssh.Error, OSError, ValueError) as exc:
            problem = _explain(exc, client)
        try:
            if shell is not None:
                yield shell
        except Exception as exc:  # noqa: BLE001  raised again, outside
            problem = exc
        finally:
            if connection is not None:
                await _close(bridge, connection)
            if sock is not None:
                sock.close()  # asyncio would close it in a later turn, and this loop has none left
    if problem is not None:
        raise problem


async def _reach(login: ShellLogin) -> socket.socket:
    try:
        stream = await trio.open_tcp_stream(login.host, login.port)
    except OSError as exc:
        message = f"{login.host}:{login.port} cannot be reached: {explain_os_error(exc)}"
        raise OSError(message) from exc
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


async def _dial(login: ShellLogin, client: _Client, sock: socket.socket) -> Any:
    trusted = asyncssh.import_public_key(login.host_key)
    return await asyncssh.connect(
        login.host,
        login.port,
        tunnel=Way(sock),
        config=None,
        client_factory=lambda: client,
        username=login.username,
        known_hosts=([trusted], [], []),
        client_keys=None,
        agent_path=None,
        preferred_auth="keyboard-interactive",
        keepalive_interval=_KEEPALIVE,
        login_timeout=0,  # the caller has a deadline
    )


async def _open(bridge: Bridge, connection: Any, session: _Session, login: ShellLogin) -> Any:
    channel, _ = await bridge.call(
        connection.create_session(
            lambda: session,
            None,
            term_type="xterm-256color",
            term_size=(login.columns, login.rows),
            send_env=None,
            encoding=None,
            window=_WINDOW,
        )
    )
    return channel


async def _close(bridge: Bridge, connection: Any) -> None:
    with trio.CancelScope(shield=True):
        with bridge.entered():
            connection.close()
        with trio.move_on_after(_CLOSE_TIME) as limit:
            await bridge.call(connection.wait_closed())
        if limit.cancelled_caught:
            with bridge.entered():
                connection.abort()


def _explain(exc: Exception, client: _Client) -> SshFailure:
    if isinstance(exc, asyncssh.HostKeyNotVerifiable):
        message = (
            "the SSH gateway has another host key than [gateway] host_key_file of api.toml says: "
            "write the right one there, if the gateway's key was changed on purpose"
        )
        return SshFailure("failed", message)
    if isinstance(exc, asyncssh.PermissionDenied):
        reason = client.said.removeprefix("tunnelmux: ")
        return SshFailure("auth-failed", reason or "the SSH gateway refused this ticket")
    return SshFailure(
        "failed", said(str(exc)).removeprefix("tunnelmux: ") or "the SSH gateway hung up"
    )
