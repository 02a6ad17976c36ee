"""A device that may not go on loses its session and all its visits at once."""

from __future__ import annotations

import json

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux.config import (
    Address,
    DeviceConfig,
    InternalListener,
    LimitsConfig,
    ProxyConfig,
    Secret,
)
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session
from tunnelmux.proxy import RunningProxy

WITHIN = 20.0
"""Seconds, on the busiest machine. No time runs out by itself in as many."""

PORT = "127.0.0.1:0"

DEV1 = DeviceConfig(name="dev1", token=Secret("token-of-dev1"))
DEV2 = DeviceConfig(name="dev2", token=Secret("token-of-dev2"))

CHANGES = {
    "removed": (DEV2,),
    "disabled": (msgspec.structs.replace(DEV1, enabled=False), DEV2),
    "given another token": (msgspec.structs.replace(DEV1, token=Secret("another")), DEV2),
}


def configuration(devices: tuple[DeviceConfig, ...] = (DEV1, DEV2)) -> ProxyConfig:
    config = proxy_config(tcp=(PORT,) if DEV1.name in {d.name for d in devices} else ())
    return msgspec.structs.replace(
        config,
        devices=list(devices),
        internal=InternalListener(listen="127.0.0.1:0"),
        limits=LimitsConfig(ingress=IngressLimits(reconnect_wait=300.0)),
    )


async def dial(address: Address | None) -> Peer:
    assert address is not None
    return Peer(await trio.open_tcp_stream(*address))


class Visits:
    """A download, an idle connection, a WebSocket and a command, all of dev1."""

    def __init__(self, proxy: RunningProxy, agent: Session) -> None:
        self._proxy = proxy
        self._agent = agent
        self.ends: dict[str, Peer] = {}

    async def begin(self) -> None:
        self.ends["download"] = await self._download()
        self.ends["relay"] = await self._relay()
        self.ends["websocket"] = await self._websocket()
        self.ends["command"] = await self._command()

    async def _served(self) -> Peer:
        stream = Peer(await self._agent.accept_stream())
        await stream.read_head()
        return stream

    async def _download(self) -> Peer:
        visitor = await dial(self._proxy.http_address)
        await visitor.send(b"GET /large HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n")
        stream = await self._served()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + bytes(100_000))
        await visitor.read_head()
        await visitor.read_exactly(100_000)
        return visitor

    async def _relay(self) -> Peer:
        visitor = await dial(self._proxy.tcp_addresses[0])
        stream = await self._served()
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-server\r\n")
        await visitor.read_exactly(16)
        return visitor

    async def _websocket(self) -> Peer:
        visitor = await dial(self._proxy.http_address)
        await visitor.send(
            b"GET /chat HTTP/1.1\r\nHost: dev1.localhost\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        stream = await self._served()
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n\x81\x02hi"
        )
        await visitor.read_head()
        await visitor.read_exactly(4)
        return visitor

    async def _command(self) -> Peer:
        caller = await dial(self._proxy.internal_address)
        content = json.dumps(
            {
                "devices": "dev1",
                "host": "h",
                "username": "u",
                "password": "p",
                "command": "sleep 60",
            }
        ).encode()
        await caller.send(
            b"POST /internal/exec HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
        )
        stream = await self._served()
        await stream.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        await caller.read_until(b'"begin"')
        return caller


async def end_of(peer: Peer) -> bytes:
    """What comes until the connection ends, however it ends."""
    try:
        return await peer.read_all()
    except trio.BrokenResourceError:
        return peer._buffer


@pytest.mark.parametrize("change", CHANGES)
async def test_a_device_that_may_not_go_on_takes_its_visits_with_it(change: str) -> None:
    async with (
        running(configuration()) as proxy,
        agent_of(proxy) as agent,
        agent_of(proxy, "dev2") as other,
    ):
        visits = Visits(proxy, agent)
        await visits.begin()
        live = proxy.visits.of_device("dev1")
        assert sorted(visit.way for visit in live) == ["exec", "http", "http", "tcp"]
        with capture_logs() as logs:
            report = await proxy.reload(configuration(CHANGES[change]))
            assert report.kicked == ["dev1"]
            ends: dict[str, bytes] = {}
            with trio.fail_after(WITHIN):
                for name, visitor in visits.ends.items():
                    ends[name] = await end_of(visitor)
                await agent.wait_closed()
        assert b'"reason":"lost"' in ends["command"]
        assert proxy.visits.of_device("dev1") == []
        assert not other.is_closed
        [line] = [line for line in logs if line["event"] == "relay"]
        assert f"the device was {change}" in line["problem"]
        for visitor in visits.ends.values():
            await visitor.stream.aclose()


async def test_a_visitor_that_waits_for_a_device_is_sent_away_when_that_is_removed() -> None:
    async with running(configuration()) as proxy:
        async with agent_of(proxy):
            pass
        with trio.fail_after(20):
            while await proxy.store.find_device("dev1"):  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
        visitor = await dial(proxy.tcp_addresses[0])
        with trio.fail_after(20):
            while not len(proxy.visits):  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
        await proxy.reload(configuration((DEV2,)))
        with trio.fail_after(WITHIN), pytest.raises(trio.BrokenResourceError):
            await visitor.read_all()
        await visitor.stream.aclose()
