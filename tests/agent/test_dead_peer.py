"""A silently dead peer is noticed within 20 s: no byte, no end and no reset comes from it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import structlog
import trio
import trio.testing

from support.blackhole import Blackhole, blackhole_relay
from support.fake_proxy import fake_proxy
from support.memory_network import MemoryNetwork
from tunnelmux.agent import run_agent
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.config.process import AgentLimitsConfig
from tunnelmux.errors import ConnectError, SessionTimeout
from tunnelmux.limits import Limits

CONFIG = AgentConfig(
    proxy=ProxyEndpoint(url="ws://proxy.example.com:3800/tunnel/connect", token=Secret("t")),
    device=Device(name="dev1"),
    services=[ServiceConfig(name="nothing", target="tcp://127.0.0.1:1")],
)


async def watch(lost_at: list[float], wait: Callable[[], object]) -> None:
    await wait()  # type: ignore[misc]
    lost_at.append(trio.current_time())


@pytest.mark.parametrize("idle_for", [0.0, 3.0, 9.9, 10.1, 300.0])
async def test_both_sides_notice_within_20_seconds(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, idle_for: float
) -> None:
    network = MemoryNetwork(nursery)
    agent = await nursery.start(
        lambda task_status: run_agent(
            CONFIG, dial=network.dial, uniform=lambda _a, b: b, task_status=task_status
        )
    )
    proxy_side = await network.sessions.receive()
    await agent.wait_connected()
    agent_side = agent.session
    assert agent_side is not None
    await trio.sleep(idle_for)
    assert not proxy_side.is_closed and not agent_side.is_closed

    network.hole.swallow()
    cut = trio.current_time()
    lost_at: list[float] = []
    async with trio.open_nursery() as watching:
        watching.start_soon(watch, lost_at, proxy_side.wait_closed)
        watching.start_soon(watch, lost_at, agent_side.wait_closed)
    assert all(0 < moment - cut <= 20.0 for moment in lost_at), (cut, lost_at)
    assert isinstance(proxy_side.error, SessionTimeout)
    assert isinstance(agent_side.error, SessionTimeout)
    nursery.cancel_scope.cancel()


async def test_a_dead_peer_is_noticed_while_data_waits_to_be_sent(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    network = MemoryNetwork(nursery)
    agent = await nursery.start(
        lambda task_status: run_agent(CONFIG, dial=network.dial, task_status=task_status)
    )
    proxy_side = await network.sessions.receive()
    await agent.wait_connected()
    stream = await proxy_side.open_stream()
    network.hole.swallow()
    cut = trio.current_time()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await stream.send_all(bytes(10_000_000))
    assert isinstance(caught.value.__cause__, SessionTimeout)
    assert trio.current_time() - cut <= 20.0
    nursery.cancel_scope.cancel()


async def test_the_agent_dials_again_after_noticing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    network = MemoryNetwork(nursery)
    with structlog.testing.capture_logs() as logs:
        await nursery.start(
            lambda task_status: run_agent(
                CONFIG, dial=network.dial, uniform=lambda _a, b: b, task_status=task_status
            )
        )
        await network.sessions.receive()
        await trio.sleep(60)
        network.hole.swallow()
        network.hole = Blackhole()  # the next connection finds another way
        cut = trio.current_time()
        second = await network.sessions.receive()
    assert await second.ping() >= 0
    assert network.dialled[1] - cut <= 20.0 + 0.5
    (ended,) = [line for line in logs if line["event"] == "session ended"]
    assert "silent for 18.0 s" in ended["reason"]
    nursery.cancel_scope.cancel()


async def test_the_back_off_grows_while_the_proxy_is_gone_and_starts_anew_after_it_held(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    network = MemoryNetwork(nursery)
    network.down = ConnectError("nobody listens")
    await nursery.start(
        lambda task_status: run_agent(
            CONFIG, dial=network.dial, uniform=lambda _a, b: b, task_status=task_status
        )
    )
    await trio.sleep(100)
    waits = [b - a for a, b in zip(network.dialled, network.dialled[1:], strict=False)]
    assert waits == pytest.approx([0.5, 1, *[2] * 8, 4, 8, 16, 30])
    network.down = None
    session = await network.sessions.receive()
    await trio.sleep(30)
    session.abort()
    lost = trio.current_time()
    await network.sessions.receive()
    assert trio.current_time() - lost <= 2.5  # 0.5 s, and closing what was left
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_both_sides_notice_over_real_sockets(nursery: trio.Nursery) -> None:
    # A quarter of the default times, which the tests above see pass on a mock clock.
    limits = Limits(keepalive_interval=2.5, keepalive_timeout=2.0)
    async with fake_proxy(limits=limits) as proxy, blackhole_relay(proxy.port) as relay:
        endpoint = ProxyEndpoint(
            url=f"ws://127.0.0.1:{relay.port}/tunnel/connect", token=Secret("t")
        )
        config = msgspec.structs.replace(
            CONFIG, proxy=endpoint, limits=AgentLimitsConfig(session=limits)
        )
        agent = await nursery.start(run_agent, config)
        proxy_side = await proxy.next_session()
        await agent.wait_connected()
        agent_side = agent.session
        assert agent_side is not None
        relay.swallow()
        with trio.fail_after(20):  # 4.5 s, and the machine may be busy
            await proxy_side.wait_closed()
            await agent_side.wait_closed()
        assert isinstance(proxy_side.error, SessionTimeout)
        assert isinstance(agent_side.error, SessionTimeout)
        relay.restore()
        await proxy.next_session()
        nursery.cancel_scope.cancel()
