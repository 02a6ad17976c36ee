"""An agent that may open few files and sockets."""

from __future__ import annotations

import errno
import os
import pwd
import resource
from collections.abc import Awaitable, Callable, Iterator

import pytest
import structlog
import trio

from support.fake_proxy import FakeProxy
from tunnelmux import Session, Stream
from tunnelmux.agent import RunningAgent
from tunnelmux.config import AgentConfig, ServiceConfig
from tunnelmux.descriptors import raise_descriptor_limit
from tunnelmux.ssh.shell_process import start_shell

StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]

FILES = 24
"""Half of them are for connections to targets, nine of these for one service of several."""


async def connect(session: Session, service: str) -> tuple[Stream, bytes]:
    """A new stream to the service, and the head that answers."""
    stream = await session.open_stream()
    await stream.send_all(f"CONNECT {service} HTTP/1.1\r\nHost: {service}\r\n\r\n".encode())
    head = b""
    with trio.fail_after(30):
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some()
            assert data, head
            head += data
    return stream, head


async def busy(stream: trio.abc.Stream) -> None:
    await stream.receive_some()


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelmux.agent.streams.files_allowed", lambda: FILES)


@pytest.mark.usefixtures("few_files")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["by-the-pump", "by-a-task"])
async def test_visitors_of_one_service_leave_places_for_others(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    host: str,
) -> None:
    """They took all, and whoever came for another service was told that its name does not
    resolve."""
    port = await start_target(busy)
    with structlog.testing.capture_logs() as logs:
        await start_agent(
            make_config(
                ServiceConfig(name="flooded", target=f"tcp://{host}:{port}"),
                ServiceConfig(name="other", target=f"tcp://{host}:{port}"),
            )
        )
    (line,) = (line for line in logs if line["event"] == "limits are lowered")
    assert (line["files"], line["connections"], line["of_one_service"]) == (FILES, 12, 9)

    session = await proxy.next_session()
    held = [await connect(session, "flooded") for _ in range(9)]
    assert all(head.startswith(b"HTTP/1.1 200 ") for _, head in held)
    _, refused = await connect(session, "flooded")
    assert refused.startswith(b"HTTP/1.1 503 ") and b"Tunnelmux-Reason: device-busy" in refused
    for _ in range(3):
        stream, head = await connect(session, "other")
        assert head.startswith(b"HTTP/1.1 200 ")
        held.append((stream, head))
    _, refused = await connect(session, "other")
    assert refused.startswith(b"HTTP/1.1 503 ")

    for stream, _ in held:
        await stream.send_all(b"bye")  # the target hangs up
        with trio.fail_after(30):
            assert await stream.receive_some() == b""
        await stream.aclose()
    with trio.fail_after(30):
        while True:
            _, head = await connect(session, "flooded")
            if head.startswith(b"HTTP/1.1 200 "):
                break


async def test_that_no_file_can_be_opened_is_not_told_of_the_name(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system finds no name then either."""

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    target = "tcp://name.that.does.not.resolve.invalid:1"
    await start_agent(make_config(ServiceConfig(name="web", target=target)))
    session = await proxy.next_session()
    with monkeypatch.context() as patched:
        patched.setattr("tunnelmux.descriptors.os.dup", fail)
        _, refused = await connect(session, "web")
    assert b"Tunnelmux-Reason: target-unreachable" in refused
    assert b"LimitNOFILE" in refused


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What a shell may have given this process: less than it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr("tunnelmux.descriptors._given", [])
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_programs_of_the_own_shell_get_the_limit_that_the_agent_was_given(
    low_limit: int,
) -> None:
    """Some can number no more than 1024 (select)."""
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > low_limit
    words = ["/bin/sh", "-c", "read line; ulimit -Sn; ulimit -Hn"]
    shell = await start_shell(pwd.getpwuid(os.geteuid()), words, {}, None)
    await shell.input.send_all(b"go\n")
    with trio.fail_after(30):
        said = b"".join([data async for data in shell.outputs[0]])
        await shell.end()
    assert said.split()[0] == str(low_limit).encode()
    assert said.split()[1] != said.split()[0]
