"""Who gets in where many come from one address: strangers that say nothing, a load balancer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.crowds import crowd, let_pass, many_files
from support.socketio_peers import PROXY_ID
from support.socketio_proxy import AgentSide, agent_side, limits_with
from support.socketio_wire import AUTH, exchange, websocket
from tunnelmux.config import Address

QUERY = "EIO=4&transport=polling"
TRUSTED = ("127.0.0.1",)


async def from_client(port: int, address: str, *, source: str = "127.0.0.1") -> int:
    """The status of a polling handshake that says it is for a client at *address*."""
    fields = f"X-Forwarded-For: {address}\r\n"
    return (await exchange(port, query=QUERY, source=source, fields=fields))[0]


@pytest.fixture
def allowed_files() -> Iterator[None]:
    with many_files():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("allowed_files")
@pytest.mark.parametrize("says", [b"", b"GET /socket.io/?EIO=4"], ids=["nothing", "half a head"])
async def test_an_agent_gets_in_within_2_s_beside_2000_connections_of_one_address(
    says: bytes, mock_clock: trio.testing.MockClock
) -> None:
    # No place becomes free by itself while the test lasts.
    limits = limits_with(first_byte_timeout=300.0, head_timeout=300.0, handshake_timeout=300.0)
    async with agent_side(limits=limits) as side:
        with capture_logs() as logs:
            async with (
                crowd("127.0.0.2", Address("127.0.0.1", side.port), says=says),
                trio.open_nursery() as nursery,
            ):
                while not logs:
                    await trio.lowlevel.checkpoint()  # until they are there
                nursery.start_soon(let_pass, mock_clock, 2.0)
                for transports in ("polling", "websocket"):
                    async with side.agent(transports=transports):
                        while side.server.connected != [PROXY_ID]:
                            await trio.lowlevel.checkpoint()
    assert {line["address"] for line in logs if "address" in line} == {"127.0.0.2"}
    assert 1 <= len([line for line in logs if line["event"].startswith("connections ")]) < 10


async def sessions(side: AgentSide, count: int) -> None:
    """Return when so many clients are connected, strangers among them."""
    with trio.fail_after(30):
        while side.server.session_count != count:  # noqa: ASYNC110  nobody tells
            await trio.sleep(0.01)


async def test_agents_behind_a_trusted_proxy_count_by_their_own_addresses() -> None:
    limits = limits_with(max_arrivals_per_address=1)
    async with agent_side(limits=limits, trusted_proxies=TRUSTED) as side:
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "6.6.6.6, 192.0.2.3"):
            assert await from_client(side.port, address) == 200
        assert side.server.session_count == 4
        for again in ("192.0.2.1", "2001:db8::2", "7.7.7.7, 192.0.2.3"):
            assert await from_client(side.port, again) == 200
        await sessions(side, 4)  # of each address the older one gave way


async def test_a_peer_that_is_not_trusted_cannot_say_where_it_is() -> None:
    limits = limits_with(max_arrivals_per_address=1)
    async with agent_side(limits=limits, trusted_proxies=("127.0.0.7",)) as side:
        for number in range(3):
            assert await from_client(side.port, f"192.0.2.{number}") == 200
        await sessions(side, 1)


async def test_what_a_trusted_proxy_says_that_is_no_address_is_not_believed() -> None:
    async with agent_side(trusted_proxies=TRUSTED) as side:
        for claim in ("", "unknown", "192.0.2.1:80x", "\xff"):
            assert await from_client(side.port, claim) == 200


async def test_one_client_behind_a_trusted_proxy_takes_no_more_places_than_another() -> None:
    limits = limits_with(max_arrivals_per_address=1, handshake_timeout=300.0)
    async with (
        agent_side(limits=limits, trusted_proxies=TRUSTED) as side,
        AsyncExitStack() as stack,
    ):
        fields = "X-Forwarded-For: 192.0.2.1\r\n"
        _, body = await exchange(side.port, query=QUERY, fields=fields)
        upgrade = "EIO=4&transport=websocket&sid=" + body.split('"sid":"')[1].split('"')[0]
        stack.push_async_callback(side.server.aclose)
        # Neither goes on: an upgrade, and a poll.
        await stack.enter_async_context(websocket(side.port, upgrade, client="192.0.2.1"))
        poll = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", side.port))
        target = "/socket.io/?" + upgrade.replace("websocket", "polling")
        await poll.send_all(f"GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
        with trio.fail_after(30):
            while len(side.server.admission) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        async with websocket(side.port, upgrade, client="192.0.2.1") as (_, receive):
            assert await receive() == 503
        async with websocket(side.port, client="192.0.2.2") as (_, receive):
            assert (await receive()).startswith("0{")


async def test_the_log_has_the_address_of_the_agent_behind_a_trusted_proxy() -> None:
    with capture_logs() as logs:
        async with agent_side(trusted_proxies=TRUSTED) as side:
            fields = "X-Forwarded-For: 192.0.2.1\r\n"
            status, body = await exchange(side.port, query=QUERY, fields=fields)
            assert status == 200
            sid = body.split('"sid":"')[1].split('"')[0]
            query = f"{QUERY}&sid={sid}"
            joining = f"40/proxy,{AUTH}"
            assert await exchange(side.port, "POST", query, joining) == (200, "ok")
            await side.connected(PROXY_ID)
    (line,) = [line for line in logs if line["event"] == "agent connected"]
    assert line["remote"] == "192.0.2.1"
