"""Strangers that connect and say nothing do not keep agents and visitors out."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import msgspec
import pytest
import trio
import trio.testing
import trustme
from structlog.testing import capture_logs

from support.crowds import crowd, dial_from, let_pass, many_files
from support.proxies import proxy_config, running
from tunnelmux.config import (
    Address,
    HttpIngress,
    Ingress,
    InternalListener,
    LimitsConfig,
    ProxyConfig,
    Secret,
    TunnelListener,
)
from tunnelmux.limits import IngressLimits, InternalLimits
from tunnelmux.mux import open_session
from tunnelmux.proxy import RunningProxy
from tunnelmux.transports import parse_url
from tunnelmux.transports.tls import start_client_tls
from tunnelmux.transports.websocket import start_websocket_client

PATIENT = IngressLimits(first_byte_timeout=300.0, handshake_timeout=300.0)
"""With these, no place becomes free by itself while a test lasts."""


@pytest.fixture
def allowed_files() -> Iterator[None]:
    with many_files():
        yield


Tls = tuple[Path, ssl.SSLContext]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A folder with a server's certificate and its key, and a client's trust in it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "dev1.localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return folder, trust


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def used_tls(request: pytest.FixtureRequest, tls: Tls) -> Tls | None:
    return tls if request.param else None


def files_of(tls: Tls | None) -> dict[str, Path]:
    """The settings of a listener that speaks TLS; none without."""
    if tls is None:
        return {}
    return {"tls_certificate": tls[0] / "cert.pem", "tls_key": tls[0] / "key.pem"}


async def newcomer(source: str, address: Address, tls: Tls | None = None) -> trio.abc.Stream:
    """A connection that comes from the loopback address *source*."""
    stream = await dial_from(source, address)
    if tls is None:
        return stream
    return await start_client_tls(stream, tls[1], "127.0.0.1", where="the proxy")


@asynccontextmanager
async def agent_from(
    source: str, proxy: RunningProxy, device: str, tls: Tls | None = None
) -> AsyncIterator[None]:
    """An agent that comes from the loopback address *source*."""
    stream = await newcomer(source, proxy.tunnel_address, tls)
    url = parse_url(f"ws://{proxy.tunnel_address}/tunnel/connect")
    headers = [(b"Authorization", f"Bearer token-of-{device}".encode())]
    async with trio.open_nursery() as nursery:
        websocket = await start_websocket_client(nursery, stream, url, headers=headers)
        async with open_session(websocket, is_client=True):
            yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def besieged(
    clock: trio.testing.MockClock, address: Address, logs: Sequence[Mapping[str, object]]
) -> AsyncIterator[None]:
    """2,000 silent connections of one address, which are dialled again and again. In the block 2 s
    pass, and then none any more."""
    async with crowd("127.0.0.2", address), trio.open_nursery() as nursery:
        while not any(line["event"] == "connections gave way" for line in logs):
            await trio.lowlevel.checkpoint()  # until they are there
        nursery.start_soon(let_pass, clock, 2.0)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("allowed_files")
async def test_agents_get_in_within_2_s_beside_2000_silent_connections_of_one_address(
    used_tls: Tls | None, mock_clock: trio.testing.MockClock
) -> None:
    config = msgspec.structs.replace(
        proxy_config(),
        limits=LimitsConfig(ingress=PATIENT),
        tunnel=TunnelListener(listen="127.0.0.1:0", **files_of(used_tls)),
    )
    async with running(config) as proxy:
        with capture_logs() as logs:
            async with (
                besieged(mock_clock, proxy.tunnel_address, logs),
                agent_from("127.0.0.3", proxy, "dev1", used_tls),
                agent_from("127.0.0.4", proxy, "dev2", used_tls),
            ):
                pass
        floods = [line for line in logs if line["event"] == "connections gave way"]
        assert floods and floods[0]["address"] == "127.0.0.2"
        assert len(floods) < 5


@pytest.mark.slow
@pytest.mark.usefixtures("allowed_files")
async def test_visitors_get_in_within_2_s_beside_2000_silent_connections_of_one_address(
    used_tls: Tls | None, mock_clock: trio.testing.MockClock
) -> None:
    limits = LimitsConfig(ingress=dataclasses.replace(PATIENT, max_visitors=200))
    http = HttpIngress(listen="127.0.0.1:0", **files_of(used_tls))
    config = msgspec.structs.replace(
        proxy_config(), limits=limits, ingress=Ingress(http=http, tcp=[])
    )
    async with running(config) as proxy:
        address = proxy.http_address
        assert address is not None
        with capture_logs() as logs:
            async with besieged(mock_clock, address, logs):
                visitor = await newcomer("127.0.0.3", address, used_tls)
                await visitor.send_all(b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
                assert (await visitor.receive_some()).startswith(b"HTTP/1.1 404 ")
                await trio.aclose_forcefully(visitor)


async def test_an_agent_in_the_middle_of_its_handshake_keeps_its_place() -> None:
    limits = LimitsConfig(ingress=IngressLimits(max_handshakes=8, max_arrivals_per_address=4))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        slow = await dial_from("127.0.0.3", proxy.tunnel_address)
        await slow.send_all(b"GET /tunnel/connect HTTP/1.1\r\nHost: p\r\n")
        silent = [
            await dial_from(f"127.0.1.{number}", proxy.tunnel_address) for number in range(40)
        ]
        await slow.send_all(
            b"Authorization: Bearer token-of-dev1\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        with trio.fail_after(20):
            assert (await slow.receive_some()).startswith(b"HTTP/1.1 101")
        for stream in (slow, *silent):
            await trio.aclose_forcefully(stream)


async def test_metrics_count_who_gave_way_and_who_was_refused() -> None:
    ingress = dataclasses.replace(
        PATIENT, max_handshakes=8, max_arrivals_per_address=2, max_waiting_handshakes=0
    )
    limits = LimitsConfig(ingress=ingress)
    config = msgspec.structs.replace(
        proxy_config(),
        limits=limits,
        internal=InternalListener(listen="127.0.0.1:0", secret=Secret("the-secret-of-tests")),
    )
    async with running(config) as proxy:
        counts = partial(arrivals_of, f"http://{proxy.internal_address}")
        assert await counts() == (0, 0, 0)
        # Of one address two may be silent: the third takes the place of the first.
        streams = [await dial_from("127.0.0.2", proxy.tunnel_address) for _ in range(3)]
        with trio.fail_after(20):
            while await counts() != (2, 1, 0):
                pass
            # Those that have begun to speak keep their places: another gets none.
            for stream in streams[1:]:
                await stream.send_all(b"GET /tunnel/connect HTTP/1.1\r\n")
            while (await counts())[2] == 0:
                with socket.socket() as another, contextlib.suppress(ConnectionResetError):
                    another.bind(("127.0.0.2", 0))
                    another.connect(tuple(proxy.tunnel_address))
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def arrivals_of(url: str) -> tuple[float, float, float]:
    """What the metrics say of the tunnel's listener: places held, gave way, refused."""
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
        fields = {"authorization": "Bearer the-secret-of-tests"}
        text = (await client.get(f"{url}/metrics", headers=fields)).text
    found = re.findall(r'^tunnelmux_arrivals(\w*)\{listener="tunnel"\} (\S+)$', text, re.MULTILINE)
    counts = dict(found)
    assert 'tunnelmux_arrivals{listener="ingress.http"} 0.0' in text
    return float(counts[""]), float(counts["_gave_way_total"]), float(counts["_refused_total"])


async def test_silence_is_cut_before_the_handshake_timeout() -> None:
    limits = LimitsConfig(ingress=IngressLimits(first_byte_timeout=0.1))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        with capture_logs() as logs, trio.fail_after(20):
            silent = await dial_from("127.0.0.2", proxy.tunnel_address)
            assert await silent.receive_some() == b""
        assert [line["cause"] for line in logs if line["event"] == "tunnel handshake failed"] == [
            "it sent nothing within 0.1 s"
        ]
        await silent.aclose()


async def test_one_address_that_speaks_slowly_is_refused_at_its_limit_only() -> None:
    limits = LimitsConfig(
        ingress=IngressLimits(max_arrivals_per_address=2, max_waiting_handshakes=0)
    )
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        slow = [await dial_from("127.0.0.2", proxy.tunnel_address) for _ in range(2)]
        for stream in slow:
            await stream.send_all(b"GET /")
        while proxy.tunnel_admission.silent or len(proxy.tunnel_admission) < 2:  # noqa: ASYNC110  no event says so
            await trio.sleep(0.01)
        with capture_logs() as logs, pytest.raises((trio.BrokenResourceError, OSError)):
            async with await dial_from("127.0.0.2", proxy.tunnel_address) as third:
                await third.receive_some()
        assert [line["reason"] for line in logs] == ["too-many-connections"]
        with trio.fail_after(20):
            async with agent_from("127.0.0.3", proxy, "dev1"):
                pass
        for stream in slow:
            await stream.aclose()


async def test_an_agent_that_finds_no_place_waits_and_is_let_in() -> None:
    ingress = IngressLimits(max_handshakes=2, max_arrivals_per_address=2)
    config = msgspec.structs.replace(proxy_config(), limits=LimitsConfig(ingress=ingress))
    async with running(config) as proxy, trio.open_nursery() as nursery:
        slow = [await dial_from(f"127.0.0.{n}", proxy.tunnel_address) for n in (2, 3)]
        for stream in slow:
            await stream.send_all(b"GET /")
        places = proxy.tunnel_admission
        arrived = trio.Event()

        async def dial() -> None:
            async with agent_from("127.0.0.4", proxy, "dev1"):
                arrived.set()

        nursery.start_soon(dial)
        with trio.fail_after(30):
            while not places.waiting:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
            assert not arrived.is_set()
            await trio.aclose_forcefully(slow[0])
            await arrived.wait()
        await trio.aclose_forcefully(slow[1])


def with_internal(**limits: int) -> ProxyConfig:
    return msgspec.structs.replace(
        proxy_config(),
        limits=LimitsConfig(ingress=PATIENT, internal=InternalLimits(**limits)),
        internal=InternalListener(listen="127.0.0.1:0", secret=Secret("the-secret-of-tests")),
    )


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer the-secret-of-tests\r\n\r\n"


@pytest.mark.slow
@pytest.mark.usefixtures("allowed_files")
async def test_callers_get_in_within_2_s_beside_2000_silent_connections_of_one_address(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with running(with_internal(max_callers=200)) as proxy:
        address = proxy.internal_address
        assert address is not None
        with capture_logs() as logs:
            async with besieged(mock_clock, address, logs):
                caller = await newcomer("127.0.0.3", address)
                await caller.send_all(HEALTH)
                assert (await caller.receive_some()).startswith(b"HTTP/1.1 200 ")
                await trio.aclose_forcefully(caller)


async def test_half_a_request_of_many_addresses_keeps_no_caller_out() -> None:
    """What a stranger sends proves nothing: a first byte kept its place for as long as it liked."""
    async with running(with_internal(max_callers=8)) as proxy:
        address = proxy.internal_address
        assert address is not None
        strangers = [await dial_from(f"127.0.1.{number}", address) for number in range(1, 9)]
        for stranger in strangers:
            await stranger.send_all(HEALTH[:20])
        with trio.fail_after(30):
            caller = await dial_from("127.0.0.3", address)
            await caller.send_all(HEALTH)
            assert (await caller.receive_some()).startswith(b"HTTP/1.1 200 ")
        for stream in (*strangers, caller):
            await trio.aclose_forcefully(stream)


async def test_callers_who_have_said_nothing_have_no_task(
    mock_clock: trio.testing.MockClock,
) -> None:
    """With a task for each, newcomers waited for 1.8 s beside silent ones that were dialled again
    as fast as they were dropped."""
    async with running(with_internal()) as proxy:
        address = proxy.internal_address
        assert address is not None

        async def tasks_beside_a_speaker() -> int:
            async with await dial_from("127.0.0.3", address) as speaker:
                await speaker.send_all(HEALTH)  # accepted behind all who came before
                assert (await speaker.receive_some()).startswith(b"HTTP/1.1 200 ")
                tasks = len(proxy._callers.child_tasks)
            while len(proxy._callers.child_tasks) == tasks:
                await trio.lowlevel.checkpoint()
            return tasks

        before = await tasks_beside_a_speaker()
        silent = [await dial_from("127.0.0.2", address) for _ in range(20)]
        assert await tasks_beside_a_speaker() == before
        mock_clock.jump(0.6)
        while len(proxy._callers.child_tasks) < before + 19:
            await trio.lowlevel.checkpoint()
        for stream in silent:
            await trio.aclose_forcefully(stream)
