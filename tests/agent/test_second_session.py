"""The second session of an agent whose proxy tells it of another node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from support.fake_proxy import FakeProxy, No, fake_proxy
from tunnelmux import Limits, Session
from tunnelmux.agent import RunningAgent, run_agent
from tunnelmux.agent.link import ProxyLink
from tunnelmux.agent.monitoring import describe_health
from tunnelmux.agent.nodes import KnownNodes
from tunnelmux.config import (
    AgentConfig,
    BackoffConfig,
    Device,
    LimitsConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.endpoints import dial
from tunnelmux.errors import ConnectError
from tunnelmux.transports import UpgradeRequest
from tunnelmux.wire import AgentNode, list_nodes, read_nodes

pytestmark = pytest.mark.timeout(300)

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]
FAST = BackoffConfig(minimum=0.01, maximum=0.02)


@dataclass
class Pair:
    """Two nodes that tell of each other. The agent's configuration leads to `a`."""

    a: FakeProxy
    b: FakeProxy
    tells: bool = True
    refuses: No | None = None
    refuses_at_a: No | None = None

    def nodes(self, here: str) -> bytes:
        urls = {"a": self.a.url, "b": self.b.url}
        return list_nodes(AgentNode(name, url, "", name == here) for name, url in urls.items())

    def config(self, make_config: MakeConfig, sessions: int = 2) -> AgentConfig:
        proxy = ProxyEndpoint(url=self.a.url, token=Secret("t1"), sessions=sessions)
        return make_config(proxy=proxy, backoff=FAST)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_nodes() as pair:
        yield pair


@asynccontextmanager
async def two_nodes() -> AsyncIterator[Pair]:
    def answer_at(here: str) -> Callable[[UpgradeRequest], No | list[tuple[bytes, bytes]]]:
        def answer(_: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
            if here == "b" and pair.refuses is not None:
                return pair.refuses
            if here == "a" and pair.refuses_at_a is not None:
                return pair.refuses_at_a
            return [(b"Tunnelmux-Nodes", pair.nodes(here))] if pair.tells else []

        return answer

    async with fake_proxy(answer_at("a")) as a, fake_proxy(answer_at("b")) as b:
        pair = Pair(a, b)
        yield pair


async def call(session: Session, method: str, path: str, body: str = "") -> int:
    """The status of the agent's answer."""
    head = f"{method} http://agent.tunnelmux{path} HTTP/1.1\r\nHost: agent.tunnelmux\r\n"
    stream = await session.open_stream()
    with trio.fail_after(120):
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        await stream.send_all(head.encode())
        return int(b"".join([data async for data in stream]).split()[1])


async def test_either_serves_and_the_second_says_beside_which_it_is(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    agent = await start_agent(pair.config(make_config))
    first, second = await pair.a.next_session(), await pair.b.next_session()
    for session in (first, second):
        assert await call(session, "GET", "/v1/info") == 200
    (to_a,), (to_b,) = pair.a.requests, pair.b.requests
    assert to_a.header("Tunnelmux-Sessions") == to_b.header("Tunnelmux-Sessions") == "2"
    assert to_a.header("Tunnelmux-Instance") == to_b.header("Tunnelmux-Instance")
    assert (to_a.header("Tunnelmux-Beside"), to_b.header("Tunnelmux-Beside")) == (None, "a")
    assert to_b.token == "t1"
    health = describe_health(agent)
    assert [(one["node"], one["proxy"]) for one in health["sessions"]] == [  # type: ignore[attr-defined]
        ("a", pair.a.url),
        ("b", pair.b.url),
    ]
    assert (health["reconnects"], agent.figures.sessions_now) == (0, 2)


async def test_a_flood_of_streams_on_one_leaves_the_other_its_own(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    """Both had one number of places for streams, and one for connections to targets."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]  # connects, and never says anything
    config = msgspec.structs.replace(
        pair.config(make_config),
        services=[ServiceConfig(name="raw", target=f"tcp://127.0.0.1:{port}")],
        limits=LimitsConfig(session=Limits(max_streams=16)),
    )
    await start_agent(config)
    flooded, other = await pair.a.next_session(), await pair.b.next_session()
    for session, count in ((flooded, 16), (other, 15)):
        for _ in range(count):
            stream = await session.open_stream()
            await stream.send_all(b"CONNECT raw HTTP/1.1\r\nHost: raw\r\n\r\n")
            with trio.fail_after(120):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
    assert await call(other, "GET", "/v1/info") == 200
    for listener in listeners:
        await listener.aclose()


async def test_each_is_made_again_by_itself(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    agent = await start_agent(pair.config(make_config))
    first, second = await pair.a.next_session(), await pair.b.next_session()
    second.abort()
    second = await pair.b.next_session()
    assert not first.is_closed
    first.abort()
    first = await pair.a.next_session()
    assert await call(second, "GET", "/v1/info") == 200
    assert pair.a.requests[-1].header("Tunnelmux-Beside") == "b"
    assert describe_health(agent)["reconnects"] == 2
    # Both are lost at once, as when the network of the device changes.
    first.abort()
    second.abort()
    for proxy in (pair.a, pair.b):
        assert await call(await proxy.next_session(), "GET", "/v1/info") == 200


@pytest.mark.parametrize("ends_by", ["news", "loss"])
async def test_it_is_not_in_a_hurry_while_the_other_session_serves(
    ends_by: str, pair: Pair, make_config: MakeConfig, nursery: trio.Nursery
) -> None:
    """All agents of a node that died would keep the other one busy with refusing them."""
    calm = BackoffConfig(minimum=600, maximum=600, early=0.01)
    proxy = ProxyEndpoint(url=pair.a.url, token=Secret("t1"))
    config = make_config(proxy=proxy, backoff=calm)
    await nursery.start(partial(run_agent, config, uniform=lambda _least, most: most))
    first, second = await pair.a.next_session(), await pair.b.next_session()
    waits: list[float] = []
    with capture_logs() as logs, trio.fail_after(120):
        first.abort()
        while not waits:
            await trio.sleep(0.01)
            waits = [line["retry_in"] for line in logs if line["event"] == "connecting again"]
    assert waits == [6000.0]
    if ends_by == "news":
        assert await call(second, "POST", "/v1/nodes", pair.nodes("b").decode()) == 204
        assert await call(await pair.a.next_session(), "GET", "/v1/info") == 200
        assert not second.is_closed
    else:
        second.abort()
        assert await call(await pair.a.next_session(), "GET", "/v1/info") == 200


async def test_waits_that_grew_while_a_node_was_away_begin_anew_when_it_is_back(
    pair: Pair, make_config: MakeConfig, nursery: trio.Nursery
) -> None:
    """It is asked by all agents at once then, and cannot take each at its first attempt."""
    pair.refuses = No(503, "no-place", "come again")
    proxy = ProxyEndpoint(url=pair.a.url, token=Secret("t1"))
    backoff = BackoffConfig(minimum=0.001, early=0.001, maximum=600)
    config = make_config(proxy=proxy, backoff=backoff)

    def waits() -> list[float]:
        return [line["retry_in"] for line in logs if line["event"] == "not connected"]

    with capture_logs() as logs, trio.fail_after(120):
        await nursery.start(partial(run_agent, config, uniform=lambda _least, most: most))
        first = await pair.a.next_session()
        while max(waits(), default=0.0) < 0.1:  # noqa: ASYNC110
            await trio.sleep(0.01)
        before = len(waits())
        assert await call(first, "POST", "/v1/nodes", pair.nodes("a").decode()) == 204
        while len(waits()) < before + 2:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert waits()[before : before + 2] == [0.01, 0.01]


async def test_where_the_url_leads_to_the_same_node_another_is_dialled_at_once(
    pair: Pair, make_config: MakeConfig, nursery: trio.Nursery
) -> None:
    config = msgspec.structs.replace(
        pair.config(make_config), backoff=BackoffConfig(minimum=0.01, maximum=600, early=0.01)
    )
    with capture_logs() as logs:
        await nursery.start(partial(run_agent, config, uniform=lambda _least, most: most))
        first, second = await pair.a.next_session(), await pair.b.next_session()
        pair.refuses_at_a = No(409, "already-here", "you have a session with this node")
        first.abort()
        waits: list[float] = []
        with trio.fail_after(120):
            while len(waits) < 2:
                await trio.sleep(0.01)
                found = [line for line in logs if line["event"] == "already connected there"]
                waits = [line["retry_in"] for line in found]
    # `a` was not tried by its own name yet; when it was, there is none left to try.
    assert waits[:2] == [0.01, 0.1]
    assert await call(second, "GET", "/v1/info") == 200


async def test_an_agent_may_be_told_later(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    pair.tells = False
    await start_agent(pair.config(make_config))
    first = await pair.a.next_session()
    assert await call(first, "GET", "/v1/nodes") == 405
    assert await call(first, "POST", "/v1/nodes", "\0;url=x, ,;, " * 5000) == 400
    assert await call(first, "POST", "/v1/nodes", "\0;url=x, ,;, " * 1000) == 204
    assert await call(first, "POST", "/v1/nodes", pair.nodes("a").decode()) == 204
    await pair.b.next_session()
    assert len(pair.a.requests) == 1


async def test_a_second_node_that_does_not_know_the_device_ends_nothing(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    pair.refuses = No(401, "unauthorized", "no device has this token")
    agent = await start_agent(pair.config(make_config))
    first = await pair.a.next_session()
    with trio.fail_after(120):
        while len(pair.b.requests) < 3:  # noqa: ASYNC110  it is asked again and again
            await trio.sleep(0.01)
    assert await call(first, "GET", "/v1/info") == 200
    pair.refuses = None
    await pair.b.next_session()
    assert agent.figures.connect_failures["unauthorized"] >= 3


async def test_the_configuration_says_how_many(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    agent = await start_agent(pair.config(make_config))
    first, second = await pair.a.next_session(), await pair.b.next_session()
    await agent.reload(pair.config(make_config, sessions=1))
    alone = await pair.a.next_session()
    assert await call(alone, "GET", "/v1/info") == 200
    await first.wait_closed()
    await second.wait_closed()
    assert pair.a.requests[-1].header("Tunnelmux-Sessions") is None
    assert len(agent.sessions_now) == 1
    await agent.reload(pair.config(make_config))
    await pair.a.next_session()
    await pair.b.next_session()


async def test_a_drain_ends_both(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    agent = await start_agent(pair.config(make_config))
    first, second = await pair.a.next_session(), await pair.b.next_session()
    with trio.fail_after(120):
        await agent.drain(5)
    assert first.is_closed
    assert second.is_closed


async def test_the_second_moves_to_the_same_node_when_it_is_asked_to(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    """As the proxy asks before another program takes its place."""
    await start_agent(pair.config(make_config))
    first, second = await pair.a.next_session(), await pair.b.next_session()
    assert await call(second, "POST", "/v1/move") == 204
    third = await pair.b.next_session()
    assert pair.b.requests[-1].header("Tunnelmux-Beside") == "a"
    await second.aclose()
    assert await call(third, "GET", "/v1/info") == 200
    assert not first.is_closed
    assert len(pair.a.requests) == 1


async def test_a_session_whose_proxy_will_end_it_is_followed_before_it_does(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    await start_agent(pair.config(make_config, sessions=1))
    first = await pair.a.next_session()
    stream = await first.open_stream()
    await stream.send_all(b"GET ")  # what keeps the session
    first.go_away()
    next_one = await pair.a.next_session()
    assert not first.is_closed
    assert await call(next_one, "GET", "/v1/info") == 200
    await first.aclose()
    assert await call(next_one, "GET", "/v1/info") == 200
    assert len(pair.a.requests) == 2


# ------------------------------------------------------------------------ which node is dialled


def known(*nodes: AgentNode) -> KnownNodes:
    found = KnownNodes()
    found.learn(list_nodes(nodes).decode(), lambda url: None if url.startswith("wss:") else "no")
    return found


def names(found: KnownNodes, held: set[str]) -> Iterator[str | None]:
    while (node := found.choose(held)) is not None:
        yield node.name
        found.failed(node.name)


def test_another_domain_comes_first_and_what_failed_last() -> None:
    a, b, c = [
        AgentNode(name, f"wss://{name}.example/t", domain)
        for name, domain in (("a", "rack-1"), ("b", "rack-1"), ("c", "rack-2"))
    ]
    found = known(a._replace(is_here=True), b, c)
    tried = names(found, {"a"})
    assert [next(tried) for _ in range(4)] == ["c", "b", "c", "b"]
    assert known(a, b, c).choose({"a", "b", "c"}) is None
    assert known(b._replace(url=""), c._replace(url="ws://c.example/t")).choose(set()) is None
    # Where no domain is told, none is taken for the same.
    plain = known(a._replace(domain=""), b._replace(domain=""))
    assert plain.choose({"a"}) == b._replace(domain="")


def test_a_list_of_nodes_is_read_as_it_was_written() -> None:
    nodes = [
        AgentNode("a", is_here=True),
        AgentNode("b.c_d-1", "wss://b.example:443/tunnel/connect?x=1", "rack-1"),
    ]
    assert read_nodes(list_nodes(nodes).decode()) == nodes
    assert list_nodes(nodes).startswith(b"a;here, b.c_d-1;url=wss://")
    many = [AgentNode(f"n{number}") for number in range(100)]
    assert read_nodes(list_nodes(many).decode()) == many[:8]
    assert read_nodes("a;url=http://x, b;url=wss://x y, ;here, c;domain=\n, \xff") == [
        AgentNode("c")
    ]


PATH = "/tunnel/connect"


@pytest.mark.parametrize(
    ("configured", "told", "objection"),
    [
        ("wss://p.example/t", "wss://q.example/t", None),
        ("wss://p.example/t", f"wss://q.example{PATH}", None),
        ("ws://p.example/t", "ws://q.example/t", None),
        ("ws://p.example/t", "wss://q.example/t", None),
        # The token is not shown where the way is weaker.
        ("wss://p.example/t", "ws://q.example/t", "its URL is ws://"),
        ("ws://p.example/t", "wss://q:x@q.example/t", "user name or password"),
        ("ws://p.example/t", "gopher://q.example/t", "the scheme 'gopher'"),
        # The proxy chooses no request of this device's.
        ("ws://p.example/t", "ws://q.example/admin/delete", "the path of its URL"),
        ("ws://p.example/t", "ws://q.example/t?all=1", "the path of its URL"),
        ("ws://p.example/t", f"ws://q.example{PATH}?all=1", "the path of its URL"),
        ("ws://p.example/t", "ws://q.example", "the path of its URL"),
    ],
)
def test_what_a_proxy_tells_of_is_looked_at_before_it_is_dialled(
    configured: str, told: str, objection: str | None
) -> None:
    endpoint = ProxyEndpoint(url=configured, token=Secret("t1"))
    answer = ProxyLink(endpoint, Device(name="dev1")).objection(told)
    assert answer is None if objection is None else objection in str(answer)


@pytest.mark.parametrize(
    ("host", "may"),
    [("q.example", True), ("10.1.2.3", False), ("localhost", False), ("127.1", False)],
)
def test_behind_an_http_proxy_an_address_that_is_further_inside_is_not_asked_for(
    host: str, may: bool
) -> None:
    endpoint = ProxyEndpoint(
        url="ws://p.example/t", token=Secret("t1"), http_proxy=Secret("http://127.0.0.1:3128")
    )
    link = ProxyLink(endpoint, Device(name="dev1"))
    assert (link.objection(f"ws://{host}/t") is None) is may


async def test_a_hostile_proxy_calls_nothing_inside_by_way_of_the_agent(
    pair: Pair, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    bad_path = pair.b.url.replace(PATH, "/admin/delete")
    with capture_logs() as logs:
        agent = await start_agent(pair.config(make_config))
        session = await pair.a.next_session()
        await pair.b.next_session()
        assert await call(session, "POST", "/v1/nodes", f"a;here, c;url={bad_path}") == 204
        assert agent.tunnels.nodes.choose(["a"]) is None
        link = agent.tunnels.link
        assert link is not None
        # As if the proxy had been reached at an address of the whole world.
        link.way.good = {"127.0.0.1": "203.0.114.1"}
        way = link.way_to(pair.b.url)
        with pytest.raises(ConnectError, match="its address is further inside than that of"):
            async with dial(pair.b.url, token="t1", way=way):
                pass
    assert {request.path for request in pair.b.requests} == {PATH}
    assert len(pair.b.requests) == 1
    (line,) = [line for line in logs if line["event"] == "node not dialled"]
    assert (line["node"], "path" in line["cause"]) == ("c", True)


@pytest.mark.parametrize("count", [0, 3])
def test_other_numbers_of_sessions_are_refused(count: int) -> None:
    with pytest.raises(InvalidSetting, match=f"{count} is not 1 or 2"):
        ProxyEndpoint(url="ws://proxy/t", token=Secret("t"), sessions=count)
