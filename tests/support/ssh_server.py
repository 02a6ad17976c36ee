"""An SSH server in this process, for what Debian's sshd does only with accounts of the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh

from tunnelmux.ssh.bridge import open_bridge

__all__ = ["PasswordServer", "password_server"]

PASSWORD = "correct horse"

Challenges = Sequence[Sequence[tuple[str, bool]]]
"""Prompts that come together, and whether what is typed may be shown; one group after the other."""


class PasswordServer:
    """Takes the user `alice` with PASSWORD, and answers each command with its text."""

    def __init__(
        self,
        *,
        keyboard: bool,
        key_first: bytes | None,
        challenges: Challenges,
        takes_password_too: bool,
    ) -> None:
        self.port = 0
        self.logins = 0
        """Connections that came as far as a user name."""
        self.answers: list[list[str]] = []
        """What came for prompts, and for a password that was not asked for."""
        self.challenges = challenges
        self.takes_password_too = takes_password_too
        self._keyboard = keyboard
        self._key_first = key_first

    def session(self) -> asyncssh.SSHServer:
        return _Session(self, self._keyboard, self._key_first)


class _Session(asyncssh.SSHServer):
    def __init__(self, owner: PasswordServer, keyboard: bool, key_first: bytes | None) -> None:
        self._owner = owner
        self._keyboard = keyboard
        self._key_first = key_first
        self._steps = list(owner.challenges)

    def begin_auth(self, username: str) -> bool:
        self._owner.logins += 1
        return True

    def password_auth_supported(self) -> bool:
        return not self._keyboard or self._owner.takes_password_too

    def validate_password(self, username: str, password: str) -> bool:
        self._owner.answers.append([password])
        return (username, password) == ("alice", PASSWORD)

    def kbdint_auth_supported(self) -> bool:
        return self._keyboard

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        return "Login", "Say who you are.", "", self._steps[0]

    def validate_kbdint_response(self, username: str, responses: Any) -> Any:
        self._owner.answers.append(list(responses))
        if self._steps.pop(0) and list(responses) != [PASSWORD]:
            return False
        if self._steps:
            return "", "", "", self._steps[0]
        return username == "alice"

    def public_key_auth_supported(self) -> bool:
        return self._key_first is not None

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.public_data == self._key_first


async def _answer(process: asyncssh.SSHServerProcess[str]) -> None:
    process.stdout.write(f"{process.command}\n")
    process.exit(0)


@asynccontextmanager
async def password_server(
    folder: Path,
    *,
    keyboard: bool = False,
    key_first: bytes | None = None,
    challenges: Challenges = ((("Password:", False),),),
    takes_password_too: bool = False,
) -> AsyncIterator[PasswordServer]:
    """The server on a port of the loopback interface for the length of the block.

    With *keyboard* it asks for the password instead of taking it unasked (RFC 4256), with these
    prompts one after the other; or both, with *takes_password_too*.
    """
    server = PasswordServer(
        keyboard=keyboard,
        key_first=key_first,
        challenges=challenges,
        takes_password_too=takes_password_too,
    )
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
