"""Terminals in browsers: shells through tunnelmux-gateway, which outlive a lost connection.

A terminal belongs to a task here, not to the WebSocket that shows it. Output is kept until the
browser acknowledges it, so that a browser that comes back gets all that it missed. When the browser
takes nothing, the shell waits, as on any slow terminal.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import trio

from tunnelmux.api.problems import Refused
from tunnelmux.config.api import GatewayEndpoint
from tunnelmux.errors import ConfigError
from tunnelmux.limits import most_of_one_tenant
from tunnelmux.observability import get_logger

if TYPE_CHECKING:
    from tunnelmux.ssh.shell import Shell, ShellLogin

__all__ = ["Terminal", "Terminals", "read_gateway_key"]

_log = get_logger("api.terminals")

_KEPT = 262_144
# Bytes of output that may wait for the browser: many screens of a few hundred lines.

_RESUME_FOR = 120.0
# Seconds for which a terminal waits for its browser: a phone that changes networks, a laptop that
# is carried to another room.

_INPUT = 64
# Pieces of input that may wait, each at most one message of the browser.


class Terminal:
    """One shell, shown by one browser at a time, or waiting for it."""

    def __init__(self, owner: str, tenant: str, device_id: str) -> None:
        self.owner = owner
        """The user who opened it: no other user may see it."""
        self.tenant = tenant
        """The owner's tenant; empty for the default one."""
        self.device_id = device_id
        self.token = secrets.token_urlsafe(24)
        """The token with which a browser that lost it comes back."""
        self.is_over = trio.Event()
        self.story = ""
        """How it ended, as a sentence; empty while it runs."""
        self._keys, self._typed = trio.open_memory_channel[bytes](_INPUT)
        self.size = (80, 24)
        self._kept = bytearray()
        self._seen = 0
        self._viewer: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._shell: Shell | None = None

    # -- for the browser's side -------------------------------------------------------------------

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[trio.CancelScope]:
        """Show it for the length of the block; the browser that showed it before is cancelled."""
        if self._viewer is not None:
            self._viewer.cancel()
        with trio.CancelScope() as scope:
            self._viewer = scope
            self._notify()
            try:
                yield scope
            finally:
                if self._viewer is scope:
                    self._viewer = None
                    self._notify()

    async def output_after(self, place: int) -> tuple[bytes, int]:
        """The output after this many bytes, and the position after it; empty at the end."""
        while True:
            data = bytes(self._kept[max(0, place - self._seen) :])
            if data or self.is_over.is_set():
                return data, self._seen + len(self._kept)
            changed = self._changed
            await changed.wait()

    def seen(self, place: int) -> None:
        """Drop the output up to this position, which the browser has shown. A position that it
        cannot have reached is ignored."""
        if self._seen < place <= self._seen + len(self._kept):
            del self._kept[: place - self._seen]
            self._seen = place
            self._notify()

    def has(self, place: int) -> bool:
        """Whether all output after this position is still kept."""
        return self._seen <= place <= self._seen + len(self._kept)

    async def type(self, data: bytes) -> None:
        """Send this as typed input; waits while the shell takes no more."""
        if not self.is_over.is_set():
            await self._keys.send(data)

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size."""
        self.size = (columns, rows)
        if self._shell is not None:
            self._shell.resize(columns, rows)

    # -- for its task -----------------------------------------------------------------------------

    async def run(self, shell: Shell) -> None:
        """Run until the shell ends, or no browser has come back in time."""
        self._shell = shell
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._type, shell)
            nursery.start_soon(self._give_up, nursery.cancel_scope)
            while data := await shell.receive():
                self._kept += data
                self._notify()
                while len(self._kept) >= _KEPT:
                    await self._changed.wait()
            self.story = shell.story
            nursery.cancel_scope.cancel()

    def end(self, story: str) -> None:
        """End it with this sentence as the reason."""
        self.story = self.story or story
        self._shell = None
        self.is_over.set()
        self._notify()

    async def _type(self, shell: Shell) -> NoReturn:
        while True:
            await shell.send(await self._typed.receive())

    async def _give_up(self, scope: trio.CancelScope) -> None:
        while True:
            while self._viewer is not None:
                await self._changed.wait()
            with trio.move_on_after(_RESUME_FOR):
                while self._viewer is None:
                    await self._changed.wait()
            if self._viewer is None:
                self.story = "its browser did not come back"
                scope.cancel()
                return

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Terminals:
    """All terminals of this process. `run` owns their tasks."""

    def __init__(self, gateway: GatewayEndpoint, limit: int, per_person: int) -> None:
        self.gateway = gateway
        self._key = read_gateway_key(gateway)
        self._limit = limit
        self._per_person = per_person
        self._per_tenant = most_of_one_tenant(limit)
        self._open: dict[str, Terminal] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def problem(self) -> str:
        """Why there can be no terminals; empty if there can."""
        if self._key is None:
            return "No gateway is known: [gateway] address and host_key_file of api.toml name it."
        return ""

    async def run(self) -> NoReturn:
        """Own the terminals' tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()
        raise AssertionError("unreachable")

    def open(
        self, owner: str, tenant: str, device_id: str, username: str, size: tuple[int, int]
    ) -> Terminal:
        """A new terminal; `tenant` is the owner's, empty for the default one, and `username` the
        user name for the gateway. Raises Refused."""
        where = self.gateway.inner_address
        if self._key is None or where is None:
            raise Refused(409, "no_gateway", self.problem)
        message = self._full(owner, tenant)
        if message or self._nursery is None:
            raise Refused(503, "too_many_terminals", message, headers={"retry-after": "30"})
        terminal = Terminal(owner, tenant, device_id)
        terminal.size = size
        self._open[terminal.token] = terminal
        self._nursery.start_soon(self._run, terminal, where.host, where.port, username)
        return terminal

    def _full(self, owner: str, tenant: str) -> str:
        """Why this user may have no more; empty otherwise."""
        if sum(one.owner == owner for one in self._open.values()) >= self._per_person:
            return (
                f"You have {self._per_person} terminals open already: close some "
                "(limits.max_terminals_per_person)."
            )
        of_tenant = sum(one.tenant == tenant for one in self._open.values())
        if tenant and of_tenant >= self._per_tenant:
            return (
                f"Your tenant has {self._per_tenant} terminals open already, three quarters of "
                "limits.max_terminals: close some."
            )
        if len(self._open) >= self._limit or self._nursery is None:
            return "As many terminals are open as this server allows (limits.max_terminals)."
        return ""

    def find(self, token: str, owner: str) -> Terminal | None:
        """This user's terminal with this token, while it runs."""
        found = self._open.get(token)
        if found is None or not hmac.compare_digest(found.owner, owner):
            return None
        return found

    async def _run(self, terminal: Terminal, host: str, port: int, username: str) -> None:
        # Imported here, when a terminal is opened: asyncssh takes a third of a second to import.
        from tunnelmux.ssh.failure import SshFailure
        from tunnelmux.ssh.shell import ShellLogin, open_shell

        assert self._key is not None
        login: ShellLogin = ShellLogin(host, port, username, self._key, *terminal.size)
        try:
            async with open_shell(login) as shell:
                await terminal.run(shell)
        except SshFailure as exc:
            terminal.end(str(exc))
        except Exception:  # noqa: BLE001  one terminal's failure is its own
            _log.exception("unhandled error in terminal", device=terminal.device_id)
        finally:
            terminal.end("the terminal failed: the server's log says how")
            del self._open[terminal.token]


def read_gateway_key(gateway: GatewayEndpoint) -> str | None:
    """The line in `host_key_file`; None without such a setting. Raises ConfigError."""
    path = gateway.host_key_file
    if path is None:
        return None
    try:
        line = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        cause = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(
            f"gateway.host_key_file: {path} cannot be read ({cause}): copy the gateway's "
            "ssh_host_ed25519_key.pub there"
        ) from exc
    if not line.startswith(("ssh-", "ecdsa-", "sk-")) or "\n" in line:
        raise ConfigError(
            f"gateway.host_key_file: {path} holds no public key: copy the gateway's "
            "ssh_host_ed25519_key.pub there"
        )
    return line
