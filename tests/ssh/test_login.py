"""Ways to log in, and everything that can be wrong before a command runs."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from pathlib import Path

import pytest
import trio

from support.ssh_client import Asker, nothing_open, until
from support.ssh_server import PASSWORD, password_server
from support.sshd import running_sshd
from tunnelmux.commands import CommandRequest
from tunnelmux.config import Secret
from tunnelmux.limits import ExecLimits
from tunnelmux.observability import configure_logs, get_logger
from tunnelmux.ssh import HostKeys
from tunnelmux.ssh.connection import Login
from tunnelmux.ssh.pool import SshPool, open_pool

pytestmark = pytest.mark.slow  # each starts a server


def with_password(port: int, password: str = PASSWORD, **changes: object) -> CommandRequest:
    fields: dict[str, object] = {
        "command_id": "c",
        "host": "127.0.0.1",
        "port": port,
        "username": "alice",
        "password": Secret(password),
        "command": "hello",
    }
    return CommandRequest(**fields | changes)  # type: ignore[arg-type]


async def make_key(keygen: str, file: Path, *words: str) -> Secret:
    await trio.run_process([keygen, "-q", "-C", "", "-f", str(file), *words])
    return Secret(file.read_text("ascii"))  # noqa: ASYNC240


@pytest.fixture
def keygen(debian_program) -> str:
    return debian_program("ssh-keygen", "openssh-client")


# -- credentials ----------------------------------------------------------------------------


@pytest.mark.parametrize("keyboard", [False, True], ids=["password", "keyboard-interactive"])
async def test_a_password_logs_in(pool: SshPool, tmp_path: Path, keyboard: bool) -> None:
    async with password_server(tmp_path, keyboard=keyboard) as server:
        assert (await pool.run(with_password(server.port))).stdout == "hello\n"
        await pool.close()


@pytest.mark.parametrize(
    "challenges",
    [
        [[("password:", False)]],
        [[("alice@router's password: ", False)]],
        [[("Passwort: ", False)]],
        [[("Mot de passe\u00a0: ", False)]],
        [[("\u30d1\u30b9\u30ef\u30fc\u30c9: ", False)]],
        [[("Enter PASSCODE: ", False)]],
        [[("Password: ", True)]],  # it should not be shown, and it is the password all the same
        [[("Password: ", False)], []],
        [[], [("Password: ", False)]],
    ],
)
async def test_one_hidden_prompt_gets_the_password_in_any_language(
    pool: SshPool, tmp_path: Path, challenges: list[list[tuple[str, bool]]]
) -> None:
    async with password_server(tmp_path, keyboard=True, challenges=challenges) as server:
        assert (await pool.run(with_password(server.port))).stdout == "hello\n"
        await pool.close()
    assert [answer for answer in server.answers if answer] == [[PASSWORD]]


@pytest.mark.parametrize(
    "challenges",
    [
        [[("Login: ", True)]],
        [[("Password: ", False), ("Code: ", False)]],
        [[("Password: ", False)], [("New password: ", False)]],
    ],
)
async def test_the_password_is_given_once_and_for_one_prompt(
    pool: SshPool, tmp_path: Path, challenges: list[list[tuple[str, bool]]]
) -> None:
    async with password_server(tmp_path, keyboard=True, challenges=challenges) as server:
        assert (await pool.run(with_password(server.port))).reason == "auth-failed"
        await pool.close()
    assert server.answers.count([PASSWORD]) <= 1
    assert server.logins == 1


async def test_a_password_that_was_wrong_for_a_prompt_is_not_tried_again(
    pool: SshPool, tmp_path: Path
) -> None:
    """A second guess counts where accounts are locked after some."""
    async with password_server(tmp_path, keyboard=True, takes_password_too=True) as server:
        assert (await pool.run(with_password(server.port, "wrong"))).reason == "auth-failed"
        assert (await pool.run(with_password(server.port))).stdout == "hello\n"
        await pool.close()
    assert server.answers == [["wrong"], [PASSWORD]]


async def test_a_wrong_password_is_refused_once_for_all_who_wait(
    pool: SshPool, tmp_path: Path
) -> None:
    messages = []
    lines = io.StringIO()
    configure_logs("debug", "json", stream=lines)
    async with password_server(tmp_path) as server:

        async def one() -> None:
            result = await pool.run(with_password(server.port, "guessed wrong"))
            assert (result.exit_code, result.reason) == (255, "auth-failed")
            messages.append(result.stderr)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert server.logins == 1  # ten guesses would lock the account
    where = f"127.0.0.1:{server.port}"
    assert set(messages) == {f'{where} did not accept the password for the user "alice"\n'}
    get_logger("test").info("the log is read here")
    assert "the log is read here" in lines.getvalue()
    assert "guessed wrong" not in lines.getvalue()
    await nothing_open(pool)


async def test_a_connection_is_not_lent_to_another_credential(
    pool: SshPool, tmp_path: Path
) -> None:
    async with password_server(tmp_path) as server:
        assert (await pool.run(with_password(server.port))).exit_code == 0
        wrong = await pool.run(with_password(server.port, "guessed wrong"))
        assert wrong.reason == "auth-failed"
        await pool.close()


@pytest.mark.parametrize(
    ("kind", "passphrase"),
    [
        (["-t", "ed25519"], ""),
        (["-t", "ed25519", "-a", "4"], "open sesame"),
        (["-t", "rsa", "-b", "2048", "-m", "PEM"], ""),
        (["-t", "rsa", "-b", "2048", "-m", "PEM"], "open sesame"),
        (["-t", "ecdsa", "-m", "PKCS8"], "open sesame"),
    ],
    ids=["openssh", "openssh-encrypted", "pem", "pem-encrypted", "pkcs8-encrypted"],
)
async def test_private_keys_of_all_kinds_log_in(
    tmp_path: Path, pool: SshPool, debian_program, keygen: str, kind: list[str], passphrase: str
) -> None:
    key = await make_key(keygen, tmp_path / "user_key", *kind, "-N", passphrase)
    async with running_sshd(tmp_path, debian_program) as server:
        ask = Asker(server)
        secret = Secret(passphrase) if passphrase else None
        result = await pool.run(ask("echo in", private_key=key, passphrase=secret))
        assert (result.stdout, result.stderr) == ("in\n", "")
        if passphrase:
            for wrong, words in ((Secret("wrong"), "wrong"), (None, "encrypted")):
                result = await pool.run(ask("echo in", private_key=key, passphrase=wrong))
                assert (result.exit_code, result.reason) == (255, "bad-key")
                assert words in result.stderr
                assert "open sesame" not in result.stderr
        await pool.close()


async def test_a_certificate_logs_in(
    tmp_path: Path, login, debian_program, keygen: str, sshd
) -> None:
    folder = tmp_path / "with-authority"
    folder.mkdir()
    await make_key(keygen, folder / "authority", "-t", "ed25519", "-N", "")
    key = await make_key(keygen, folder / "other", "-t", "ed25519", "-N", "")
    user = Asker(sshd)("true").username
    sign = ["-s", str(folder / "authority"), "-I", "test", "-n", user, str(folder / "other.pub")]
    await trio.run_process([keygen, "-q", *sign])
    certificate = (folder / "other-cert.pub").read_text("ascii")
    more = f"TrustedUserCAKeys {folder}/authority.pub"
    async with (
        running_sshd(folder, debian_program, more=more) as server,
        open_pool(login()) as pool,
    ):
        ask = Asker(server)
        good = ask("echo in", private_key=key, certificate=certificate)
        assert (await pool.run(good)).stdout == "in\n"
        assert (await pool.run(ask("echo in", private_key=key))).reason == "auth-failed"
        other = await pool.run(ask("echo in", certificate=certificate))
        assert other.reason == "bad-key" and "for another key" in other.stderr
        damaged = await pool.run(ask("echo in", private_key=key, certificate="ssh-ed25519 AA"))
        assert damaged.reason == "bad-key"


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


async def test_the_keys_of_an_ssh_agent_log_in_where_the_command_brings_none(
    tmp_path: Path, sshd, debian_program
) -> None:
    path = tmp_path / "agent"
    program = debian_program("ssh-agent", "openssh-client")
    process = await trio.lowlevel.open_process(
        [program, "-D", "-a", str(path)], stdout=subprocess.DEVNULL
    )
    keys = HostKeys("off")
    try:
        await until(lambda: listens(path), "the agent listens")
        async with open_pool(Login(ExecLimits(), keys, path)) as pool:
            ask = Asker(sshd)
            bare = {"private_key": None}
            empty = await pool.run(ask("echo in", **bare))
            assert empty.reason == "auth-failed" and "holds no keys" in empty.stderr
            add = [debian_program("ssh-add", "openssh-client"), str(sshd.folder / "user_key")]
            environment = os.environ | {"SSH_AUTH_SOCK": str(path)}
            await trio.run_process(add, env=environment, capture_stderr=True)
            assert (await pool.run(ask("echo in", **bare))).stdout == "in\n"
    finally:
        process.terminate()
        await process.wait()
    async with open_pool(Login(ExecLimits(), keys, tmp_path / "none")) as pool:
        gone = await pool.run(ask("echo in", **bare))
        assert gone.reason == "auth-failed" and "gave no keys" in gone.stderr


async def test_without_any_credential_nothing_of_this_machine_is_offered(
    tmp_path: Path, sshd, pool: SshPool, monkeypatch
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (sshd.folder / "user_key").rename(home / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(home))
    (home / ".ssh" / "config").write_text("this is no configuration\n")
    (sshd.folder / "user_key").write_text("")
    result = await pool.run(Asker(sshd)("true", private_key=None))
    assert result.reason == "auth-failed"


async def test_a_wrong_key_is_refused(tmp_path: Path, sshd, pool: SshPool, keygen: str) -> None:
    key = await make_key(keygen, tmp_path / "stranger", "-t", "ed25519", "-N", "")
    result = await pool.run(Asker(sshd)("true", private_key=key))
    assert (result.exit_code, result.reason) == (255, "auth-failed")
    assert "did not accept the privateKey" in result.stderr


@pytest.mark.parametrize("text", ["no key at all", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
async def test_what_is_no_key_is_not_repeated(sshd, pool: SshPool, text: str) -> None:
    result = await pool.run(Asker(sshd)("true", private_key=Secret(text)))
    assert result.reason == "bad-key"
    assert text not in result.stderr and "AAAA" not in result.stderr


# -- the way there --------------------------------------------------------------------------


async def test_an_unknown_host_is_said_to_be_unknown(pool: SshPool, sshd) -> None:
    result = await pool.run(Asker(sshd)("true", host="no-such-host.invalid"))
    assert (result.exit_code, result.reason) == (255, "unreachable")
    assert "no-such-host.invalid" in result.stderr


async def test_a_closed_port_refuses(pool: SshPool, sshd, unused_port: int) -> None:
    result = await pool.run(Asker(sshd)("true", port=unused_port))
    assert (result.exit_code, result.reason) == (255, "refused")
    assert "check that an SSH server listens there" in result.stderr
    assert pool.figures.connect_failures == 1


async def test_a_server_that_says_nothing_runs_into_login_timeout(login, sshd) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listener, open_pool(login(login_timeout=0.3)) as pool:
        result = await pool.run(Asker(sshd)("true", port=port))
    assert (result.exit_code, result.reason) == (124, "timeout")
    assert "did not let" in result.stderr and "within 0.3 s" in result.stderr


async def test_what_is_no_ssh_server_is_told_apart(login, sshd, nursery) -> None:
    async def web(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" * 40)

    listeners = await nursery.start(trio.serve_tcp, web, 0)
    port = listeners[0].socket.getsockname()[1]
    async with open_pool(login(login_timeout=5)) as pool:
        result = await pool.run(Asker(sshd)("true", port=port))
    assert (result.exit_code, result.reason) == (255, "failed")
    nursery.cancel_scope.cancel()


async def test_what_the_library_stumbles_over_fails_one_command_only(
    pool: SshPool, sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(*_: object, **__: object) -> None:
        raise TypeError("a server sent what nobody thought of")

    with monkeypatch.context() as patched:
        patched.setattr("asyncssh.connect", stumble)
        result = await pool.run(Asker(sshd)("true"))
    assert (result.exit_code, result.reason) == (255, "failed")
    assert "failed: a server sent what nobody thought of" in result.stderr
    assert (await pool.run(Asker(sshd)("true"))).exit_code == 0
