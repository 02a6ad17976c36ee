"""Two workers with all that an installation has: devices and people of a registry on PostgreSQL,
TLS, the access gate, a group by label with health checks, and spans to a receiver."""

from __future__ import annotations

import gzip
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trustme
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.daemons import DaemonSet
from support.guarded import BROWSER, Answer, Visitor
from support.http_rig import Peer
from support.origin import reply, serving
from support.postgresql import PostgreSQL, run_postgresql
from support.registries import Templates
from support.tenants import TEST
from support.visiting import Person, World
from support.workers import PATIENCE, Workers
from tunnelmux.config import Address, Secret
from tunnelmux.registry import open_registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

DEVICES = ("shop-1", "shop-2")

FILE = """
[registry]
url = "{url}"
name = "edge"
[access]
let_in = ["login"]
[[groups]]
name = "shop"
label = "role=shop"
[otel]
endpoint = "http://{spans}/v1/traces"
ratio = 1.0
[limits]
reconnect_wait = 0.5
"""

SERVICE = """
[[services]]
name = "web"
target = "http://{web}"
check = "/healthz"
check_interval = 1.0
check_timeout = 1.0
check_failures = 1
"""


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    with run_postgresql() as server:
        yield server


class There:
    """Where visitors come in, under TLS: on a connection of its own for each request."""

    def __init__(self, at: Address, trust: ssl.SSLContext) -> None:
        self.port = at.port
        self._at = at
        self._trust = trust

    async def ask(
        self, path: str, fields: dict[str, str] | None = None, host: str = "shop-1.localhost"
    ) -> Answer:
        with trio.fail_after(PATIENCE):
            tcp = await trio.open_tcp_stream(self._at.host, self._at.port)
            async with trio.SSLStream(
                tcp, self._trust, server_hostname=host, https_compatible=True
            ) as stream:
                return await Visitor(stream).ask(path, fields, host=host)  # type: ignore[arg-type]


class Shop:
    """The web server of one device, which may be ill."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_well = True

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(AssertionError, trio.BrokenResourceError):
                head = await Peer(stream).read_head()
                is_ill = head.startswith(b"GET /healthz") and not self.is_well
                await stream.send_all(reply(self.name.encode(), "500 No" if is_ill else "200 OK"))


class Receiver:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        """Those whose requests it has seen."""

    async def handle(self, stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        async with stream:
            with suppress(AssertionError, trio.BrokenResourceError):
                while True:
                    head = await peer.read_head()
                    [size] = re.findall(rb"(?i)content-length: (\d+)", head)
                    body = await peer.read_exactly(int(size))
                    if b"gzip" in head.lower().partition(b"content-encoding:")[2][:8]:
                        body = gzip.decompress(body)
                    self._take(ExportTraceServiceRequest.FromString(body))
                    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def _take(self, sent: ExportTraceServiceRequest) -> None:
        for of_resource in sent.resource_spans:
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    for one in span.attributes:
                        if one.key == "tunnelmux.device" and span.name == "GET":
                            self.devices.add(one.value.string_value)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE):
        while not await what():  # noqa: ASYNC110  no event says so
            await trio.sleep(0.05)


async def test_a_person_visits_the_devices_of_both_workers(
    daemons: DaemonSet, tmp_path: Path, postgresql: PostgreSQL
) -> None:
    authority, pem, trust = trustme.CA(), tmp_path / "own.pem", ssl.create_default_context()
    hosts = [f"{name}.localhost" for name in (*DEVICES, "shop")]
    authority.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.configure_trust(trust)
    shops, receiver = {name: Shop(name) for name in DEVICES}, Receiver()
    url = Templates(tmp_path).postgresql(postgresql)
    workers = Workers(daemons)
    async with (
        open_registry(Secret(url)) as registry,
        serving(receiver.handle) as spans,
        serving(shops["shop-1"].handle) as web_1,
        serving(shops["shop-2"].handle) as web_2,
    ):
        [home] = (await registry.installation(TEST).tenants.page()).items
        tenant = registry.tenant(home.id, TEST)
        tls = f'tls_certificate = "{pem}"\ntls_key = "{pem}"\n'
        file = workers.file(FILE.format(url=url, spans=spans), devices=(), in_http=tls)
        proxy = workers.proxy = await daemons.start("proxy", file)
        await proxy.logged("workers started")
        workers.at_tunnel = await proxy.listening("tunnel.listen")
        there = There(await proxy.listening("ingress.http.listen"), trust)
        for name, web in zip(DEVICES, (web_1, web_2), strict=True):
            _device, token = await tenant.devices.add(name, labels={"role": "shop"})
            daemons.secrets.add(token.reveal())
            workers.tokens[name] = token.reveal()
            await workers.start_agent({}, device=name, more=SERVICE.format(web=web))
        assert {workers.worker_of(name) for name in DEVICES} == {"worker-1", "worker-2"}

        world = World(registry, there, tenant)  # type: ignore[arg-type]
        await world.proofs.publish()
        person = await world.person()
        for name in (*DEVICES, "shop"):
            await sign_in_and_visit(world, person, there, name)

        async def both_seen() -> bool:
            return receiver.devices >= {*DEVICES}

        await until(both_seen)
        await fall_ill(world, person, there, shops)


async def sign_in_and_visit(world: World, person: Person, there: There, name: str) -> None:
    """Come in once, and visit on connections that either worker takes."""
    host = f"{name}.localhost"

    async def knows_where_to_sign_in() -> bool:
        return (await there.ask("/x", BROWSER, host=host)).status == 302

    await until(knows_where_to_sign_in)
    cookie = await world.come_in(person, host=host)
    served = set()
    for _ in range(8):
        answer = await there.ask("/", cookie, host=host)
        assert answer.status == 200, answer
        served.add(answer.body.decode())
        assert (await there.ask("/", {}, host=host)).status == 401
    assert served <= {name} if name in DEVICES else served <= {*DEVICES}


async def fall_ill(world: World, person: Person, there: There, shops: dict[str, Shop]) -> None:
    """The device itself is 502 without a wait, and the group goes on by the other one."""
    by_name = await world.come_in(person, host="shop-1.localhost")
    by_group = await world.come_in(person, host="shop.localhost")
    shops["shop-1"].is_well = False

    async def is_down() -> bool:
        return (await there.ask("/", by_name)).status == 502

    await until(is_down)
    for _ in range(8):
        answer = await there.ask("/", by_group, host="shop.localhost")
        assert (answer.status, answer.body) == (200, b"shop-2")
    answer = await there.ask("/", by_name)
    assert (answer.status, answer.first("tunnelmux-reason")) == (502, "target-down")
    shops["shop-1"].is_well = True

    async def is_up() -> bool:
        return (await there.ask("/", by_name)).status == 200

    await until(is_up)
