"""Visitors reach several devices under one name: a real proxy, real agents, real sockets."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio

from support.http_rig import Peer
from support.origin import serving
from support.proxies import proxy_config, running
from tunnelmux.agent import run_agent
from tunnelmux.config import (
    AgentConfig,
    Device,
    DeviceConfig,
    HttpIngress,
    Ingress,
    LimitsConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
    TcpIngress,
)
from tunnelmux.config.access import AccessConfig, ServiceAccess
from tunnelmux.config.groups import GroupConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy import RunningProxy

NAMES = ("shop-1", "shop-2", "shop-3")


class Target:
    """The web server at one device, which answers with the device's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: set[trio.SocketStream] = set()
        self.heads: list[bytes] = []

    async def handle(self, stream: trio.SocketStream) -> None:
        peer, body = Peer(stream), self.name.encode()
        self.connections.add(stream)
        try:
            while True:
                self.heads.append(await peer.read_head())
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                await peer.send(head + body)
        except (AssertionError, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            self.connections.discard(stream)
            await trio.aclose_forcefully(stream)

    async def run(self, task_status: trio.TaskStatus[str]) -> None:
        with trio.CancelScope() as self._listeners:
            async with serving(self.handle) as address:
                task_status.started(f"http://{address}")
                await trio.sleep_forever()

    def stop(self) -> None:
        """Refuse connections from now on, and end those that there are."""
        self._listeners.cancel()


@dataclass
class Shop:
    """A proxy with the group `shop`, and its devices."""

    proxy: RunningProxy
    nursery: trio.Nursery
    targets: dict[str, Target]
    agents: dict[str, trio.CancelScope] = field(default_factory=dict)

    async def begin_agent(self, name: str) -> None:
        address = await self.nursery.start(self.targets[name].run)
        config = AgentConfig(
            device=Device(name=name),
            proxy=ProxyEndpoint(
                url=f"ws://{self.proxy.tunnel_address}/tunnel/connect",
                token=Secret(f"token-of-{name}"),
            ),
            services=[ServiceConfig(name="web", target=address)],
        )
        self.agents[name] = scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await run_agent(config)

        self.nursery.start_soon(run)
        assert await self.proxy.store.wait_for_device(name, trio.current_time() + 20)

    async def end_agent(self, name: str) -> None:
        handle = self.proxy.store.live_device(name)
        assert handle is not None
        self.agents[name].cancel()
        with trio.fail_after(30):
            while not handle.is_closed:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.005)

    @asynccontextmanager
    async def visitor(self) -> AsyncIterator[Visitor]:
        assert self.proxy.http_address is not None
        async with await trio.open_tcp_stream(*self.proxy.http_address) as stream:
            yield Visitor(Peer(stream))

    async def ask(self, *fields: str) -> str:
        """The name of the device that a visitor with a connection of its own gets."""
        async with self.visitor() as visitor:
            return (await visitor.ask(*fields)).body


@dataclass
class Answer:
    status: int
    head: str
    body: str


@dataclass
class Visitor:
    peer: Peer

    async def ask(self, *fields: str, host: str = "shop.localhost") -> Answer:
        lines = [f"GET / HTTP/1.1\r\nHost: {host}", *fields]
        await self.peer.send("\r\n".join(lines).encode() + b"\r\n\r\n")
        with trio.fail_after(30):
            head = (await self.peer.read_head()).decode()
            size = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            body = (await self.peer.read_exactly(size)).decode()
        return Answer(int(head.split(" ")[1]), head, body)


@asynccontextmanager
async def shop(
    *, access: AccessConfig | None = None, tcp: bool = False, **settings: Any
) -> AsyncIterator[Shop]:
    devices = tuple(DeviceConfig(name=name, token=Secret(f"token-of-{name}")) for name in NAMES)
    port = TcpIngress(listen="127.0.0.1:0", device="shop", service="web")
    config = msgspec.structs.replace(
        proxy_config(devices=devices),
        groups=[GroupConfig(name="shop", devices=list(NAMES), **settings)],
        access=access or AccessConfig(),
        limits=LimitsConfig(ingress=IngressLimits(reconnect_wait=0.2)),
        ingress=Ingress(http=HttpIngress(listen="127.0.0.1:0"), tcp=[port] if tcp else []),
    )
    with trio.fail_after(120):
        async with running(config) as proxy, trio.open_nursery() as nursery:
            this = Shop(proxy, nursery, {name: Target(name) for name in NAMES})
            async with trio.open_nursery() as beginning:
                for name in NAMES:
                    beginning.start_soon(this.begin_agent, name)
            yield this
            nursery.cancel_scope.cancel()


async def test_visitors_are_spread_over_the_devices_of_a_group() -> None:
    async with (
        shop() as this,
        this.visitor() as one,
        this.visitor() as two,
        this.visitor() as three,
    ):
        got = [(await visitor.ask()).body for visitor in (one, two, three)]
        assert sorted(got) == list(NAMES)
        for _ in range(3):  # a connection stays where it is, while no other device is less busy
            assert [(await visitor.ask()).body for visitor in (one, two, three)] == got
        assert not any(this.proxy.visits.figures.by_h11.by_class.values()), "the pump carries them"


async def test_a_service_of_a_group_is_named_as_one_of_a_device() -> None:
    async with shop() as this, this.visitor() as visitor:
        assert (await visitor.ask(host="web--shop.localhost")).body in NAMES
        answer = await visitor.ask("Tunnelmux-Device: shop", host="localhost")
        assert answer.body in NAMES


async def test_a_device_that_is_offline_gets_no_visitors() -> None:
    async with shop() as this:
        await this.end_agent("shop-1")
        got = Counter([await this.ask() for _ in range(60)])
        assert set(got) == {"shop-2", "shop-3"}
        await this.begin_agent("shop-1")
        async with this.visitor() as two, this.visitor() as three, this.visitor() as one:
            got = Counter([(await visitor.ask()).body for visitor in (two, three, one)])
        assert set(got) == set(NAMES)


@pytest.mark.parametrize("warm", [False, True])
async def test_no_visitor_notices_that_a_target_refuses(warm: bool) -> None:
    """The request was not sent yet, so that it can go to another device; warm, in the pump."""
    async with shop() as this, this.visitor() as visitor:
        if warm:
            for _ in range(3):
                assert (await visitor.ask()).body in NAMES
        this.targets["shop-1"].stop()
        this.targets["shop-2"].stop()
        while this.targets["shop-1"].connections or this.targets["shop-2"].connections:  # noqa: ASYNC110
            await trio.sleep(0.005)
        for _ in range(6):
            answer = await visitor.ask()
            assert (answer.status, answer.body) == (200, "shop-3")
        assert {await this.ask() for _ in range(6)} == {"shop-3"}


async def test_the_answer_says_when_no_device_serves() -> None:
    async with shop() as this:
        for name in NAMES:
            await this.end_agent(name)
        async with this.visitor() as visitor:
            answer = await visitor.ask()
            page = await visitor.ask("Accept: text/html")
        assert answer.status == 503
        assert "tunnelmux-reason: device-offline" in answer.head.lower()
        assert "No device of the group shop serves this now." in answer.body
        assert "<h1>No device serves this now</h1>" in page.body  # and not "This device is offline"


async def test_with_failover_the_first_device_that_is_there_gets_all_visitors() -> None:
    async with shop(balance="failover") as this:
        assert {await this.ask() for _ in range(5)} == {"shop-1"}
        await this.end_agent("shop-1")
        assert {await this.ask() for _ in range(5)} == {"shop-2"}
        await this.begin_agent("shop-1")
        assert {await this.ask() for _ in range(5)} == {"shop-1"}


async def test_visitors_of_one_address_stay_with_their_device() -> None:
    async with shop(sticky="address") as this:
        (first,) = {await this.ask() for _ in range(6)}
        await this.end_agent(first)
        (second,) = {await this.ask() for _ in range(6)}
        assert second != first
        await this.begin_agent(first)
        assert {await this.ask() for _ in range(6)} == {first}


def cookie_in(answer: Answer) -> str:
    """The pair of the one cookie that the answer sets."""
    fields = [line for line in answer.head.split("\r\n") if line.lower().startswith("set-cookie")]
    (only,) = fields
    return only.partition(": ")[2].partition(";")[0]


async def test_a_cookie_brings_a_browser_back() -> None:
    async with shop(sticky="cookie") as this:
        async with this.visitor() as visitor:
            first = await visitor.ask()
        cookie = cookie_in(first)
        assert first.body not in cookie, "the cookie does not tell the name of the device"
        async with this.visitor() as other:  # which makes the same device busier than others
            assert (await other.ask(f"Cookie: {cookie}")).body == first.body
            for _ in range(4):
                async with this.visitor() as visitor:
                    for _ in range(2):
                        again = await visitor.ask(f"Cookie: a=1; {cookie}; b=2")
                        assert again.body == first.body
                        assert "set-cookie" not in again.head.lower()
        seen = b"".join(this.targets[first.body].heads)
        assert b"a=1; b=2" in seen
        assert b"tunnelmux-dev-member" not in seen, "the target does not get the proxy's cookie"
        await this.end_agent(first.body)
        async with this.visitor() as visitor:
            second = await visitor.ask(f"Cookie: {cookie}")
        assert second.body != first.body
        assert cookie_in(second) != cookie


async def test_the_rule_of_a_group_is_about_its_name() -> None:
    only = ServiceAccess(device="shop", let_in=["token"], tokens=["test:" + "0" * 64])
    ruled = AccessConfig(let_in=["public"], rules=[only])
    async with shop(access=ruled) as this, this.visitor() as visitor:
        assert (await visitor.ask()).status == 401
        assert (await visitor.ask(host="shop-1.localhost")).body == "shop-1"


async def test_a_tcp_port_of_a_group_goes_to_a_device_that_serves() -> None:
    async with shop(tcp=True) as this:
        (address,) = this.proxy.tcp_addresses

        async def ask() -> str:
            async with await trio.open_tcp_stream(*address) as stream:
                return (await Visitor(Peer(stream)).ask()).body

        assert await ask() in NAMES
        this.targets["shop-1"].stop()
        this.targets["shop-3"].stop()
        assert {await ask() for _ in range(6)} == {"shop-2"}
        await this.end_agent("shop-2")
        async with await trio.open_tcp_stream(*address) as stream:
            with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass


async def test_a_reload_changes_the_devices_of_a_group() -> None:
    async with shop() as this, this.visitor() as visitor:
        assert (await visitor.ask()).body in NAMES
        only = [GroupConfig(name="shop", devices=["shop-3"])]
        await this.proxy.reload(msgspec.structs.replace(this.proxy.config, groups=only))
        assert (await visitor.ask()).body == "shop-3"


async def test_a_label_names_the_devices_of_a_group() -> None:
    async with shop() as made:
        config = made.proxy.config
        labels = {"shop-1": ["role=shop"], "shop-2": ["role=shop", "site=here"], "shop-3": []}
        devices = [
            msgspec.structs.replace(device, labels=labels[device.name]) for device in config.devices
        ]

        async def have(label: str) -> None:
            groups = [GroupConfig(name="shop", label=label)]
            await made.proxy.reload(msgspec.structs.replace(config, devices=devices, groups=groups))

        await have("role=shop")
        assert {await made.ask() for _ in range(60)} == {"shop-1", "shop-2"}
        await have("site=here")
        assert {await made.ask() for _ in range(3)} == {"shop-2"}
        await made.end_agent("shop-2")
        await have("role=nothing")
        async with made.visitor() as visitor:
            answer = await visitor.ask()
        assert answer.status == 503
        assert (
            "No device of the group shop serves this now. No device has its label." in answer.body
        )
