"""The agent's own shell: its server is imported and started when the first person comes."""

from __future__ import annotations

import errno
import importlib
import os
import pwd
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tunnelmux.agent.host_keys import SSH_SERVICE
from tunnelmux.config import AgentConfig, InvalidSetting
from tunnelmux.config.agent import ServiceConfig
from tunnelmux.config.private_file import write_private
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger

if TYPE_CHECKING:  # asyncssh takes longer to import than the rest of the agent
    from tunnelmux.ssh.device_shell import DeviceShell, Note, ShellRules

__all__ = ["OwnShell", "account_of"]

_log = get_logger("agent.shell")


def account_of(config: AgentConfig) -> pwd.struct_passwd:
    """The account that sessions run as. Raises ConfigError."""
    try:
        return config.shell.find_account()
    except InvalidSetting as exc:
        raise ConfigError(f"shell.{exc.key}: {exc.problem}") from exc


class OwnShell:
    """Serves the connections to the shell while `run` runs. Raises ConfigError where its settings
    cannot be used here."""

    def __init__(self, config: AgentConfig, note: Note) -> None:
        self._note = note
        self._waiting: list[socket.socket] = []
        self._news = trio.Event()
        self._open = 0
        self.configure(config)

    def configure(self, config: AgentConfig) -> None:
        """Serve new connections with these settings; sessions go on, unless the shell is off now.
        Raises ConfigError, with nothing changed."""
        if config.shell.enabled:
            self._account = account_of(config)
        self._config = config
        self._news.set()

    async def open(self, _service: ServiceConfig) -> trio.abc.HalfCloseableStream:
        """A connection to the shell. Raises OSError where there are too many."""
        most = self._config.shell.limits.max_connections
        if not self._config.shell.enabled:
            raise OSError(errno.ENOENT, "its shell is off (shell.enabled)")
        if self._open >= most:
            why = f"{most} connections to its shell are open (shell.max_connections)"
            raise OSError(errno.EBUSY, why)
        near, far = socket.socketpair()
        for sock in (near, far):
            sock.setblocking(False)
        self._open += 1
        self._waiting.append(far)
        self._news.set()
        return trio.SocketStream(trio.socket.from_stdlib_socket(near))

    async def run(self) -> None:
        """Serve connections until cancelled."""
        try:
            await self._serve_all()
        finally:
            self._turn_away()

    async def _serve_all(self) -> None:
        while not self._waiting:
            await self._next()
        module, host_key = await trio.to_thread.run_sync(self._load)
        while module is None:
            self._turn_away()
            await self._next()
        async with module.open_device_shell(self._note) as shell, trio.open_nursery() as nursery:
            while True:
                if not self._config.shell.enabled:
                    shell.end_all()
                while self._waiting:
                    rules = self._rules(module, host_key)
                    nursery.start_soon(self._serve, shell, self._waiting.pop(0), rules)
                await self._next()

    def _load(self) -> tuple[Any, str]:
        """The server's module and the host key; None where one of them cannot be used."""
        try:
            module = importlib.import_module("tunnelmux.ssh.device_shell")
            return module, self._host_key(module)
        except Exception as exc:  # noqa: BLE001  any failure of its libraries: the rest works
            _log.error("shell unavailable", cause=str(exc), effect="services can still be reached")
            return None, ""

    async def _next(self) -> None:
        # No deadline: people come when they like.
        await self._news.wait()
        self._news = trio.Event()

    async def _serve(self, shell: DeviceShell, sock: socket.socket, rules: ShellRules) -> None:
        try:
            await shell.serve(sock, rules)
        finally:
            self._open -= 1

    def _turn_away(self) -> None:
        for sock in self._waiting:
            sock.close()
            self._open -= 1
        self._waiting.clear()

    def _rules(self, module: Any, host_key: str) -> ShellRules:
        shell = self._config.shell
        assert shell.authorized_keys is not None  # checked when the configuration was read
        rules: ShellRules = module.ShellRules(
            self._account,
            tuple(shell.command),
            shell.authorized_keys,
            host_key,
            shell.limits,
        )
        return rules

    @property
    def is_ssh_service(self) -> bool:
        """Whether it is what gateways reach as the device's SSH server."""
        return self._config.shell.enabled and self._config.shell.service == SSH_SERVICE

    def host_keys(self) -> list[str]:
        """The key by which gateways know this device, as `TYPE BASE64`; none before the first
        person has come."""
        try:
            return [_public(self._key_file).read_text("ascii").strip()]
        except (OSError, ConfigError):
            return []

    @property
    def _key_file(self) -> Path:
        device = self._config.device
        folder = device.state_dir or default_state_dir("tunnelmux-agent", os.environ)
        return folder / f"{device.name}.shell_key"

    def _host_key(self, module: Any) -> str:
        path = self._key_file
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            private, public = module.new_host_key()
            write_private(_public(path), public.encode("ascii"))
            write_private(path, private.encode("ascii"))
        return path.read_text("ascii")


def _public(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")
