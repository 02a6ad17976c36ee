"""What the agent reads of its SSH server's host keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from support.dropbear import running_dropbear
from support.sshd import running_sshd
from tunnelmux.agent.host_keys import HostKeyScan, ssh_service_of
from tunnelmux.config import ServiceConfig
from tunnelmux.wire import list_host_keys, read_host_keys

Program = Callable[[str, str], str]


def service(target: str, name: str = "ssh") -> ServiceConfig:
    return ServiceConfig(name=name, target=target)


def public(file: Path) -> str:
    return " ".join(file.read_text().split()[:2])


async def make_key(folder: Path, kind: str, program: Program) -> Path:
    file = folder / f"host_{kind}"
    words = [program("ssh-keygen", "openssh-client"), "-q", "-t", kind, "-N", "", "-f", str(file)]
    await trio.run_process(words)
    return file


@pytest.mark.slow
async def test_all_kinds_are_read_and_the_first_that_is_known_is_enough(
    tmp_path: Path, debian_program: Program
) -> None:
    kinds = [await make_key(tmp_path, kind, debian_program) for kind in ("ecdsa", "rsa")]
    more = "".join(f"HostKey {file}\n" for file in kinds)
    async with running_sshd(tmp_path, debian_program, more) as sshd:
        scan = HostKeyScan()
        ssh = service(f"tcp://{sshd.address}")
        keys = await scan.keys(ssh)
        files = [tmp_path / "host_key", *kinds]
        assert keys == [public(file.with_name(f"{file.name}.pub")) for file in files]
        assert read_host_keys(list_host_keys(keys).decode()) == tuple(keys)
        assert await scan.keys(ssh) == keys
    assert await scan.keys(ssh) == keys  # it is away for a moment
    assert await scan.keys(None) == []
    assert await HostKeyScan().keys(ssh) == []


@pytest.mark.slow
async def test_a_dropbear_is_asked_too(tmp_path: Path, debian_program: Program) -> None:
    async with running_dropbear(tmp_path, debian_program) as dropbear:
        (key,) = await HostKeyScan().keys(service(f"tcp://{dropbear.address}"))
    dropbearkey = debian_program("dropbearkey", "dropbear-bin")
    words = [dropbearkey, "-y", "-f", str(tmp_path / "host_key")]
    shown = await trio.run_process(words, capture_stdout=True)
    assert key.encode() in shown.stdout


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"x" * 20_000,
        b"SSH-2.0-x\r\n" + b"\xff" * 100,
        b"SSH-2.0-x\r\n" + bytes([0, 0, 0, 12, 10, 20]) + b"\0" * 10,  # a short KEXINIT
        b"SSH-2.0-x\r\n" + bytes([0, 0, 0, 12, 10, 1]) + b"\0" * 10,  # a disconnect
    ],
)
async def test_what_is_no_ssh_server_has_no_keys(answer: bytes) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        assert await HostKeyScan().keys(service(f"tcp://127.0.0.1:{port}")) == []
        nursery.cancel_scope.cancel()


async def test_the_proxy_waits_two_seconds_for_a_server_that_says_nothing(
    autojump_clock: object,
) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    began = trio.current_time()
    assert await HostKeyScan().keys(service(f"tcp://127.0.0.1:{port}")) == []
    assert trio.current_time() - began == pytest.approx(2, abs=0.1)
    await listeners[0].aclose()


def test_the_service_is_found_by_its_name_or_its_port() -> None:
    web = service("http://127.0.0.1:80", "web")
    by_port, by_name = service("tcp://127.0.0.1:22", "shell"), service("tcp://127.0.0.1:2022")
    assert ssh_service_of([web, by_port, by_name]) is by_name
    assert ssh_service_of([web, by_port]) is by_port
    assert ssh_service_of([web, service("tcp://127.0.0.1:2022", "shell")]) is None


def test_fields_are_bounded() -> None:
    assert read_host_keys(", ".join(["k"] * 9)) == ("k",) * 4
    assert read_host_keys("x" * 5000) == ()
    assert list_host_keys(["x" * 5000, "a b"]) == b"a b"
