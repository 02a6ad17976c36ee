"""What one session may make its server keep before it asks for anything."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh

from tunnelmux.ssh.session_channel import MOST_VARIABLES, new_session_channel


class Session(asyncssh.SSHServerSession[bytes]):
    """Says what it kept of the environment it was given."""

    def connection_made(self, chan: Any) -> None:
        self.channel = chan

    def exec_requested(self, _command: str) -> bool:
        return True

    def session_started(self) -> None:
        kept = self.channel.get_environment_bytes()
        size = sum(len(name) + len(value) for name, value in kept.items())
        self.channel.write(f"{len(kept)} {size} {kept.get(b'LANG', b'').decode()}".encode())
        self.channel.exit(0)


class Server(asyncssh.SSHServer):
    def connection_made(self, conn: Any) -> None:
        self.connection = conn

    def begin_auth(self, _username: str) -> bool:
        return False

    def session_requested(self) -> Any:
        return new_session_channel(self.connection, 65_536), Session()


async def kept_of(environment: dict[str, str]) -> tuple[int, int, str]:
    """How many variables are kept of these, their bytes, and the value of LANG."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncio.timeout(30):
        listening = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Server, server_host_keys=[key]
        )
        async with (
            listening,
            asyncssh.connect(
                "127.0.0.1", listening.get_port(), known_hosts=None, config=None
            ) as client,
        ):
            result = await client.run("x", env=environment, encoding=None, check=True)
    count, size, lang = bytes(result.stdout).decode().split(" ")
    return int(count), int(size), lang


def run(environment: dict[str, str]) -> tuple[int, int, str]:
    return asyncio.run(kept_of(environment))


def test_what_is_passed_on_is_kept() -> None:
    usual = {"LANG": "de_DE.UTF-8", "LC_TIME": "C", "SECRET": "x"}
    assert run(usual) == (2, 4 + 11 + 7 + 1, "de_DE.UTF-8")


def test_a_value_with_a_nul_byte_is_forgotten() -> None:
    assert run({"LANG": "C\0", "LC_TIME": "C"}) == (1, 7 + 1, "")


def test_a_flood_of_variables_is_forgotten() -> None:
    def letters(number: int) -> str:
        return "".join(chr(65 + int(digit)) for digit in str(number))

    flood = {f"X_{number}": "y" * 1000 for number in range(500)}
    flood |= {f"LC_{letters(number)}": "y" * 500 for number in range(500)}
    flood |= {"LANG": "y" * 5000}
    count, size, lang = run(flood)
    assert (count, lang) == (MOST_VARIABLES, "")
    assert size < MOST_VARIABLES * 600
