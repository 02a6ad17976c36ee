"""An SSH server in this process, for what Debian's sshd does only with accounts of the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh

from tunnelmux.ssh.bridge import open_bridge

__all__ = ["PasswordServer", "password_server"]

PASSWORD = "correct horse"


class PasswordServer:
    """Takes the user `alice` with PASSWORD, and answers each command with its text."""

    def __init__(self, *, keyboard: bool, key_first: bytes | None) -> None:
        self.port = 0
        self.logins = 0
        """Connections that came as far as a user name."""
        self._keyboard = keyboard
        self._key_first = key_first

    def session(self) -> asyncssh.SSHServer:
        return _Session(self, self._keyboard, self._key_first)


class _Session(asyncssh.SSHServer):
    def __init__(self, owner: PasswordServer, keyboard: bool, key_first: bytes | None) -> None:
        self._owner = owner
        self._keyboard = keyboard
        self._key_first = key_first

    def begin_auth(self, username: str) -> bool:
        self._owner.logins += 1
        return True

    def password_auth_supported(self) -> bool:
        return not self._keyboard

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("alice", PASSWORD)

    def kbdint_auth_supported(self) -> bool:
        return self._keyboard

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        return "", "", "", [("Password:", False)]

    def validate_kbdint_response(self, username: str, responses: Any) -> bool:
        return (username, list(responses)) == ("alice", [PASSWORD])

    def public_key_auth_supported(self) -> bool:
        return self._key_first is not None

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.public_data == self._key_first


async def _answer(process: asyncssh.SSHServerProcess[str]) -> None:
    process.stdout.write(f"{process.command}\n")
    process.exit(0)


@asynccontextmanager
async def password_server(
    folder: Path, *, keyboard: bool = False, key_first: bytes | None = None
) -> AsyncIterator[PasswordServer]:
    """The server on a port of the loopback interface for the length of the block.

    With *keyboard* it asks for the password instead of taking it unasked (RFC 4256).
    """
    server = PasswordServer(keyboard=keyboard, key_first=key_first)
    path = folder / "in_process_host_key"
    if not path.exists():
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path))

    async def listen() -> Any:
        return await asyncssh.create_server(
            server.session,
            "127.0.0.1",
            0,
            server_host_keys=[str(path)],
            process_factory=_answer,
            line_editor=False,
        )

    async with open_bridge() as bridge:
        acceptor = await bridge.call(listen())
        server.port = acceptor.get_port()
        try:
            yield server
        finally:
            with bridge.entered():
                acceptor.close()
            await bridge.call(acceptor.wait_closed())
