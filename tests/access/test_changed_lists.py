"""Address lists that change judge those once more who came in before."""

from __future__ import annotations

import msgspec
import pytest
import trio

from support.proxies import agent_of, free_port, proxy_config, running
from support.streams import next_bytes
from support.visits_under_way import is_cut
from tunnelmux.config import ProxyConfig, TcpIngress
from tunnelmux.http.connect import CONNECT_ANSWER


def with_ports(config: ProxyConfig, *ports: TcpIngress) -> ProxyConfig:
    return msgspec.structs.replace(
        config, ingress=msgspec.structs.replace(config.ingress, tcp=list(ports))
    )


async def agreed(agent) -> trio.abc.Stream:  # type: ignore[no-untyped-def]
    """The device's end of a TCP visit that has begun."""
    stream = await agent.accept_stream()
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    await stream.send_all(CONNECT_ANSWER)
    return stream


@pytest.mark.parametrize(
    "lists", [{"deny_from": ["127.0.0.0/8"]}, {"allow_from": ["192.0.2.0/24"]}]
)
async def test_a_visit_by_tcp_ends_when_its_address_may_not_come_any_more(
    lists: dict[str, list[str]],
) -> None:
    """Of two services on two ports: the other one's visit goes on."""
    config = proxy_config()
    ssh = TcpIngress(listen=f"127.0.0.1:{free_port()}", device="dev1", service="ssh")
    db = TcpIngress(listen=f"127.0.0.1:{free_port()}", device="dev1", service="db")
    async with running(with_ports(config, ssh, db)) as proxy, agent_of(proxy) as agent:
        ends = []
        for port in proxy.tcp_addresses:
            visitor = await trio.open_tcp_stream(*port)
            ends.append((visitor, await agreed(agent)))
        (cut, _), (stays, theirs) = ends
        await proxy.reload(with_ports(config, msgspec.structs.replace(ssh, **lists), db))
        with trio.fail_after(30):
            assert await is_cut(cut)
        await stays.send_all(b"still here")
        assert await next_bytes(theirs, 10) == b"still here"
        await stays.aclose()


async def test_a_visit_goes_on_that_another_port_to_its_service_lets_in() -> None:
    config = proxy_config()
    one, two = (
        TcpIngress(listen=f"127.0.0.1:{free_port()}", device="dev1", service="ssh")
        for _ in range(2)
    )
    async with running(with_ports(config, one, two)) as proxy, agent_of(proxy) as agent:
        visitor = await trio.open_tcp_stream(*proxy.tcp_addresses[0])
        theirs = await agreed(agent)
        denied = msgspec.structs.replace(one, deny_from=["127.0.0.1"])
        await proxy.reload(with_ports(config, denied, two))
        await visitor.send_all(b"still here")
        assert await next_bytes(theirs, 10) == b"still here"
        await visitor.aclose()


async def test_a_tunnel_ends_when_its_address_may_not_connect_any_more() -> None:
    config = proxy_config()
    async with running(config) as proxy, agent_of(proxy) as agent:
        tunnel = msgspec.structs.replace(config.tunnel, allow_from=["192.0.2.0/24"])
        report = await proxy.reload(msgspec.structs.replace(config, tunnel=tunnel))
        assert report.kicked == ["dev1"]
        with trio.fail_after(30):
            await agent.wait_closed()
