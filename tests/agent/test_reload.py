"""Another configuration for a running agent: what takes effect, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import structlog
import trio

from support.fake_proxy import FakeProxy, fake_proxy
from support.streams import next_bytes
from tunnelmux import Session
from tunnelmux.agent import RunningAgent
from tunnelmux.commands import CommandRequest
from tunnelmux.config import (
    AgentConfig,
    BackoffConfig,
    DrainConfig,
    ExecConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.errors import ConfigError

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
MakeConfig = Callable[..., AgentConfig]

NEVER = BackoffConfig(minimum=600.0, early=600.0, maximum=600.0, replaced=600.0)
"""Whoever waits for this back-off waits in vain."""


@pytest.fixture
async def echo(start_target: StartTarget) -> str:
    """The target of a service that sends back what it gets."""

    async def handle(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    return f"tcp://127.0.0.1:{await start_target(handle)}"


async def ask(session: Session, service: str) -> tuple[trio.abc.HalfCloseableStream, bytes]:
    """A stream to the service, and the status line it is answered with."""
    stream = await session.open_stream()
    await stream.send_all(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % ((service.encode(),) * 2))
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await stream.receive_some()
    return stream, answer.partition(b"\r\n")[0]


async def test_services_come_and_go_without_a_new_session(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, echo: str
) -> None:
    first = ServiceConfig(name="first", target=echo, default=True)
    second = ServiceConfig(name="second", target=echo)
    agent = await start_agent(make_config(first))
    session = await proxy.next_session()
    stream, status = await ask(session, "first")
    assert status == b"HTTP/1.1 200 OK"
    assert (await ask(session, "second"))[1].startswith(b"HTTP/1.1 404 ")

    await agent.reload(make_config(first, second))
    assert (await ask(session, "second"))[1] == b"HTTP/1.1 200 OK"
    await stream.send_all(b"still here")
    assert await next_bytes(stream, 10) == b"still here"

    await agent.reload(make_config(first))
    assert (await ask(session, "second"))[1].startswith(b"HTTP/1.1 404 ")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("what", ["target", "default", "token", "limits"])
async def test_what_concerns_the_session_makes_it_anew_at_once(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, echo: str, what: str
) -> None:
    services = [ServiceConfig(name=name, target=echo) for name in ("one", "two")]
    before = make_config(*services, backoff=NEVER)
    changed = {
        "target": make_config(
            services[0], ServiceConfig(name="two", target="tcp://127.0.0.1:1"), backoff=NEVER
        ),
        "default": make_config(*reversed(services), backoff=NEVER),
        "token": msgspec.structs.replace(
            before, proxy=ProxyEndpoint(url=proxy.url, token=Secret("another"))
        ),
        "limits": msgspec.structs.replace(
            before,
            limits=msgspec.structs.replace(
                before.limits, session=type(before.limits.session)(max_streams=7)
            ),
        ),
    }[what]
    agent = await start_agent(before)
    session = await proxy.next_session()
    with structlog.testing.capture_logs() as logs:
        await agent.reload(changed)
        with trio.fail_after(20):
            await session.wait_closed()
        again = await proxy.next_session()
    assert await again.ping() >= 0
    assert "connecting again" in [line["event"] for line in logs]
    shown = [request.token for request in proxy.requests]
    assert shown == ["dev1-token", "another" if what == "token" else "dev1-token"]
    await agent.reload(changed)
    assert await again.ping() >= 0, "the same once more changes nothing"
    assert len(proxy.requests) == 2


async def test_a_token_file_with_another_token_makes_a_new_session(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    file = trio.Path(tmp_path / "token")
    await file.write_text("first\n")
    config = make_config(
        proxy=ProxyEndpoint(url=proxy.url, token_file=tmp_path / "token"), backoff=NEVER
    )
    agent = await start_agent(config)
    session = await proxy.next_session()
    await agent.reload(config)
    assert await session.ping() >= 0
    await file.write_text("second\n")
    await agent.reload(config)
    await proxy.next_session()
    assert [request.token for request in proxy.requests] == ["first", "second"]


async def test_another_url_is_dialled_at_once_also_while_nobody_answers_at_the_first(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    async with fake_proxy() as gone:
        nowhere = make_config(
            proxy=ProxyEndpoint(url=gone.url, token=Secret("dev1-token")), backoff=NEVER
        )
    agent = await start_agent(nowhere)
    with structlog.testing.capture_logs() as logs:
        with trio.fail_after(20):
            while not logs:  # noqa: ASYNC110  until it waits for the back-off
                await trio.sleep(0.01)
        await agent.reload(make_config(backoff=NEVER))
        assert await (await proxy.next_session()).ping() >= 0


COMMAND = CommandRequest(
    command_id="c1", host="10.0.0.1", username="admin", command="uptime", password=Secret("p")
)


async def test_the_lists_of_commands_change_without_a_new_session(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    def allowing(*commands: str) -> AgentConfig:
        base = make_config()
        lists = ExecConfig(enabled=True, hosts=["*"], users=["*"], commands=list(commands))
        device = msgspec.structs.replace(base.device, state_dir=tmp_path)
        return msgspec.structs.replace(base, exec=lists, device=device)

    off = allowing()
    off = msgspec.structs.replace(off, exec=ExecConfig())
    agent = await start_agent(off)
    session = await proxy.next_session()

    def objection() -> str:
        refused = agent.commands.refusal(COMMAND)
        return refused.message or "" if refused is not None else ""

    assert "exec.enabled is off" in objection()
    await agent.reload(allowing("date"))
    assert "add it to exec.commands" in objection()
    await agent.reload(allowing("date", "uptime"))
    assert objection() == ""
    await agent.reload(off)
    assert "exec.enabled is off" in objection()
    assert await session.ping() >= 0
    assert len(proxy.requests) == 1


async def test_an_executor_that_is_replaced_ends_when_its_commands_have(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    config = make_config()
    agent = await start_agent(config)
    await proxy.next_session()
    before = agent.commands
    before.running = 1  # as while a command runs
    lists = ExecConfig(enabled=True, hosts=["*"], users=["*"], commands=["*"])
    device = msgspec.structs.replace(config.device, state_dir=tmp_path)
    await agent.reload(msgspec.structs.replace(config, exec=lists, device=device))
    assert agent.commands is not before
    assert agent.commands.refusal(COMMAND) is None
    assert len(agent._executors.child_tasks) == 2
    before.running = 0
    before.retire()
    with trio.fail_after(20):
        while len(agent._executors.child_tasks) > 1:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_a_configuration_that_cannot_be_used_changes_nothing(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, echo: str, tmp_path: Path
) -> None:
    good = ServiceConfig(name="good", target=echo)
    agent = await start_agent(make_config(good))
    session = await proxy.next_session()
    bad = ServiceConfig(name="bad", target="https://127.0.0.1:1", ca_file=tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        await agent.reload(make_config(bad))
    elsewhere = ProxyEndpoint(
        url="wss://127.0.0.1:1/x", token=Secret("t"), ca_file=tmp_path / "absent.pem"
    )
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        await agent.reload(make_config(good, proxy=elsewhere))
    assert (await ask(session, "good"))[1] == b"HTTP/1.1 200 OK"
    assert len(proxy.requests) == 1


async def test_a_reloaded_agent_still_drains(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    agent = await start_agent(make_config())
    session = await proxy.next_session()
    await agent.reload(make_config(drain=DrainConfig(grace=1.0)))
    with trio.fail_after(20):
        await agent.drain(1.0)
        await session.wait_closed()
