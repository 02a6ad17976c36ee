"""Support without accounts: a code, the key it stands for, and real SSH servers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from support.dropbear import running_dropbear
from support.sshd import SshServer, running_sshd
from tunnelmux.agent.assist.account_keys import AccountKeys
from tunnelmux.agent.assist.code import derive_key, new_code, normal_code
from tunnelmux.agent.assist.orders import Order
from tunnelmux.agent.assist.service import AssistService
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.config.assist import AssistConfig

Program = Callable[[str, str], str]
LEASE = "01890000-0000-7000-8000-000000000001"


def agent_config(folder: Path, keys: Path, words: str = "openssh", **more: Any) -> AgentConfig:
    return AgentConfig(
        device=Device(name="cam1", serial="SN-7", state_dir=folder / "state"),
        proxy=ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("t")),
        services=[ServiceConfig(name="ssh", target="tcp://127.0.0.1:22", lease_only=True)],
        assist=AssistConfig(mode="ask", account_keys=keys, account_words=words, **more),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(config: AgentConfig) -> AsyncIterator[AssistService]:
    service = AssistService(config)
    with service.opened():
        await service.learn_serial()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            yield service
            nursery.cancel_scope.cancel()


async def made(service: AssistService, **order: Any) -> dict[str, Any]:
    return await service._make_code(Order(do="code", **order))


def key_file(folder: Path, code: str, lease: str, serial: str) -> Path:
    normal = normal_code(code)
    assert normal is not None
    file = folder / f"key-{time.monotonic_ns()}"
    file.touch(0o600)
    file.write_text(derive_key(normal, lease, serial).private.reveal())
    return file


async def logs_in(server: SshServer, key: Path) -> bool:
    """Whether real OpenSSH gets a command's output with this key."""
    options = [
        f"IdentityFile={key}" if word.startswith("IdentityFile=") else word
        for word in server.client_options()
    ]
    # The first value counts; whose host key it is is no matter here.
    unknown = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    command = ["ssh", *unknown, *options, "-p", str(server.address.port)]
    done = await trio.run_process(
        [*command, f"{server.user}@127.0.0.1", "echo in"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in (0, 255), done.stderr
    return done.stdout == b"in\n"


def test_a_code_has_80_bits_and_is_read_as_people_type_it() -> None:
    code = new_code().reveal()
    assert len(code.replace("-", "")) == 16
    for typed in (code.lower(), code.replace("-", " "), f" {code}\n", code.replace("-", "")):
        normal = normal_code(typed)
        assert normal is not None
        assert normal.reveal() == code
    assert normal_code("oIl0-0000-0000-0000") == Secret("0110-0000-0000-0000")
    for wrong in ("", "0" * 15, "0" * 17, "U" * 16, "é" * 16, "0" * 10_000):
        assert normal_code(wrong) is None
    assert len({new_code().reveal() for _ in range(50)}) == 50


def test_the_key_is_of_this_code_lease_and_device_only() -> None:
    code = Secret("0123-4567-89AB-CDEF")
    key = derive_key(code, LEASE, "SN-7")
    assert key.public == derive_key(code, LEASE, " sn-7 ").public
    # Fixed: a device and a support person may have different versions.
    assert key.public == (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAOsT0FezXUF4mIsyots6NQUQj/3sPjIsIReTELFFT99"
    )
    others = [
        derive_key(Secret("0123-4567-89AB-CDEG"), LEASE, "SN-7"),
        derive_key(code, LEASE[:-1] + "2", "SN-7"),
        derive_key(code, LEASE, "SN-8"),
    ]
    assert key.public not in {other.public for other in others}
    assert "PRIVATE" not in repr(key)


@pytest.mark.slow
async def test_whoever_has_the_code_logs_in_until_the_lease_ends(
    tmp_path: Path, debian_program: Program
) -> None:
    async with running_sshd(tmp_path, debian_program) as server:
        keys = tmp_path / "user_key.pub"
        keys.chmod(0o640)
        own = keys.read_text()
        async with running(agent_config(tmp_path, keys)) as service:
            answer = await made(service, seconds=600)
            assert answer["problem"] is None
            assert answer["code"] not in keys.read_text()
            assert 'restrict,pty,expiry-time="' in keys.read_text()
            key = key_file(tmp_path, answer["code"].lower(), answer["lease"], "sn-7")
            wrong = key_file(tmp_path, new_code().reveal(), answer["lease"], "SN-7")
            assert await logs_in(server, key)
            assert not await logs_in(server, wrong)
            assert service.desk.stop(answer["lease"], by="me") is None
            assert not await logs_in(server, key)
            assert await logs_in(server, tmp_path / "user_key")
        assert keys.read_text() == own
        assert keys.stat().st_mode & 0o777 == 0o640
        for kept in (tmp_path / "state").iterdir():
            if kept.is_file():
                assert answer["code"] not in kept.read_text()


@pytest.mark.slow
async def test_the_ssh_server_itself_ends_what_a_dead_agent_left(
    tmp_path: Path, debian_program: Program
) -> None:
    async with running_sshd(tmp_path, debian_program) as server:
        code = new_code()
        key = key_file(tmp_path, code.reveal(), LEASE, "SN-7")
        public = derive_key(code, LEASE, "SN-7").public
        account = AccountKeys(tmp_path / "user_key.pub", "openssh", [])
        account.add(LEASE, public, time.time() + 600)
        assert await logs_in(server, key)
        account.keep_only([])
        account.add(LEASE, public, time.time() - 1)
        assert not await logs_in(server, key)
        account.keep_only([])
        AccountKeys(account.path, "openssh", ["192.0.2.0/24"]).add(LEASE, public, time.time() + 600)
        assert not await logs_in(server, key)


@pytest.mark.slow
async def test_dropbear_takes_other_words(tmp_path: Path, debian_program: Program) -> None:
    async with running_dropbear(tmp_path, debian_program) as server:
        keys = tmp_path / "home" / ".ssh" / "authorized_keys"
        own = keys.read_text()
        async with running(agent_config(tmp_path, keys, "dropbear")) as service:
            answer = await made(service)
            key = key_file(tmp_path, answer["code"], answer["lease"], "SN-7")
            assert await logs_in(server, key)
        # It knows no end, so that the line goes with the agent.
        assert keys.read_text() == own
        assert not await logs_in(server, key)


async def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    keys = tmp_path / "authorized_keys"
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("precious")
    keys.symlink_to(elsewhere)
    async with running(agent_config(tmp_path, keys)) as service:
        answer = await made(service)
        assert "cannot be put into" in answer["problem"]
        assert "code" not in answer
        assert service.desk.leases == []
        assert elsewhere.read_text() == "precious"
        assert "assist.longest" in (await made(service, seconds=90_000.0))["problem"]
        assert "no assistance with web" in (await made(service, services=["web"]))["problem"]
    plain = AgentConfig(
        device=Device(name="cam1", serial="SN-7", state_dir=tmp_path / "state"),
        proxy=ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("t")),
        services=[ServiceConfig(name="ssh", target="tcp://127.0.0.1:22")],
        assist=AssistConfig(mode="ask"),
    )
    async with running(plain) as service:
        assert "assist.account_keys" in (await made(service))["problem"]


def test_other_lines_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "authorized_keys"
    own = b"# lease-of-tunnelmux-x\nssh-ed25519 AAAA ada@work\r\n\n\xff not ours\nno end"
    file.write_bytes(own)
    keys = AccountKeys(file, "openssh", ["127.0.0.1"])
    keys.add(LEASE, "ssh-ed25519 BBBB", 1_795_000_000.0)
    keys.add(LEASE[:-1] + "2", "ssh-ed25519 CCCC", 1_795_000_000.0)
    assert keys.keep_only([LEASE]) == 1
    assert file.read_bytes().startswith(own + b"\nrestrict,pty,expiry-time=")
    assert keys.keep_only([]) == 1
    assert file.read_bytes() == own + b"\n"
    assert keys.keep_only([]) == 0
    assert AccountKeys(tmp_path / "none" / "keys", "openssh", []).keep_only([]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["authorized_keys"]


AGENT_TOML = """
[proxy]
url = "ws://127.0.0.1:1/tunnel/connect"
token = "0123456789abcdef0123456789abcdef"
[device]
name = "cam1"
serial = "SN-7"
state_dir = "{folder}/state"
[[services]]
name = "ssh"
target = "tcp://127.0.0.1:22"
[assist]
mode = "ask"
account_keys = "{folder}/authorized_keys"
"""


@pytest.mark.slow
async def test_the_next_start_takes_out_what_a_killed_agent_left(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.touch(0o600)
    file.write_text(AGENT_TOML.format(folder=tmp_path))
    program = str(Path(sys.executable).with_name("tunnelmux-agent"))
    keys = tmp_path / "authorized_keys"
    socket = tmp_path / "state" / "cam1.assist.sock"

    @asynccontextmanager
    async def agent() -> AsyncIterator[trio.Process]:
        process = await trio.lowlevel.open_process(
            [program, "--config", str(file)], stderr=subprocess.DEVNULL
        )
        try:
            with trio.fail_after(180):
                while not socket.exists():  # noqa: ASYNC110  it tells nobody
                    await trio.sleep(0.05)
            yield process
        finally:
            process.kill()
            await process.wait()

    async def assist(*words: str) -> str:
        command = [program, "assist", words[0], "--config", str(file), *words[1:]]
        with trio.fail_after(180):
            return (await trio.run_process(command, capture_stdout=True)).stdout.decode()

    async with agent() as process:
        assert "Code:" in await assist("on", "--code", "--for", "10m")
        assert "lease-of-tunnelmux-" in keys.read_text()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    socket.unlink()
    # The lease goes on over a restart, and its line with it.
    async with agent():
        assert "the holder of the code has ssh" in await assist("status")
        assert "lease-of-tunnelmux-" in keys.read_text()
    socket.unlink()
    (tmp_path / "state" / "cam1.assist.state").unlink()
    async with agent():
        assert keys.read_text() == ""
