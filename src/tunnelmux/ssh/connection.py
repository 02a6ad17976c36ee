"""One logged-in SSH connection: how it is made, and the commands on it."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import trio

from tunnelmux.commands import CommandRequest
from tunnelmux.limits import ExecLimits
from tunnelmux.ssh.bridge import Bridge, Pending
from tunnelmux.ssh.channel import Channel
from tunnelmux.ssh.credentials import LoginKey, login_options
from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.gathering import Way
from tunnelmux.ssh.host_keys import HostKeyCheck, HostKeys
from tunnelmux.ssh.kill import MARK_VARIABLE, kill_command, new_mark
from tunnelmux.transports.tcp import explain_os_error

__all__ = ["Connection", "Login", "Opening", "connect"]

CHANNEL_WINDOW = 262_144
"""Bytes a server may send on one channel before we have taken them: what a command costs at most
twice over, here and in the buffer of its reader. 5 MB/s at 50 ms of round trip."""

CLOSE_TIME = 2.0
"""Seconds for closing a connection in good order; then it is cut. A round trip and a process that
ends are all that is waited for."""

FIRST_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""Moved to the front of asyncssh's list: these it leaves to OpenSSL whole, while
chacha20-poly1305, its first choice, takes several calls from Python for each packet."""

KEEPALIVES = 3
"""Signs of life that a server may owe before its connection is closed."""

NOTICE_TIME = 0.1
"""Seconds for the protocol's own SIGTERM to have an effect before a second command is run: a round
trip in a local network."""


class Connection:
    """A connection that commands are run on. Made by `connect`; its pool owns it."""

    def __init__(self, bridge: Bridge, key: LoginKey, limits: ExecLimits) -> None:
        self.key = key
        self.capacity = limits.sessions_per_connection
        """Commands at once; less when the server allows fewer."""
        self.running: set[Opening] = set()
        """Its commands, those whose end is still being seen to included."""
        self.retired = False
        """Whether it takes no new commands, and is closed after the last one."""
        self.idle_since = trio.current_time()
        self.closed = trio.Event()
        """It is over, by whichever side."""
        self._bridge = bridge
        self._limits = limits
        self._connection: Any = None
        self._killing = trio.Lock()
        self._changed = trio.Event()

    @property
    def usable(self) -> bool:
        """Whether it can take a command now."""
        return not self.retired and not self.closed.is_set() and len(self.running) < self.capacity

    def attach(self, connection: Any) -> None:
        """The library's connection, once it is logged in."""
        self._connection = connection

    def open(self, request: CommandRequest, channel: Channel) -> Opening:
        """Begin a command. Takes its place at once; `release` gives it back."""
        mark = new_mark()
        pending = self._start(request.command, channel, mark)
        opening = Opening(channel, pending, mark, was_idle=not self.running)
        self.running.add(opening)
        return opening

    def release(self, opening: Opening) -> None:
        """The command is over, or given up."""
        self.running.discard(opening)
        self.idle_since = trio.current_time()
        self.notify()

    def _start(self, command: str, channel: Channel, mark: str) -> Pending[Any]:
        return self._bridge.start(
            self._connection.create_session(
                lambda: channel,
                command,
                env={MARK_VARIABLE: mark} if mark else {},
                send_env=None,
                request_pty=False,
                encoding=None,
                window=CHANNEL_WINDOW,
            )
        )

    def notify(self) -> None:
        """Something about it changed."""
        self._changed.set()
        self._changed = trio.Event()

    # -- ending commands --------------------------------------------------------------------

    async def end(self, opening: Opening) -> bool:
        """End a command that is no longer wanted; whether it is known to be gone.

        Takes `kill_grace` and a few seconds at most. To be called in a shielded scope.
        """
        channel = opening.channel
        opening.unwanted = True
        self.notify()
        with trio.move_on_after(self._limits.probe_timeout):
            await opening.pending.wait()
        if not opening.pending.done:
            self.abort()
            await opening.pending.wait()  # bounded: its connection is gone
        if not opening.asked:
            return True
        with self._bridge.entered():
            channel.discard()
            channel.ask_to_end()
        with trio.move_on_after(NOTICE_TIME):
            await channel.ended.wait()
        if not channel.ended.is_set():
            await self._run_killer(opening, opening.mark)
        if not channel.ended.is_set():
            # The mark did not arrive. All commands of the connection can be ended together, when
            # none of them is wanted any more, and no new one is to come between.
            self.retired = True
            if self._all_unwanted:
                await self._run_killer(opening, None)
        return channel.ended.is_set() and not self.closed.is_set()

    async def end_with_all(self, opening: Opening) -> None:
        """End what `end` could not, as soon as the connection has no command that is wanted."""
        while not (self._all_unwanted or opening.channel.ended.is_set()):
            await self._changed.wait()  # at most the longest of their times
        await self._run_killer(opening, None)
        with self._bridge.entered():
            opening.channel.close()

    @property
    def _all_unwanted(self) -> bool:
        return all(opening.unwanted for opening in self.running)

    async def _run_killer(self, opening: Opening, mark: str | None) -> None:
        most = self._limits.kill_grace + self._limits.probe_timeout
        with trio.move_on_after(most):
            async with self._killing:
                if opening.channel.ended.is_set():
                    return
                killer = Channel(lambda _stream, _data: True)
                command = kill_command(mark, self._limits.kill_grace)
                pending = self._start(command, killer, "")
                try:
                    with contextlib.suppress(asyncssh.Error, OSError):
                        await pending.wait()
                        pending.result()
                        await killer.ended.wait()
                        with trio.move_on_after(NOTICE_TIME * 5):
                            await opening.channel.ended.wait()
                finally:
                    with self._bridge.entered():
                        killer.close()
                    if not pending.done:
                        self.abort()  # it does not even open a channel any more

    # -- the end ----------------------------------------------------------------------------

    def abort(self) -> None:
        """Cut the connection, and with it every channel."""
        self.retired = True
        if self._connection is not None and not self.closed.is_set():
            with self._bridge.entered():
                self._connection.abort()

    async def close(self) -> None:
        """Close it in good order, within CLOSE_TIME."""
        self.retired = True
        if self._connection is None or self.closed.is_set():
            return
        with trio.CancelScope(shield=True):
            with self._bridge.entered():
                self._connection.close()
            with trio.move_on_after(CLOSE_TIME):
                await self._bridge.call(self._connection.wait_closed())
            if not self.closed.is_set():
                self.abort()
                with trio.move_on_after(CLOSE_TIME):
                    await self.closed.wait()

    @property
    def channel_count(self) -> int:
        """Channels that are open, as the library counts them."""
        return len(self._connection._channels)  # noqa: SLF001  it tells nobody otherwise


class Opening:
    """One command's place on a connection."""

    def __init__(
        self, channel: Channel, pending: Pending[Any], mark: str, *, was_idle: bool
    ) -> None:
        self.channel = channel
        self.pending = pending
        """Over when the server runs the command, or does not."""
        self.mark = mark
        self.was_idle = was_idle
        """Whether nothing else ran there, so that silence means a dead connection."""
        self.refused = False
        """Whether it came to nothing."""
        self.unwanted = False
        """Whether it is being ended."""
        self.answered = channel.confirmed
        """The server took the channel, or it is known that it will not."""
        pending.when_done(self._over)
        self._was_confirmed = False

    def _over(self) -> None:
        self._was_confirmed = self.channel.confirmed.is_set()
        self.answered.set()

    @property
    def asked(self) -> bool:
        """Whether the server may have been asked to run the command."""
        return self._was_confirmed if self.pending.done else self.channel.confirmed.is_set()


@dataclass(frozen=True, slots=True)
class Login:
    """What all connections of a pool have in common."""

    limits: ExecLimits
    host_keys: HostKeys
    ssh_agent: Path | None = None


async def connect(
    bridge: Bridge, key: LoginKey, request: CommandRequest, login: Login
) -> Connection:
    """A logged-in connection within `login_timeout`. Raises SshFailure."""
    seconds = login.limits.login_timeout
    try:
        with trio.fail_after(seconds):
            options = await login_options(request)
            check = login.host_keys.check(request.host, request.port)
            sock = await _dial(key, request)
            return await _log_in(bridge, key, request, login, options, check, sock)
    except trio.TooSlowError:
        raise SshFailure(
            "timeout", f"{key} did not let {request.username} log in within {seconds:g} s"
        ) from None


async def _dial(key: LoginKey, request: CommandRequest) -> socket.socket:
    try:
        stream = await trio.open_tcp_stream(request.host, request.port)
    except (OSError, UnicodeError) as exc:
        if _is_refusal(exc):
            raise SshFailure(
                "refused", f"{key} refused the connection: check that an SSH server listens there"
            ) from exc
        raise SshFailure(
            "unreachable", f"{key} cannot be reached: {explain_os_error(exc)}"
        ) from exc
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


def _is_refusal(exc: BaseException) -> bool:
    """Whether the host is there and nothing listens; Trio groups one error per address."""
    if isinstance(exc, BaseExceptionGroup):
        return any(_is_refusal(inner) for inner in exc.exceptions)
    if isinstance(exc, OSError) and exc.errno == errno.ECONNREFUSED:
        return True
    return exc.__cause__ is not None and _is_refusal(exc.__cause__)


class _Client(asyncssh.SSHClient):
    """Hears what becomes of a connection."""

    def __init__(self, check: HostKeyCheck, closed: trio.Event) -> None:
        self._check = check
        self._closed = closed
        self.has_socket = False

    def connection_made(self, _conn: Any) -> None:
        self.has_socket = True

    def connection_lost(self, _exc: Exception | None) -> None:
        self._closed.set()

    def validate_host_public_key(self, _host: str, _addr: str, _port: int, key: Any) -> bool:
        return self._check.accept(key)


async def _log_in(
    bridge: Bridge,
    key: LoginKey,
    request: CommandRequest,
    login: Login,
    options: dict[str, Any],
    check: HostKeyCheck,
    sock: socket.socket,
) -> Connection:
    connection = Connection(bridge, key, login.limits)
    client = _Client(check, connection.closed)
    agent: Any = None
    try:
        address = str(sock.getpeername()[0]).partition("%")[0]
        if request.private_key is None and request.password is None and login.ssh_agent:
            agent, options["client_keys"] = await _agent_keys(bridge, login.ssh_agent)
        made = await bridge.call(
            _connect(
                request.host,
                request.port,
                tunnel=Way(sock),
                config=None,
                client_factory=lambda: client,
                keepalive_interval=login.limits.ssh_keepalive,
                keepalive_count_max=KEEPALIVES,
                login_timeout=0,  # counted by who called
                encryption_algs=FIRST_CIPHERS,
                **check.options(address),
                **options,
            )
        )
    except (asyncssh.Error, OSError, ValueError) as exc:
        if check.must_pin and isinstance(exc, asyncssh.PermissionDenied):
            await _pin(check, login.host_keys)  # it proved who it is before it refused
        raise check.problem or explain_failure(exc, key, request) from exc
    finally:
        if not client.has_socket:
            sock.close()
        if agent is not None:
            with bridge.entered():
                agent.close()
    connection.attach(made)
    if check.must_pin:
        try:
            await _pin(check, login.host_keys)
        except BaseException:
            connection.abort()
            raise
    return connection


async def _connect(host: str, port: int, **options: Any) -> Any:
    return await asyncssh.connect(host, port, **options)


async def _pin(check: HostKeyCheck, host_keys: HostKeys) -> None:
    check.pin()
    await trio.to_thread.run_sync(host_keys.save)


async def _agent_keys(bridge: Bridge, path: Path) -> tuple[Any, list[Any]]:
    try:
        agent = await bridge.call(_open_agent(str(path)))
        keys = await bridge.call(agent.get_keys())
    except (OSError, ValueError, asyncssh.Error) as exc:
        raise SshFailure(
            "auth-failed", f"the ssh-agent at {path} (exec.ssh_agent) gave no keys: {exc}"
        ) from exc
    if not keys:
        with bridge.entered():
            agent.close()
        raise SshFailure("auth-failed", f"the ssh-agent at {path} (exec.ssh_agent) holds no keys")
    return agent, list(keys)


async def _open_agent(path: str) -> Any:
    return await asyncssh.connect_agent(path)


def explain_failure(exc: Exception, key: LoginKey, request: CommandRequest) -> SshFailure:
    """What a connection or channel failed with, in words for who asked for the command."""
    match exc:
        case asyncssh.PermissionDenied():
            return SshFailure("auth-failed", _denied(key, request))
        case asyncssh.HostKeyNotVerifiable():
            return SshFailure("host-key-unknown", f"the host key of {key}: {exc}")
        case asyncssh.ChannelOpenError():
            return SshFailure("failed", f"{key} did not run the command: {exc.reason}")
        case asyncssh.ConnectionLost() | OSError():
            return SshFailure("failed", f"{key} closed the connection: {_words(exc)}")
        case _:
            return SshFailure("failed", f"{key} and this side found no way to talk: {_words(exc)}")


def _words(exc: Exception) -> str:
    text = getattr(exc, "reason", None) or str(exc) or type(exc).__name__
    return str(text)[:300]


def _denied(key: LoginKey, request: CommandRequest) -> str:
    offered = []
    if request.private_key is not None:
        offered.append("the privateKey")
    if request.password is not None:
        offered.append("the password")
    what = " and ".join(offered) or "what could be offered without a password or privateKey"
    return f'{key} did not accept {what} for the user "{request.username}"'
