"""The proxy as a whole: what it says when it cannot start, what a reload changes, how it ends."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
import trustme
from structlog.testing import capture_logs

from support.proxies import agent_of, free_port, proxy_config, running
from support.streams import next_bytes
from tunnelmux.config import (
    Address,
    DeviceConfig,
    HttpIngress,
    Ingress,
    ProxyConfig,
    Secret,
    TunnelListener,
)
from tunnelmux.errors import ConfigError, ConnectError, SessionClosed, SessionDraining
from tunnelmux.proxy import DrainReport, RunningProxy, run_proxy


async def is_open(address: Address) -> bool:
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except OSError:
        return False
    await stream.aclose()
    return True


async def test_a_port_in_use_is_one_sentence_that_names_setting_address_and_fix() -> None:
    [taken] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with taken:
        address = f"127.0.0.1:{taken.socket.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            await run_proxy(proxy_config(http=address))
    sentence = str(caught.value)
    assert sentence.startswith("ingress.http.listen: ")
    assert address in sentence
    assert "address already in use" in sentence
    assert "choose another port" in sentence
    assert "\n" not in sentence


async def test_every_port_that_cannot_be_had_is_named_at_once() -> None:
    [taken] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with taken:
        address = f"127.0.0.1:{taken.socket.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            await run_proxy(proxy_config(http="203.0.113.1:8080", tcp=(address,), public=True))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "ingress.http.listen",
        "ingress.tcp[0].listen",
    ]


async def test_after_a_failed_start_nothing_listens() -> None:
    tunnel = f"127.0.0.1:{free_port()}"
    [taken] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with taken:
        with pytest.raises(ConfigError):
            await run_proxy(
                proxy_config(tunnel=tunnel, http=f"127.0.0.1:{taken.socket.getsockname()[1]}")
            )
    async with running(proxy_config(tunnel=tunnel)) as proxy:
        assert str(proxy.tunnel_address) == tunnel


async def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = msgspec.structs.replace(
        proxy_config(),
        tunnel=TunnelListener(
            listen="127.0.0.1:0",
            tls_certificate=tmp_path / "absent.crt",
            tls_key=tmp_path / "absent.key",
        ),
    )
    with pytest.raises(ConfigError, match=r"absent\.crt"):
        await run_proxy(config)


async def test_tunnels_over_tls_get_no_session_tickets(tmp_path: Path) -> None:
    """An agent reads none, and what is unread when a connection is closed makes that a reset, which
    can lose what was sent before it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    files = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    config = msgspec.structs.replace(
        proxy_config(),
        tunnel=TunnelListener(listen="127.0.0.1:0", **files),
        ingress=Ingress(http=HttpIngress(listen="127.0.0.1:0", **files)),
    )
    with trio.fail_after(30):
        async with running(config) as proxy:
            visitors = proxy.http_address
            assert visitors is not None
            got = {}
            for name, address in {"agent": proxy.tunnel_address, "visitor": visitors}.items():
                raw = await trio.open_tcp_stream(address.host, address.port)
                stream = trio.SSLStream(raw, trusting, server_hostname="127.0.0.1")
                async with stream:
                    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert await stream.receive_some()
                    got[name] = stream.session.has_ticket
    assert got == {"agent": False, "visitor": True}


async def test_a_reload_opens_and_closes_ports_and_drops_no_session() -> None:
    kept, old, new = (f"127.0.0.1:{free_port()}" for _ in range(3))
    async with running(proxy_config(tcp=(kept, old))) as proxy, agent_of(proxy) as agent:
        http = proxy.http_address
        assert http is not None
        [before_kept, before_old] = proxy.tcp_addresses
        visitor = await trio.open_tcp_stream(*before_kept)
        theirs = await agent.accept_stream()

        report = await proxy.reload(proxy_config(tcp=(new, kept)))

        assert report.problems == [] and report.kicked == []
        assert [str(address) for address in proxy.tcp_addresses] == [new, kept]
        assert not await is_open(before_old)
        assert await is_open(proxy.tcp_addresses[0])
        assert proxy.http_address == http
        assert not agent.is_closed
        await theirs.aclose()
        await visitor.aclose()


async def test_a_visitor_of_a_port_that_a_reload_closed_stays_connected() -> None:
    port = f"127.0.0.1:{free_port()}"
    async with running(proxy_config(tcp=(port,))) as proxy, agent_of(proxy) as agent:
        visitor = await trio.open_tcp_stream(*proxy.tcp_addresses[0])
        theirs = await agent.accept_stream()
        await proxy.reload(proxy_config())
        assert proxy.tcp_addresses == []
        await visitor.send_all(b"marker-after-the-reload")
        received = b""
        with trio.fail_after(20):
            while b"marker-after-the-reload" not in received:
                received += await theirs.receive_some()
        await visitor.aclose()


async def test_a_reload_applies_what_it_can_and_reports_the_port_it_cannot_have() -> None:
    [taken] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    new = f"127.0.0.1:{free_port()}"
    async with taken, running(proxy_config()) as proxy, agent_of(proxy) as agent:
        address = f"127.0.0.1:{taken.socket.getsockname()[1]}"
        with capture_logs() as logs:
            report = await proxy.reload(proxy_config(tcp=(address, new)))
        [problem] = report.problems
        assert address in str(problem) and "ingress.tcp[0].listen" in str(problem)
        assert [line["event"] for line in logs if line["log_level"] == "error"] == [
            "a listener could not be opened"
        ]
        assert [str(bound) for bound in proxy.tcp_addresses] == [new]
        assert not agent.is_closed


async def test_an_http_port_that_cannot_move_stays_where_it_is() -> None:
    [taken] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with taken, running(proxy_config()) as proxy:
        before = proxy.http_address
        assert before is not None
        address = f"127.0.0.1:{taken.socket.getsockname()[1]}"
        report = await proxy.reload(proxy_config(http=address))
        assert len(report.problems) == 1
        assert proxy.http_address == before
        assert await is_open(before)
        # The next reload gets its chance.
        await taken.aclose()
        report = await proxy.reload(proxy_config(http=address))
        assert report.problems == []
        assert str(proxy.http_address) == address
        assert not await is_open(before)


async def test_the_tunnel_port_can_move_while_agents_stay() -> None:
    new = f"127.0.0.1:{free_port()}"
    async with running(proxy_config()) as proxy, agent_of(proxy) as agent:
        before = proxy.tunnel_address
        await proxy.reload(proxy_config(tunnel=new))
        assert not await is_open(before)
        assert not agent.is_closed
        async with agent_of(proxy, "dev2"):
            assert not agent.is_closed


async def test_the_http_port_can_go_and_come_back() -> None:
    async with running(proxy_config()) as proxy, agent_of(proxy) as agent:
        before = proxy.http_address
        assert before is not None
        await proxy.reload(proxy_config(http=None))
        assert proxy.http_address is None
        assert not await is_open(before)
        await proxy.reload(proxy_config(http=str(before)))
        assert proxy.http_address == before
        assert await is_open(before)
        assert not agent.is_closed


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ((), "the device was removed from proxy.toml"),
        (
            (DeviceConfig(name="dev1", token=Secret("token-of-dev1"), enabled=False),),
            "the device was disabled in proxy.toml",
        ),
        (
            (DeviceConfig(name="dev1", token=Secret("another-token")),),
            "the device was given another token in proxy.toml",
        ),
    ],
)
async def test_a_reload_closes_the_sessions_of_devices_that_may_not_go_on(
    devices: tuple[DeviceConfig, ...], reason: str
) -> None:
    stays = DeviceConfig(name="dev2", token=Secret("token-of-dev2"))
    async with (
        running(proxy_config()) as proxy,
        agent_of(proxy, "dev1") as kicked,
        agent_of(proxy, "dev2") as other,
    ):
        with capture_logs() as logs, trio.fail_after(20):
            report = await proxy.reload(proxy_config(devices=(*devices, stays)))
            await kicked.wait_closed()
            while not [line for line in logs if line["event"] == "session ended"]:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
        assert report.kicked == ["dev1"]
        if not devices:
            assert proxy.store.last_seen("dev1") is None, "a removed device is still remembered"
        [line] = [line for line in logs if line["event"] == "session ended"]
        assert (line["device"], line["reason"]) == ("dev1", reason)
        assert not other.is_closed
        with pytest.raises(ConnectError):
            async with agent_of(proxy, "dev1"):
                pass


async def test_a_new_device_may_connect_after_a_reload() -> None:
    async with running(proxy_config(devices=())) as proxy:
        await proxy.reload(proxy_config())
        async with agent_of(proxy, "dev1"):
            assert [summary.device_id for summary in await proxy.store.list()] == ["dev1"]


async def test_a_reload_with_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    bad = DeviceConfig(name="dev3", token_file=tmp_path / "absent")
    async with running(proxy_config()) as proxy, agent_of(proxy) as agent:
        with pytest.raises(ConfigError, match="absent"):
            await proxy.reload(proxy_config(http=None, devices=(bad,)))
        assert proxy.http_address is not None
        assert proxy.devices.names == ["dev1", "dev2"]
        assert not agent.is_closed


async def drained(config: ProxyConfig, *, grace: float, hold: float) -> tuple[DrainReport, float]:
    """Drain a proxy with one stream that its agent ends after `hold` seconds."""
    async with trio.open_nursery() as nursery:
        proxy: RunningProxy = await nursery.start(run_proxy, config)
        async with agent_of(proxy) as agent:
            handle = await proxy.store.find_device("dev1")
            assert handle is not None
            ours = await handle.open_stream()
            await ours.send_all(b"request")
            theirs = await agent.accept_stream()
            started = trio.current_time()

            async def finish() -> None:
                await trio.sleep(hold)
                await theirs.send_all(b"the whole answer")
                await theirs.aclose()
                assert await next_bytes(ours, 16) == b"the whole answer"
                await ours.aclose()

            if hold < grace:
                nursery.start_soon(finish)
            report = await proxy.drain(grace)
            assert not await is_open(proxy.config.tunnel.address)
            with trio.fail_after(20):
                await agent.wait_closed()
            return report, trio.current_time() - started


async def test_a_drain_lets_a_stream_finish_and_ends_as_soon_as_it_has() -> None:
    report, seconds = await drained(proxy_config(), grace=300, hold=0.2)
    assert (report.sessions, report.streams, report.cut) == (1, 1, 0)
    assert 0.2 <= seconds < 60


async def test_a_drain_cuts_what_does_not_finish_in_time() -> None:
    report, seconds = await drained(proxy_config(), grace=0.2, hold=300)
    assert (report.sessions, report.streams, report.cut) == (1, 1, 1)
    assert 0.2 <= seconds < 60


async def test_a_drain_tells_agents_at_once_and_takes_nothing_new() -> None:
    async with running(proxy_config()) as proxy, agent_of(proxy) as agent:
        handle = await proxy.store.find_device("dev1")
        assert handle is not None
        stream = await handle.open_stream()
        await stream.send_all(b"x")
        address = proxy.tunnel_address
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy.drain, 300)
            with trio.fail_after(20):
                while not agent.is_draining:  # noqa: ASYNC110  no event says so
                    await trio.sleep(0.01)
            assert not await is_open(address)
            with pytest.raises(SessionDraining):
                await handle.open_stream()
            # A second signal shortens the first one's patience.
            report = await proxy.drain(0)
        assert report.cut == 1


async def test_an_idle_agent_hears_a_clean_end() -> None:
    async with running(proxy_config()) as proxy, agent_of(proxy) as agent:
        with trio.fail_after(20):
            report = await proxy.drain(300)
            await agent.wait_closed()
        assert (report.sessions, report.streams, report.cut) == (1, 0, 0)
        assert type(agent.error) is SessionClosed, "the agent saw a broken connection"


async def test_an_idle_proxy_drains_at_once() -> None:
    async with running(proxy_config()) as proxy:
        with trio.fail_after(20):
            report = await proxy.drain(300)
        assert (report.sessions, report.streams, report.cut) == (0, 0, 0)


def tasks_in(nursery: trio.Nursery) -> int:
    """The tasks of that nursery, with those in theirs."""
    return sum(1 + sum(map(tasks_in, task.child_nurseries)) for task in nursery.child_tasks)


@pytest.mark.skipif(sys.platform != "linux", reason="without a pump each session has a writer")
async def test_an_idle_agent_has_two_tasks() -> None:
    """The connection's own and trio-websocket's reader. One more, with its nursery and coroutines,
    is a tenth of what an agent costs, ten thousand times."""
    async with running(proxy_config()) as proxy:
        before = tasks_in(proxy._agents)
        async with agent_of(proxy) as agent:
            await agent.ping()
            assert tasks_in(proxy._agents) == before + 2
