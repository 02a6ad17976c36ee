"""A proxy whose services ask who visitors are, an agent, and a target that shows what it gets."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h11
import msgspec
import trio

from support.doors import Doors
from tunnelmux.agent import RunningAgent, run_agent
from tunnelmux.config import (
    AgentConfig,
    Device,
    DeviceConfig,
    HttpIngress,
    Ingress,
    OtelConfig,
    ProxyConfig,
    ProxyEndpoint,
    RegistrySource,
    Secret,
    ServiceConfig,
    TcpIngress,
    TunnelListener,
)
from tunnelmux.config.access import AccessConfig
from tunnelmux.config.assist import AssistConfig
from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.proxy import RunningProxy, run_proxy

__all__ = ["BROWSER", "PROGRAM", "Answer", "Guarded", "Visitor", "guarded"]

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}
PROGRAM = {"Accept": "application/json"}
_TOKEN = Secret("token-of-dev1")


@dataclass
class Answer:
    """What a visitor got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    seen: dict[str, list[str]] = field(default_factory=dict)
    """The fields that the target got, by name in small letters."""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def first(self, name: str) -> str:
        return next(iter(self.all(name)), "")


class Visitor:
    """One connection, and the cookies of a browser, if it is one."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._client = h11.Connection(h11.CLIENT)

    async def ask(
        self,
        path: str = "/",
        headers: dict[str, str] | None = None,
        *,
        host: str = "dev1.localhost",
        method: str = "GET",
    ) -> Answer:
        """One exchange. The connection is opened again where the last answer closed it."""
        fields = [("Host", host), *(headers or {}).items()]
        request = h11.Request(method=method, target=path, headers=fields)
        out = self._client.send(request) + self._client.send(h11.EndOfMessage())
        await self.stream.send_all(out)
        answer = Answer(0, [], b"")
        while True:
            event = self._client.next_event()
            if event is h11.NEED_DATA:
                self._client.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = [(k.decode(), v.decode("latin-1")) for k, v in event.headers]
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
        if self._client.our_state is h11.DONE and self._client.their_state is h11.DONE:
            self._client.start_next_cycle()
        if answer.status == 200 and answer.first("x-target"):
            for line in answer.body.decode("latin-1").split("\r\n")[1:]:
                name, _, value = line.partition(": ")
                if name:
                    answer.seen.setdefault(name.lower(), []).append(value)
        return answer


class Guarded:
    """All of it, running."""

    def __init__(self, proxy: RunningProxy, trust: ssl.SSLContext | None) -> None:
        self.proxy = proxy
        self.agent: RunningAgent
        self.entry: RunningProxy
        """Where the agent connects: this proxy, or its other node."""
        self.requests = 0
        """How many the target got."""
        self.set_cookies: list[bytes] = []
        """What it sets with each answer."""
        self._trust = trust

    @property
    def port(self) -> int:
        assert self.proxy.http_address is not None
        return self.proxy.http_address.port

    async def run_other(
        self, nursery: trio.Nursery, config: ProxyConfig, doors: Doors | None
    ) -> None:
        """Start the node where the agent connects."""
        self.entry = await nursery.start(partial(run_proxy, config))
        assert self.entry.registered is not None
        await self.entry.registered.wait_loaded(20)
        if doors is not None:
            doors.leads_to = {"a": self.proxy.tunnel_address, "b": self.entry.tunnel_address}
        with trio.fail_after(30):
            for one in (self.proxy, self.entry):
                while len(one.cluster.membership.nodes) < 2:  # type: ignore[union-attr]  # noqa: ASYNC110
                    await trio.sleep(0.02)

    async def visitor(self) -> Visitor:
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        if self._trust is not None:
            stream = trio.SSLStream(stream, self._trust, server_hostname="dev1.localhost")
        return Visitor(stream)

    async def ask(
        self,
        path: str = "/",
        headers: dict[str, str] | None = None,
        *,
        host: str = "dev1.localhost",
        method: str = "GET",
    ) -> Answer:
        """One exchange on a connection of its own."""
        visitor = await self.visitor()
        async with visitor.stream:
            return await visitor.ask(path, headers, host=host, method=method)

    async def warm_up(self, headers: dict[str, str], host: str = "dev1.localhost") -> None:
        """Have requests to this host carried by the pump: its agent takes raw connections then."""
        visitor = await self.visitor()
        async with visitor.stream:
            for _ in range(2):
                assert (await visitor.ask("/warm-up", headers, host=host)).status == 200

    async def serve(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self._serve(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    data = await stream.receive_some()
                    if not data:
                        return
                    received += data
                head, _, received = received.partition(b"\r\n\r\n")
                self.requests += 1
                if b"GET /endless" in head:
                    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\nbegun")
                    await trio.sleep_forever()
                if b"upgrade: websocket" in head.lower():
                    await stream.send_all(
                        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        b"Connection: Upgrade\r\n\r\n"
                    )
                    while data := await stream.receive_some():
                        await stream.send_all(data)
                    return
                cookies = b"".join(b"Set-Cookie: %s\r\n" % value for value in self.set_cookies)
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\nX-Target: yes\r\n%sContent-Length: %d\r\n\r\n%s"
                    % (cookies, len(head), head)
                )


@asynccontextmanager
async def guarded(
    access: AccessConfig | None = None,
    *,
    registry_url: str | None = None,
    token: Secret | None = None,
    services: tuple[str, ...] = ("web",),
    tls: tuple[Path, ssl.SSLContext] | None = None,
    trusted: tuple[str, ...] = (),
    assists: Path | None = None,
    domain: str = "localhost",
    otel: OtelConfig | None = None,
    tcp: str | None = None,
    named_sites: tuple[str, ...] = (),
    redis: str | None = None,
    doors: Doors | None = None,
) -> AsyncIterator[Guarded]:
    """A proxy with these rules. The device dev1 is one of proxy.toml, or with a *registry_url* the
    one with *token* there. All *services* lead to the same target. With a folder for its state
    (*assists*), the agent takes leases, and its serial number is SN-123. A TCP port leads to the
    service *tcp*. The agent reads the requests to *named_sites* itself. With a *redis*, the proxy
    is the node a of a cluster, and the agent connects to its node b; with *doors*, to both."""
    http = HttpIngress(
        listen="127.0.0.1:0",
        domain=domain,
        trusted_proxies=list(trusted),
        tls_certificate=tls[0] / "cert.pem" if tls else None,
        tls_key=tls[0] / "key.pem" if tls else None,
    )
    config = ProxyConfig(
        tunnel=TunnelListener(listen="127.0.0.1:0"),
        ingress=Ingress(
            http=http,
            tcp=[TcpIngress(listen="127.0.0.1:0", device="dev1", service=tcp)] if tcp else [],
        ),
        access=access or AccessConfig(),
        otel=otel or OtelConfig(),
        devices=[] if token else [DeviceConfig(name="dev1", token=_TOKEN)],
        registry=RegistrySource(url=Secret(registry_url), name="p1", migrate=False)
        if registry_url
        else RegistrySource(),
    )
    async with trio.open_nursery() as nursery:
        if redis is not None:
            config = as_node(config, redis, "a", doors)
        proxy: RunningProxy = await nursery.start(partial(run_proxy, config))
        if proxy.registered is not None:
            await proxy.registered.wait_loaded(20)
        this = Guarded(proxy, tls[1] if tls else None)
        this.entry = proxy
        if redis is not None:
            await this.run_other(nursery, as_node(config, redis, "b", doors), doors)
        [listener] = await nursery.start(
            partial(trio.serve_tcp, this.serve, 0, host="127.0.0.1", handler_nursery=nursery)
        )
        target = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        agent = AgentConfig(
            proxy=ProxyEndpoint(
                url=f"ws://{this.entry.tunnel_address}/tunnel/connect", token=token or _TOKEN
            ),
            device=Device(name="dev1", serial="SN-123", state_dir=assists)
            if assists
            else Device(name="dev1"),
            assist=AssistConfig(mode="allow" if assists else "off"),
            services=[
                *[ServiceConfig(name=name, target=target) for name in services],
                *[ServiceConfig(name=name, target=target, host="app") for name in named_sites],
            ],
        )
        this.agent = await nursery.start(run_agent, agent)
        for one in {proxy, this.entry} if doors is None else {this.entry}:
            assert await one.store.wait_for_device("dev1", trio.current_time() + 20)
        if doors is not None:
            await has_both(proxy, this.entry)
        with trio.fail_after(60):
            yield this
        nursery.cancel_scope.cancel()


def as_node(config: ProxyConfig, redis: str, name: str, doors: Doors | None) -> ProxyConfig:
    """The same as a node of this name."""
    cluster = ClusterConfig(
        redis=Secret(redis),
        listen="127.0.0.1:0",
        node=name,
        agent_url=doors.url(name) if doors is not None else None,
    )
    registry = msgspec.structs.replace(config.registry, name=name)
    return msgspec.structs.replace(config, cluster=cluster, registry=registry)


async def has_both(*nodes: RunningProxy) -> None:
    """Return when the agent has a session with each of them."""
    with trio.fail_after(30):
        while any(node.store.own_device("dev1") is None for node in nodes):  # noqa: ASYNC110
            await trio.sleep(0.02)
