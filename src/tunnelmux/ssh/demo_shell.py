"""The SSH server of the demo's devices: a shell that knows a few commands and no more.

Everybody on this machine can sign in to the demo, so this must not be a real shell of its user.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncssh

from tunnelmux.ssh.bridge import open_bridge

__all__ = ["COMMANDS", "new_key", "serve_demo_shell"]

COMMANDS = {
    "date": ("date",),
    "df": ("df", "-h"),
    "free": ("free", "-h"),
    "id": ("id",),
    "uname": ("uname", "-a"),
    "uptime": ("uptime",),
}
"""Each command, and the program that it runs. They only read, and take no arguments."""

_PATIENCE = 10
# Seconds for one of them: df waits for a network drive that does not answer.

_HELP = f"Commands here: {', '.join(COMMANDS)}, help, exit.\n"

_NOT_FOUND = 127  # as a shell has it


def new_key() -> tuple[str, str]:
    """A key pair for one run of the demo: the private half as OpenSSH has it, and its `.pub`."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode("ascii"), key.export_public_key().decode("ascii")


@asynccontextmanager
async def serve_demo_shell(name: str, trusted: Sequence[str]) -> AsyncIterator[int]:
    """Run the server on a loopback port, which is yielded, for the length of the block.

    `trusted` are lines of an authorized_keys file. `name` stands in the prompt. The block must not
    raise.
    """
    shell = _DemoShell(name)
    keys = asyncssh.import_authorized_keys("".join(f"{line.strip()}\n" for line in trusted))

    async def listen() -> Any:
        return await asyncssh.create_server(
            shell.connected,
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=keys,
            process_factory=shell.run,
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
        )

    async with open_bridge() as bridge:
        acceptor = await bridge.call(listen())
        try:
            yield acceptor.get_port()
        finally:
            with bridge.entered():
                acceptor.close()
                for connection in list(shell.connections):
                    connection.abort()


class _DemoShell:
    """The shell behind all connections."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.connections: set[Any] = set()

    def connected(self) -> asyncssh.SSHServer:
        return _Connection(self.connections)

    async def run(self, process: asyncssh.SSHServerProcess[str]) -> None:
        """One command, or a prompt until `exit`."""
        if process.command is not None:
            process.exit(await self._do(process, process.command))
            return
        process.stdout.write(f'This is the demo\'s device "{self._name}". {_HELP}')
        status = 0
        while (line := await self._ask(process)) is not None:
            words = line.strip()
            if words == "exit":
                break
            if words:
                status = await self._do(process, words)
        process.exit(status)

    async def _ask(self, process: asyncssh.SSHServerProcess[str]) -> str | None:
        """The next line that is typed; None at the end."""
        process.stdout.write(f"{self._name}$ ")
        while True:
            try:
                line = await process.stdin.readline()
            except asyncssh.TerminalSizeChanged:
                continue
            except (asyncssh.BreakReceived, asyncssh.SignalReceived):
                return ""
            return line or None

    async def _do(self, process: asyncssh.SSHServerProcess[str], words: str) -> int:
        if words == "help":
            process.stdout.write(_HELP)
            return 0
        command = COMMANDS.get(words)
        if command is None:
            process.stderr.write(f"{words}: there is no such command. {_HELP}")
            return _NOT_FOUND
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(None, _run, command)
        except (OSError, subprocess.TimeoutExpired) as exc:
            process.stderr.write(f"{words}: {exc}\n")
            return _NOT_FOUND
        process.stdout.write(done.stdout)
        process.stderr.write(done.stderr)
        return done.returncode


class _Connection(asyncssh.SSHServer):
    def __init__(self, connections: set[Any]) -> None:
        self._connections = connections
        self._connection: Any = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._connections.discard(self._connection)


def _run(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  one of COMMANDS
        command, capture_output=True, text=True, timeout=_PATIENCE, check=False, errors="replace"
    )
