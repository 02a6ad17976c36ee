"""What monitoring reads from an agent, on this machine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from support.fake_proxy import FakeProxy, No
from tunnelmux.agent import AgentRefused, RunningAgent, run_agent
from tunnelmux.config import (
    Address,
    AgentConfig,
    AgentMetrics,
    BackoffConfig,
    Device,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.errors import ConfigError
from tunnelmux.mux import Session

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
MakeConfig = Callable[..., AgentConfig]

ANY_PORT = AgentMetrics(listen="127.0.0.1:0")
FAST = BackoffConfig(minimum=0.01, maximum=0.02)


async def ask(agent: RunningAgent, request: str, host: str = "127.0.0.1:9100") -> tuple[int, bytes]:
    """The status and the body of the answer to `GET /path` or the like."""
    assert agent.monitoring_address is not None
    with trio.fail_after(30):
        async with await trio.open_tcp_stream(*agent.monitoring_address) as stream:
            await stream.send_all(f"{request} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = b"".join([bytes(part) async for part in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def listening(start_agent: StartAgent, config: AgentConfig) -> RunningAgent:
    """An agent that can be asked: it listens a moment after it has started."""
    agent = await start_agent(config)
    with trio.fail_after(30):
        while agent.monitoring_address is None:
            await trio.testing.wait_all_tasks_blocked()
    return agent


async def health(agent: RunningAgent) -> tuple[int, dict]:
    status, body = await ask(agent, "GET /healthz")
    return status, json.loads(body)


async def samples(agent: RunningAgent) -> dict[str, float]:
    """Each sample of /metrics as `name` or `name{value,value}`."""
    status, body = await ask(agent, "GET /metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def ask_target(session: Session, request: bytes) -> bytes:
    """What a visitor's stream gets for this head."""
    with trio.fail_after(30):
        async with await session.open_stream() as stream:
            await stream.send_all(request)
            return b"".join([bytes(part) async for part in stream])


async def test_without_the_table_nobody_listens(make_config: MakeConfig, start_agent: StartAgent):
    agent = await start_agent(make_config())
    assert agent.monitoring_address is None


async def test_health_says_since_when_there_is_a_session_and_why_there_is_none(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
):
    proxy.answer = lambda _: No(503, "device-draining", "the proxy is restarting")
    slow = BackoffConfig(minimum=3600, early=3600, maximum=3600)
    agent = await listening(start_agent, make_config(metrics=ANY_PORT, backoff=slow))
    with trio.fail_after(30):
        while "restarting" not in (told := await health(agent))[1]["session"].get("why", ""):
            pass
    status, content = told
    assert status == 503
    assert content["status"] == "down"
    assert content["device"] == "dev1"
    assert content["session"]["up"] is False
    assert content["reconnects"] == 0
    found = await samples(agent)
    assert found["tunnelmux_agent_session_up"] == 0
    assert found["tunnelmux_agent_connect_failures_total{device-draining}"] == 1
    since = content["session"]["since"]

    # Another configuration makes it try at once.
    proxy.answer = lambda _: []
    await agent.reload(make_config(metrics=ANY_PORT, backoff=FAST, device=Device(name="dev2")))
    with trio.fail_after(30):
        await agent.wait_connected()
    status, content = await health(agent)
    assert (status, content["status"]) == (200, "up")
    assert content["session"].keys() == {"up", "since"}
    assert content["session"]["since"] >= since

    (await proxy.next_session()).abort()
    with trio.fail_after(30):
        while agent.figures.sessions < 2 or not agent.figures.is_up:
            await health(agent)
    status, content = await health(agent)
    assert (status, content["reconnects"]) == (200, 1)
    found = await samples(agent)
    assert found["tunnelmux_agent_sessions_total"] == 2
    assert found["tunnelmux_agent_session_up"] == 1
    assert found["tunnelmux_build_info{0.1.0}"] == 1


async def test_a_visitor_who_does_not_read_is_a_window_that_stalls(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
):
    """Also after the session in which it was."""

    async def pour(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"x" * 1_000_000)

    port = await start_target(pour)
    service = ServiceConfig(name="raw", target=f"tcp://127.0.0.1:{port}")
    agent = await listening(start_agent, make_config(service, metrics=ANY_PORT))
    session = await proxy.next_session()
    assert (await samples(agent))["tunnelmux_agent_window_stalls_total"] == 0
    stream = await session.open_stream()
    await stream.send_all(b"CONNECT raw HTTP/1.1\r\nHost: raw\r\n\r\nhello")
    with trio.fail_after(30):
        while not (await samples(agent))["tunnelmux_agent_window_stalls_total"]:
            pass
    session.abort()
    with trio.fail_after(30):
        while agent.figures.is_up and agent.figures.sessions < 2:
            await health(agent)
    assert (await samples(agent))["tunnelmux_agent_window_stalls_total"] >= 1


async def test_traffic_and_targets_that_fail_are_counted(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
):
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")

    port = await start_target(answer)
    services = [
        ServiceConfig(name="web", target=f"http://127.0.0.1:{port}"),
        ServiceConfig(name="dead", target="http://127.0.0.1:1"),
        ServiceConfig(name="raw", target=f"tcp://127.0.0.1:{port}"),
    ]
    config = make_config(*services, metrics=ANY_PORT)
    agent = await listening(start_agent, config)
    session = await proxy.next_session()
    get = b"GET / HTTP/1.1\r\nHost: h\r\nTunnelmux-Service: %s\r\nConnection: close\r\n\r\n"
    assert b" 404 " in await ask_target(session, get % b"web")
    for _ in range(2):
        assert b" 502 " in await ask_target(session, get % b"dead")
    assert b" 404 " in await ask_target(
        session, get % b"none"
    )  # no such service: no target's fault
    raw = await ask_target(session, b"CONNECT raw HTTP/1.1\r\nHost: raw\r\n\r\nhello")
    assert raw.endswith(b"gone")

    with trio.fail_after(30):
        while agent.streams_now:
            await health(agent)
    found = await samples(agent)
    assert found["tunnelmux_agent_streams"] == 0
    assert found["tunnelmux_agent_streams_served_total"] == 5
    assert found["tunnelmux_agent_requests_total{4xx}"] == 1
    assert found["tunnelmux_agent_target_failures_total{target-refused,dead}"] == 2
    assert found["tunnelmux_agent_relays_total{finished}"] == 1
    assert found["tunnelmux_agent_bytes_total{from_proxy}"] > 300
    assert found["tunnelmux_agent_bytes_total{to_proxy}"] > 100
    assert found["tunnelmux_agent_commands_running"] == 0
    assert len([name for name in found if "target_failures_total" in name]) == 1
    (failure,) = (await health(agent))[1]["target_failures"]
    assert (failure["service"], failure["reason"], failure["count"]) == (
        "dead",
        "target-refused",
        2,
    )
    # Services that went take their figures with them, so that these cannot grow for ever.
    await agent.reload(msgspec.structs.replace(config, services=services[:1]))
    assert (await health(agent))[1]["target_failures"] == []


async def test_what_it_does_not_have(make_config: MakeConfig, start_agent: StartAgent):
    agent = await listening(start_agent, make_config(metrics=ANY_PORT))
    assert (await ask(agent, "GET /secrets"))[0] == 404
    assert (await ask(agent, "POST /metrics"))[0] == 405
    assert (await ask(agent, "HEAD /metrics"))[1] == b""
    assert (await ask(agent, "GET /healthz?x=1"))[0] in (200, 503)
    assert (await ask(agent, "rubbish"))[0] == 400


async def test_a_reload_moves_the_listener_or_changes_nothing(
    make_config: MakeConfig, start_agent: StartAgent
):
    agent = await listening(start_agent, make_config(metrics=ANY_PORT))
    before = agent.monitoring_address
    assert before is not None
    async with await trio.open_tcp_stream(*before):
        taken = AgentMetrics(listen=f"127.0.0.2:{before.port}")
        await agent.reload(make_config(metrics=taken))
        assert agent.monitoring_address == Address("127.0.0.2", before.port)
        assert (await ask(agent, "GET /metrics"))[0] == 200
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream(*before)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(ConfigError, match="cannot listen on"):
        await agent.reload(make_config(metrics=AgentMetrics(listen=f"127.0.0.1:{port}")))
    assert agent.monitoring_address == Address("127.0.0.2", before.port)
    assert (await ask(agent, "GET /metrics"))[0] == 200
    await listeners[0].aclose()
    await agent.reload(make_config())
    assert agent.monitoring_address is None


async def test_an_address_that_cannot_be_listened_on_ends_the_agent(make_config: MakeConfig):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with (
        trio.fail_after(30),
        pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"),
    ):
        await run_agent(make_config(metrics=AgentMetrics(listen=f"127.0.0.1:{port}")))
    await listeners[0].aclose()


async def test_a_refusal_for_good_ends_the_listener_too(proxy: FakeProxy, make_config: MakeConfig):
    proxy.answer = lambda _: No(401, "unauthorized", "no device has this token")
    with trio.fail_after(30), pytest.raises(AgentRefused):
        await run_agent(make_config(metrics=ANY_PORT))


def test_it_is_for_this_machine_only():
    with pytest.raises(InvalidSetting, match="declare a service for a monitor elsewhere"):
        AgentMetrics(listen="0.0.0.0:3803")
    assert AgentMetrics().address == Address("127.0.0.1", 3803)
    config = AgentConfig(
        proxy=ProxyEndpoint(url="wss://h/x", token=Secret("t")),
        device=Device(name="dev1"),
        services=[ServiceConfig(name="web", target="80")],
    )
    assert config.metrics is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:9100"])
async def test_a_foreign_name_that_leads_here_is_refused(
    make_config: MakeConfig, start_agent: StartAgent, host: str
) -> None:
    """A page of that name could else read what this device is and does (DNS rebinding)."""
    agent = await listening(start_agent, make_config(metrics=ANY_PORT))
    for path in ("/metrics", "/healthz"):
        status, body = await ask(agent, f"GET {path}", host)
        assert status == 403 and b"dev1" not in body
    for good in ("localhost:9100", "[::1]", "127.0.0.1"):
        assert (await ask(agent, "GET /metrics", good))[0] == 200
