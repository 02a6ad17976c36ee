"""SSH servers that are not a fresh OpenSSH: Dropbear, few sessions, old algorithms."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from support.dropbear import running_dropbear
from support.ssh_client import Asker, nothing_open, output_of, processes_with, until
from support.sshd import DEBIANS, SshServer, running_sshd
from tunnelmux.commands import CommandResult, Started
from tunnelmux.config.execution import OLD_ALGORITHMS
from tunnelmux.limits import ExecLimits
from tunnelmux.ssh import HostKeys
from tunnelmux.ssh.connection import Login
from tunnelmux.ssh.pool import SshPool, open_pool

pytestmark = pytest.mark.slow  # each starts a server

Program = Callable[[str, str], str]


async def run_all(pool: SshPool, ask: Asker, commands: list[str], at_once: int) -> list[str]:
    """What went wrong with any of them, so many at once."""
    problems: list[str] = []
    places = trio.CapacityLimiter(at_once)

    async def one(command: str) -> None:
        async with places:
            result = await pool.run(ask(command, timeout=30))
        if result.exit_code:
            problems.append(result.stderr)

    async with trio.open_nursery() as nursery:
        for command in commands:
            nursery.start_soon(one, command)
    return problems


# -- Dropbear -------------------------------------------------------------------------------


@pytest.fixture
async def dropbear(tmp_path: Path, debian_program: Program) -> AsyncIterator[SshServer]:
    folder = tmp_path / "dropbear"
    folder.mkdir()
    folder.chmod(0o711)
    async with running_dropbear(folder, debian_program) as server:
        yield server


async def test_dropbear_runs_many_commands(pool: SshPool, dropbear: SshServer) -> None:
    ask = Asker(dropbear)
    assert await run_all(pool, ask, ["sleep 0.1; cat"] * 12, 12) == []
    result = await pool.run(ask("cat; kill -TERM $$", stdin=b"in\n" * 50_000))
    assert (result.stdout, result.exit_code) == ("in\n" * 50_000, 143)
    await nothing_open(pool)


@pytest.mark.parametrize(
    "command",
    [
        "sleep {word}",
        "sleep {word}; echo no",  # the shell stays, and Dropbear's own signal ends that only
        "trap '' TERM; sleep {word} > /dev/null 2>&1; echo no",
        "sleep {word} & (sleep {word} &); wait",
    ],
)
async def test_all_of_a_late_command_is_ended_on_dropbear(
    pool: SshPool, dropbear: SshServer, word: str, command: str
) -> None:
    result = await pool.run(Asker(dropbear)(command.format(word=word), timeout=1.5))
    assert (result.exit_code, result.reason) == (124, "timeout")
    assert result.stderr == "no end within 1.5 s: the command was killed\n"
    assert processes_with(word) == []
    await nothing_open(pool)


async def test_a_late_command_on_dropbear_takes_no_other_with_it(
    pool: SshPool, dropbear: SshServer, word: str
) -> None:
    ask = Asker(dropbear)
    async with pool.execute(ask("sleep 2; echo whole")) as other:
        assert isinstance(await anext(other), Started)
        late = await pool.run(ask(f"sleep {word}; echo no", timeout=0.5))
        assert late.stderr.endswith("the command was killed\n")
        assert processes_with(word) == []
        assert output_of([event async for event in other]) == b"whole\n"


# -- few sessions ---------------------------------------------------------------------------


async def test_with_one_session_for_each_connection_commands_wait(
    tmp_path: Path, login, debian_program: Program
) -> None:
    """A server clears a session away a moment after its command has ended."""
    async with (
        running_sshd(tmp_path, debian_program, more="MaxSessions 1", quiet=True) as server,
        open_pool(login()) as pool,
    ):
        ask = Asker(server)
        assert await run_all(pool, ask, ["true"] * 80, 12) == []
        assert await run_all(pool, ask, ["sleep 0.2"] * 12, 12) == []
        assert pool.figures.connects <= 4
        await nothing_open(pool)


async def test_a_late_command_is_ended_where_its_connection_has_no_second_session(
    tmp_path: Path, login, debian_program: Program, word: str
) -> None:
    more = f"{DEBIANS}\nMaxSessions 1"
    async with (
        running_sshd(tmp_path, debian_program, more=more) as server,
        open_pool(login(connections_per_login=2)) as pool,
    ):
        ask = Asker(server)
        async with pool.execute(ask("sleep 3; echo whole")) as other:
            assert isinstance(await anext(other), Started)
            late = await pool.run(ask(f"sleep {word}; sleep {word}", timeout=0.5))
            assert late.stderr == "no end within 0.5 s: the command was killed\n"
            assert processes_with(word) == []
            assert output_of([event async for event in other]) == b"whole\n"
        await nothing_open(pool)


async def test_what_cannot_be_known_to_be_gone_is_not_said_to_be(
    tmp_path: Path, login, debian_program: Program, word: str
) -> None:
    """One session for each connection, and no mark: nothing there can end the command."""
    async with (
        running_sshd(tmp_path, debian_program, more="MaxSessions 1") as server,
        open_pool(login(kill_grace=0.3)) as pool,
    ):
        command = f"trap '' TERM; sleep {word} & wait; wait"
        late = await pool.run(Asker(server)(command, timeout=0.5))
        assert late.stderr == "no end within 0.5 s: it could not be killed and may still run\n"
        # Its command line is empty for a moment while the shell makes way for it.
        await until(lambda: bool(processes_with(word)), "it runs")
        assert pool.figures.not_killed == 1
    for number in processes_with(word):  # this test's own, by the number in their command line
        await trio.run_process(["kill", "-KILL", str(number)])
    await until(lambda: not processes_with(word), "the test leaves nothing behind")


async def test_with_two_sessions_and_no_mark_a_late_command_is_ended(
    tmp_path: Path, login, debian_program: Program, word: str
) -> None:
    async with (
        running_sshd(tmp_path, debian_program, more="MaxSessions 2") as server,
        open_pool(login()) as pool,
    ):
        late = await pool.run(Asker(server)(f"sleep {word}", timeout=0.5))
        assert late.stderr == "no end within 0.5 s: the command was killed\n"
        assert processes_with(word) == []


async def test_a_server_that_opens_no_session_at_all_is_told_so(
    tmp_path: Path, login, debian_program: Program
) -> None:
    async with (
        running_sshd(tmp_path, debian_program, more="MaxSessions 0", quiet=True) as server,
        open_pool(login()) as pool,
    ):
        result = await pool.run(Asker(server)("true", timeout=60))
        assert (result.exit_code, result.reason) == (255, "failed")
        assert "did not run the command: open failed" in result.stderr
        await nothing_open(pool)


# -- old algorithms -------------------------------------------------------------------------

OLD = {
    "key exchange": ("KexAlgorithms", "diffie-hellman-group1-sha1"),
    "server host key": ("HostKeyAlgorithms", "ssh-rsa"),
    "encryption": ("Ciphers", "3des-cbc,aes128-cbc"),
    "MAC": ("MACs", "hmac-md5,hmac-sha1-96"),
}


@pytest.fixture
async def old_keys(tmp_path: Path, debian_program: Program) -> Path:
    """A folder for an sshd whose host key is an RSA key."""
    keygen = debian_program("ssh-keygen", "openssh-client")
    key = [keygen, "-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", ""]
    await trio.run_process([*key, "-f", str(tmp_path / "host_key")])
    return tmp_path


async def run(server: SshServer, *algorithms: str, store: Path) -> CommandResult:
    keys = HostKeys("tofu", store=store, algorithms=algorithms)
    async with open_pool(Login(ExecLimits(), keys, algorithms=algorithms)) as pool:
        return await pool.run(Asker(server)("echo in"))


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
@pytest.mark.parametrize("kind", list(OLD))
async def test_an_old_server_is_told_with_its_own_list_and_can_be_allowed(
    old_keys: Path, debian_program: Program, kind: str
) -> None:
    key, names = OLD[kind]
    more = f"{key} {names}"
    if kind == "MAC":  # which authenticated ciphers do not need
        more += "\nCiphers aes128-ctr"
    store = old_keys / "pinned"
    async with running_sshd(old_keys, debian_program, more=more, quiet=True) as server:
        refused = await run(server, store=store)
        assert (refused.exit_code, refused.reason) == (255, "failed")
        listed = names.replace(",", ", ")
        where = f"127.0.0.1:{server.address.port}"
        first = next(name for name in OLD_ALGORITHMS[kind] if name in names)
        assert refused.stderr == (
            f"{where} and this side have no {kind} algorithm in common: it has {listed}; update "
            f'that server, or allow an old one on the device with exec.algorithms = ["{first}"]\n'
        )
        allowed = await run(server, first, store=store)
        assert (allowed.stdout, allowed.stderr) == ("in\n", "")


async def test_what_is_allowed_is_used_only_where_nothing_better_is(
    old_keys: Path, debian_program: Program
) -> None:
    everything = [name for names in OLD_ALGORITHMS.values() for name in names]
    options = Login(ExecLimits(), HostKeys("off"), algorithms=tuple(everything))
    async with running_sshd(old_keys, debian_program) as server, open_pool(options) as pool:
        assert (await pool.run(Asker(server)("echo in"))).stdout == "in\n"
        [connection] = pool.connections()
        used = connection._connection
        assert used.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"


def test_all_that_can_be_allowed_is_there() -> None:
    """The list in the configuration is the library's."""
    from asyncssh.encryption import get_encryption_algs
    from asyncssh.kex import get_kex_algs
    from asyncssh.mac import get_mac_algs
    from asyncssh.public_key import get_public_key_algs

    there = {
        "key exchange": get_kex_algs(),
        "server host key": get_public_key_algs(),
        "encryption": get_encryption_algs(),
        "MAC": get_mac_algs(),
    }
    for kind, names in OLD_ALGORITHMS.items():
        assert {name.encode() for name in names} <= set(there[kind])
