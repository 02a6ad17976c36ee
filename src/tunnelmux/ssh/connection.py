"""One logged-in SSH connection: how it is made, and the commands on it."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import asyncssh
import trio

from tunnelmux.commands import CommandRequest, StreamName
from tunnelmux.limits import ExecLimits
from tunnelmux.ssh.algorithms import Algorithms, explain_no_algorithm
from tunnelmux.ssh.back_pressure import BackPressure
from tunnelmux.ssh.bridge import Bridge, Pending
from tunnelmux.ssh.channel import Channel
from tunnelmux.ssh.credentials import LoginKey, PasswordOnce, login_options
from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.gathering import Way
from tunnelmux.ssh.host_keys import HostKeyCheck, HostKeys
from tunnelmux.ssh.kill import MARK_VARIABLE, Killing, kill_command, new_mark, read_killing
from tunnelmux.ssh.session_channel import channel_count
from tunnelmux.transports.tcp import explain_os_error

__all__ = ["Connection", "Ending", "Login", "Opening", "connect"]

CHANNEL_WINDOW = 262_144
"""Bytes a server may send on one channel before we have taken them. A command takes at most twice
that: here, and in the buffer of its reader. Allows 5 MB/s at a round trip of 50 ms."""

_UNSENT = 4_194_304
# Bytes that a server may leave unread: what its windows usually take of the input of commands.

CLOSE_TIME = 2.0
"""Seconds for closing a connection in good order; then it is cut. That takes a round trip and the
end of a process."""

KEEPALIVES = 3
"""Unanswered keepalives after which a connection is closed."""

NOTICE_TIME = 0.5
"""Seconds for a channel to end once its command is gone: a round trip and the end of a process."""

_KILLER_OUTPUT = 256
# Bytes that are kept of what the killing command prints: two numbers.

_KILLER_PAUSES = (0.0, 0.1, 0.2, 0.4)
# Seconds before each attempt to get a channel for it.

_ONE_AT_A_TIME = "dropbear"
# This server has all commands of a connection in one process group, and takes no variables: with
# two commands, we could not end one of them only.


Ending = Literal["gone", "no-channel", "unknown"]
"""What is known about a command after the attempt to end it: it is gone, the server has no channel
left on which to end it, or it may still run."""


def _is_done(killing: Killing | Literal["no-channel"] | None) -> bool:
    return isinstance(killing, Killing) and killing.is_done


class Connection:
    """A connection that commands are run on. Made by `connect`; its pool owns it."""

    def __init__(self, bridge: Bridge, key: LoginKey, limits: ExecLimits) -> None:
        self.key = key
        self.capacity = limits.sessions_per_connection
        """Commands at once; less when the server allows fewer."""
        self.running: set[Opening] = set()
        """Its commands, also those that are being ended."""
        self.retired = False
        """Whether it takes no new commands, and is closed after the last one."""
        self.idle_since = trio.current_time()
        self.closed = trio.Event()
        """Set when it is over, whichever side ended it."""
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
        """Take the library's connection, once it is logged in."""
        self._connection = connection
        if _ONE_AT_A_TIME in str(connection.get_extra_info("server_version", "")).lower():
            self.capacity = 1

    def open(self, request: CommandRequest, channel: Channel) -> Opening:
        """Begin a command. It takes its place at once; `release` gives the place back."""
        mark = new_mark()
        pending = self._start(request.command, channel, mark)
        opening = Opening(channel, pending, mark, beside=len(self.running))
        self.running.add(opening)
        return opening

    def release(self, opening: Opening) -> None:
        """Give the place of a command back that is over, or was given up."""
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
        """Wake the tasks that wait for a change of this connection."""
        self._changed.set()
        self._changed = trio.Event()

    # -- ending commands --------------------------------------------------------------------

    async def end(self, opening: Opening) -> Ending:
        """End a command that is no longer wanted.

        Takes `kill_grace` and a few seconds at most. Call it in a shielded scope.
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
            return "gone"
        with self._bridge.entered():
            channel.discard()
        killing = await self.run_killer(opening.mark)
        if killing == "no-channel":
            return "no-channel"
        if not _is_done(killing) and not channel.ended.is_set() and self._all_unwanted:
            # The server did not pass the mark on. All commands of the connection can be ended
            # together, when none of them is wanted any more.
            self.retired = True  # so that no new one begins meanwhile
            killing = await self.run_killer(None)
        return await self.conclude(opening, killing)

    async def conclude(
        self, opening: Opening, killing: Killing | Literal["no-channel"] | None
    ) -> Ending:
        """What is known about a command after an attempt to end it. When it is gone, its channel is
        closed as well; else the connection takes no new command.
        """
        channel = opening.channel
        if _is_done(killing):
            with trio.move_on_after(NOTICE_TIME):
                await channel.ended.wait()
            with self._bridge.entered():
                channel.close()  # a process that it left behind may hold its output open
            return "gone"
        if channel.exit_code is not None and not (isinstance(killing, Killing) and killing.left):
            with self._bridge.entered():
                channel.close()
            return "gone"  # it has ended meanwhile
        self.retired = True
        # SSH's own signal message; servers may ignore it, or give it to the shell only.
        with self._bridge.entered():
            channel.ask_to_end()
        with trio.move_on_after(NOTICE_TIME):
            await channel.ended.wait()
        return "unknown"

    async def end_with_all(self, opening: Opening) -> None:
        """End a command that `end` could not, once no command of the connection is wanted."""
        while not (self._all_unwanted or opening.channel.ended.is_set()):
            await self._changed.wait()  # at most as long as the longest of them may take
        await self.run_killer(None)
        with self._bridge.entered():
            opening.channel.close()

    @property
    def _all_unwanted(self) -> bool:
        return all(opening.unwanted for opening in self.running)

    async def run_killer(
        self, mark: str | None, *, anywhere: bool = False
    ) -> Killing | Literal["no-channel"] | None:
        """End the marked command, or without a mark all of this connection.

        With `anywhere` it is a command of another connection. Returns the result, "no-channel" when
        the server has no channel left for that, and None when nothing is known.
        """
        output = bytearray()

        def keep(_stream: StreamName, data: bytes) -> bool:
            output.extend(data[: _KILLER_OUTPUT - len(output)])
            return True

        command = kill_command(mark, self._limits.kill_grace, anywhere=anywhere)
        outcome = None
        with trio.move_on_after(self._limits.kill_grace + self._limits.probe_timeout):
            async with self._killing:
                # The server may not have cleared the channel of a first attempt away yet.
                for pause in _KILLER_PAUSES if mark is None else (0.0,):
                    await trio.sleep(pause)
                    outcome = await self._run_beside(command, Channel(keep))
                    if outcome != "no-channel":
                        break
        return outcome if outcome == "no-channel" else read_killing(bytes(output))

    async def _run_beside(self, command: str, channel: Channel) -> Literal["no-channel"] | None:
        """Run one command to its end, without taking one of the places for commands."""
        pending = self._start(command, channel, "")
        try:
            await pending.wait()
            pending.result()
            await channel.ended.wait()
        except asyncssh.ChannelOpenError:
            return None if self.closed.is_set() else "no-channel"
        except Exception:  # noqa: BLE001  after any error, the result is unknown
            return None
        finally:
            with self._bridge.entered():
                channel.close()
            if not pending.done:
                self.abort()  # the server does not even open a channel any more
        return None

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
        """How many channels are open, as the library counts them."""
        return channel_count(self._connection)


class Opening:
    """One command's place on a connection."""

    def __init__(self, channel: Channel, pending: Pending[Any], mark: str, *, beside: int) -> None:
        self.channel = channel
        self.pending = pending
        """Done when the server has started the command, or has refused to."""
        self.mark = mark
        self.beside = beside
        """How many other commands ran there. When there were none, silence means a dead
        connection."""
        self.refused = False
        """Whether the command was not started here."""
        self.unwanted = False
        """Whether it is being ended."""
        self.answered = channel.confirmed
        """Set when the server has opened the channel, or when it is known that it will not."""
        pending.when_done(self._over)
        self._was_confirmed = False

    def _over(self) -> None:
        self._was_confirmed = self.channel.confirmed.is_set()
        self.answered.set()

    @property
    def asked(self) -> bool:
        """Whether the server may have got the request to run the command."""
        return self._was_confirmed if self.pending.done else self.channel.confirmed.is_set()


@dataclass(frozen=True, slots=True)
class Login:
    """The settings that all connections of a pool share."""

    limits: ExecLimits
    host_keys: HostKeys
    ssh_agent: Path | None = None
    algorithms: tuple[str, ...] = ()
    """Old algorithms that may be used as well, out of OLD_ALGORITHMS."""


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
    """Whether the host answered that nothing listens there; Trio groups one error per address."""
    if isinstance(exc, BaseExceptionGroup):
        return any(_is_refusal(inner) for inner in exc.exceptions)
    if isinstance(exc, OSError) and exc.errno == errno.ECONNREFUSED:
        return True
    return exc.__cause__ is not None and _is_refusal(exc.__cause__)


class _Client(asyncssh.SSHClient):
    """Gets asyncssh's callbacks about one connection."""

    def __init__(self, check: HostKeyCheck, password: PasswordOnce, closed: trio.Event) -> None:
        self._check = check
        self._password = password
        self._closed = closed
        self._connection: Any = None

    @property
    def has_socket(self) -> bool:
        return self._connection is not None

    @property
    def kexinit(self) -> bytes:
        """The server's SSH_MSG_KEXINIT, which the library keeps for its signature; empty if
        none."""
        return bytes(getattr(self._connection, "_server_kexinit", b""))

    def connection_made(self, conn: Any) -> None:
        self._connection = conn
        BackPressure(conn, asyncio.get_running_loop(), _UNSENT)

    def auth_completed(self) -> None:
        self._password.take()  # not needed any more, so not kept

    def password_auth_requested(self) -> str | None:
        return self._password.take()

    def kbdint_auth_requested(self) -> str | None:
        return "" if self._password.is_there else None

    def kbdint_challenge_received(
        self, _name: str, _instructions: str, _lang: str, prompts: Any
    ) -> list[str] | None:
        return self._password.answer(prompts)

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
    client = _Client(check, PasswordOnce(request), connection.closed)
    algorithms = Algorithms(login.algorithms)
    keys: dict[str, Any] = {}
    agent: Any = None
    try:
        address = str(sock.getpeername()[0]).partition("%")[0]
        if request.private_key is None and request.password is None and login.ssh_agent:
            agent, options["client_keys"] = await _agent_keys(bridge, login.ssh_agent)
        keys = check.options(address)
        made = await bridge.call(
            _connect(
                request.host,
                request.port,
                tunnel=Way(sock),
                config=None,
                client_factory=lambda: client,
                keepalive_interval=login.limits.ssh_keepalive,
                keepalive_count_max=KEEPALIVES,
                login_timeout=0,  # the caller has a deadline
                **algorithms.options(),
                **keys,
                **options,
            )
        )
    except SshFailure:
        raise
    except Exception as exc:  # no error that a server can cause in the library may end the pool
        if check.must_pin and isinstance(exc, asyncssh.PermissionDenied):
            await _pin(check, login.host_keys)  # it proved that it has the key before it refused
        offered = algorithms.offered(keys.get("server_host_key_algs"))
        mismatch = explain_no_algorithm(client.kexinit, offered, str(key))
        if check.problem is None and mismatch is not None:
            raise SshFailure("failed", mismatch) from exc
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
    """The error of a connection or channel as a sentence for the caller of the command."""
    match exc:
        case asyncssh.PermissionDenied():
            return SshFailure("auth-failed", _denied(key, request))
        case asyncssh.HostKeyNotVerifiable():
            return SshFailure("host-key-unknown", f"the host key of {key}: {exc}")
        case asyncssh.ChannelOpenError():
            return SshFailure("failed", f"{key} did not run the command: {_words(exc)}")
        case asyncssh.ConnectionLost() | OSError():
            return SshFailure("failed", f"{key} closed the connection: {_words(exc)}")
        case _:
            return SshFailure("failed", f"the SSH connection to {key} failed: {_words(exc)}")


def _words(exc: Exception) -> str:
    text = getattr(exc, "reason", None) or str(exc) or type(exc).__name__
    return str(text)[:300]


def _denied(key: LoginKey, request: CommandRequest) -> str:
    offered = []
    if request.private_key is not None:
        offered.append("the privateKey")
    if request.password is not None:
        offered.append("the password")
    if not offered:
        return (
            f'{key} did not let the user "{request.username}" log in: the command came without a '
            "password or privateKey"
        )
    what = " and ".join(offered)
    return f'{key} did not accept {what} for the user "{request.username}"'
