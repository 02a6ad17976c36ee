"""An agent that is asked to move makes its next session before it leaves the present one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from support.fake_proxy import FakeProxy, No, fake_proxy
from tunnelmux import Session
from tunnelmux.agent import RunningAgent
from tunnelmux.config import AgentConfig, BackoffConfig, ProxyEndpoint, Secret
from tunnelmux.transports import UpgradeRequest

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]
FAST = BackoffConfig(minimum=0.01, maximum=0.02)


class Answers:
    """Takes all agents, until it says otherwise."""

    refuses = False

    def __call__(self, _: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
        return No(503, "proxy-draining") if self.refuses else []


async def ask(session: Session, method: str = "POST", path: str = "/v1/move") -> int:
    """The status of the agent's answer."""
    head = f"{method} http://agent.tunnelmux{path} HTTP/1.1\r\nHost: agent.tunnelmux\r\n"
    stream = await session.open_stream()
    with trio.fail_after(30):
        await stream.send_all(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        return int(b"".join([data async for data in stream]).split()[1])


def config_at(make_config: MakeConfig, proxy: FakeProxy) -> AgentConfig:
    return make_config(proxy=ProxyEndpoint(url=proxy.url, token=Secret("t1")), backoff=FAST)


async def test_both_sessions_serve_until_the_first_is_over(
    make_config: MakeConfig, start_agent: StartAgent
) -> None:
    async with fake_proxy(Answers()) as proxy:
        agent = await start_agent(config_at(make_config, proxy))
        first = await proxy.next_session()
        assert await ask(first) == 204
        second = await proxy.next_session()
        for session in (first, second):
            assert await ask(session, "GET", "/v1/info") == 200
        assert agent.session is not None
        first.go_away()
        assert await ask(second, "GET", "/v1/info") == 200
        await first.aclose()
        assert await ask(second, "GET", "/v1/info") == 200
        assert agent.figures.is_up
        assert len(proxy.requests) == 2
        # It moves as often as it is asked to, and dials again by itself as ever.
        assert await ask(second) == 204
        third = await proxy.next_session()
        await second.aclose()
        assert await ask(third, "GET", "/v1/info") == 200
        await third.aclose()
        assert await ask(await proxy.next_session(), "GET", "/v1/info") == 200
        assert len(proxy.requests) == 4


async def test_one_that_cannot_move_stays(make_config: MakeConfig, start_agent: StartAgent) -> None:
    answers = Answers()
    async with fake_proxy(answers) as proxy:
        await start_agent(config_at(make_config, proxy))
        first = await proxy.next_session()
        answers.refuses = True
        assert await ask(first) == 502
        assert await ask(first, "GET", "/v1/info") == 200
        assert await ask(first, "GET") == 405
        answers.refuses = False
        assert await ask(first) == 204
        await proxy.next_session()


async def test_a_proxy_that_never_ends_a_session_gets_so_many_and_no_more(
    make_config: MakeConfig, start_agent: StartAgent
) -> None:
    async with fake_proxy(Answers()) as proxy:
        await start_agent(config_at(make_config, proxy))
        sessions = [await proxy.next_session()]
        for _ in range(4):
            assert await ask(sessions[-1]) == 204
            sessions.append(await proxy.next_session())
        assert await ask(sessions[-1]) == 502
        assert len(proxy.requests) == 5
        await sessions[0].aclose()  # the second takes its place
        with trio.fail_after(30):
            while await ask(sessions[-1]) != 204:  # noqa: ASYNC110
                await trio.sleep(0.01)


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_next_session_that_breaks(
    make_config: MakeConfig, start_agent: StartAgent, leaves: bool
) -> None:
    async with fake_proxy(Answers()) as proxy:
        agent = await start_agent(config_at(make_config, proxy))
        first = await proxy.next_session()
        assert await ask(first) == 204
        second = await proxy.next_session()
        if leaves:
            # A stream keeps it, but its proxy is about to end: the agent leaves it and dials.
            stream = await first.open_stream()
            await stream.send_all(b"GET ")
            first.go_away()
            await first.ping()
            await second.aclose()
            third = await proxy.next_session()
            assert await ask(third, "GET", "/v1/info") == 200
            assert first.is_closed
        else:
            await second.aclose()
            assert await ask(first, "GET", "/v1/info") == 200
            assert agent.figures.is_up
            assert await ask(first) == 204
            await proxy.next_session()


async def test_a_drain_ends_both(make_config: MakeConfig, start_agent: StartAgent) -> None:
    async with fake_proxy(Answers()) as proxy:
        agent = await start_agent(config_at(make_config, proxy))
        first = await proxy.next_session()
        assert await ask(first) == 204
        second = await proxy.next_session()
        with trio.fail_after(30):
            await agent.drain(5)
        assert first.is_closed
        assert second.is_closed
