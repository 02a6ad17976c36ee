"""A service whose target may take another time to begin an answer than all others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from support.fake_proxy import FakeProxy
from tunnelmux.agent import RunningAgent
from tunnelmux.agent.services import ServiceTable, may_be_relayed
from tunnelmux.config import AgentConfig, LimitsConfig, ServiceConfig
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session
from tunnelmux.wire import LONGEST_TIMEOUT, list_timeouts, read_timeouts

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
MakeConfig = Callable[..., AgentConfig]

WEB = ServiceConfig(name="web", target="8000")
SLOW = ServiceConfig(name="slow", target="8001", response_timeout=300)


async def ask(session: Session) -> bytes:
    async with await session.open_stream() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        with trio.fail_after(20):
            return b"".join([bytes(part) async for part in stream])


@pytest.mark.parametrize(("own", "usual", "status"), [(0.1, 60, b" 504 "), (60, 0.1, b" 200 ")])
async def test_it_counts_in_place_of_the_limit_of_all(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    own: float,
    usual: float,
    status: bytes,
) -> None:
    async def answer_late(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if status == b" 504 ":
            await trio.sleep_forever()
        await trio.sleep(0.5)  # longer than all others may take
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    port = await start_target(answer_late)
    service = ServiceConfig(name="web", target=str(port), response_timeout=own)
    limits = LimitsConfig(ingress=IngressLimits(response_timeout=usual))
    await start_agent(make_config(service, limits=limits))
    session = await proxy.next_session()
    assert status in (await ask(session))[:16]
    (request,) = proxy.requests
    assert request.header("Tunnelmux-Response-Timeouts") == f"web={own:g};default"


def test_its_requests_are_read_by_the_agent_which_watches_the_time() -> None:
    assert may_be_relayed(WEB)
    assert not may_be_relayed(SLOW)


async def test_what_is_announced(make_config: MakeConfig) -> None:
    camera = ServiceConfig(name="camera", target="8002", response_timeout=0.5)
    assert ServiceTable(make_config(WEB, SLOW, camera)).timeouts == b"slow=300, camera=0.5"
    assert ServiceTable(make_config(SLOW)).timeouts == b"slow=300;default"
    assert ServiceTable(make_config(WEB)).timeouts == b""


def test_what_a_proxy_reads_of_it() -> None:
    assert read_timeouts("slow=300;default, camera=0.5") == {"slow": 300, None: 300, "camera": 0.5}
    assert read_timeouts("a=999999") == {"a": LONGEST_TIMEOUT}
    assert read_timeouts("") == read_timeouts("a, b=, c=x, d=-1, e=1e9, f=inf, =") == {}
    many = list_timeouts({f"s{number}": 1 for number in range(1000)}, None).decode()
    assert len(read_timeouts(many)) == len(read_timeouts(many + ", more=1")) == 64


@pytest.mark.parametrize("seconds", [0, -1, 3601])
def test_times_that_cannot_be(seconds: float) -> None:
    with pytest.raises(InvalidSetting, match="is not above 0 and at most 3600"):
        ServiceConfig(name="web", target="80", response_timeout=seconds)
    with pytest.raises(InvalidSetting, match="for targets that speak HTTP"):
        ServiceConfig(name="ssh", target="tcp://127.0.0.1:22", response_timeout=5)
