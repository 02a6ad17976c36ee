"""A lease from its request to its end: registry, proxy and a real agent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from support.registered import agent_at, config_for, following
from tunnelmux.agent.app import RunningAgent
from tunnelmux.agent.assist.clock import SteadyClock
from tunnelmux.backend import ProxyClient
from tunnelmux.config import (
    AgentConfig,
    Device,
    InternalListener,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.assist import AssistConfig
from tunnelmux.errors import SessionError
from tunnelmux.http import ConnectFailed, open_connect
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy import RunningProxy
from tunnelmux.registry import DeviceFilter, Lease, LeaseTerms, Registry, TenantRegistry
from tunnelmux.wire import LEASE_FIELD

pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)

LONG = 30.0
"""Seconds that a busy machine may take; nothing here is about being quick."""


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A TCP service that sends back what it gets; its port."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in stream:
                    await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


class Scene:
    """A proxy, a device called cam1 with the service ssh, and its tenant."""

    def __init__(
        self, tenant: TenantRegistry, device_id: str, proxy: RunningProxy, agent: RunningAgent
    ) -> None:
        self.tenant = tenant
        self.device_id = device_id
        self.proxy = proxy
        self.agent = agent
        self.client = ProxyClient(f"http://{proxy.internal_address}")
        self.opened: list[trio.abc.AsyncResource] = []

    async def ask(self, seconds: float = 600.0, **more: Any) -> Lease:
        now = datetime.now(UTC)
        terms: dict[str, Any] = {
            "device_id": self.device_id,
            "services": ("ssh",),
            "holder": "ann",
            "holder_name": "Ann",
            "reason": "printer jams",
            "starts": now,
            "ends": now + timedelta(seconds=seconds),
        }
        lease, _ = await self.tenant.leases.add(LeaseTerms(**(terms | more)), approved=True)
        return lease

    async def until(self, lease: Lease, state: str) -> Lease:
        with trio.fail_after(LONG):
            while True:
                found = await self.tenant.leases.find(lease.id)
                if found.state(datetime.now(UTC)) == state:
                    return found
                await trio.sleep(0.02)

    async def running(self, seconds: float = 600.0) -> Lease:
        lease = await self.until(await self.ask(seconds), "running")
        await until(
            lambda: self.proxy.registered.leases.running(lease.id, "cam1--acme") is not None
        )
        return lease

    async def connect(self, lease: str = "", named: str = "") -> trio.abc.HalfCloseableStream:
        """The service ssh by a raw forward, as the gateway comes there."""
        (session,) = await self.client.list_sessions(device="cam1--acme")
        stream = await self.client.open_stream(session.token, lease=lease)
        self.opened.append(stream)
        headers = [(LEASE_FIELD, (named or lease).encode())] if named or lease else None
        connection = await open_connect(
            stream, "ssh", IngressLimits(), answer_timeout=LONG, headers=headers
        )
        await connection.wait_answer()
        return connection


async def until(holds: Callable[[], bool]) -> None:
    """Return when this is so; nothing announces it to a test."""
    with trio.fail_after(LONG):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def echoes(stream: trio.abc.Stream) -> bool:
    await stream.send_all(b"hello")
    return await stream.receive_some() == b"hello"


async def ends(stream: trio.abc.Stream) -> None:
    """Return when the stream is over, however."""
    with trio.fail_after(LONG):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def scene(
    acme: TenantRegistry,
    url: str,
    folder: Path,
    *,
    clock: SteadyClock | None = None,
    name: str = "cam1",
    **assist: Any,
) -> AsyncIterator[Scene]:
    device, token = await acme.devices.add(name)
    config = msgspec.structs.replace(
        config_for(url), internal=InternalListener(listen="127.0.0.1:0")
    )
    async with echo() as port, following(config) as proxy:
        agent_config = AgentConfig(
            device=Device(name=name, state_dir=folder, serial="SN-7"),
            proxy=ProxyEndpoint(url=f"ws://{proxy.tunnel_address}/tunnel/connect", token=token),
            services=[ServiceConfig(name="ssh", target=f"tcp://127.0.0.1:{port}", lease_only=True)],
            assist=AssistConfig(**({"mode": "allow"} | assist)),
        )
        async with agent_at(agent_config) as agent:
            if clock is not None:
                agent.assist.desk.clock = clock
            on = Scene(acme, device.id, proxy, agent)
            try:
                yield on
            finally:
                for stream in on.opened:
                    await trio.aclose_forcefully(stream)


async def test_a_lease_lets_in_and_its_end_cuts_within_the_bound(
    registry: Registry, acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path) as on:
        with pytest.raises(ConnectFailed, match="during a lease only"):
            await on.connect()
        lease = await on.running()
        stream = await on.connect(lease.id)
        assert await echoes(stream)
        (visit,) = await on.client.list_visits()
        assert visit.lease == lease.id
        _, change = await acme.leases.end(lease.id, "done")
        await ends(stream)
        effects = await registry.changes.effects(change, within=LONG)
        assert (effects.visits, effects.missing) == (1, [])
        with pytest.raises(SessionError, match="does not run"):
            await on.connect(lease.id)
        await until(lambda: not (on.agent.assist.desk.leases))
        with pytest.raises(ConnectFailed, match="during a lease only"):
            await on.connect()


async def test_the_proxy_ends_a_lease_by_its_own_clock(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    began = SteadyClock().now()  # the agent's clock stands still
    async with scene(acme, database_url, tmp_path, clock=SteadyClock(lambda: began)) as on:
        lease = await on.running()
        stream = await on.connect(lease.id)
        assert await echoes(stream)
        # Its end by the proxy's clock is now.
        book = on.proxy.registered.leases
        book._leases[lease.id].until = now = trio.current_time()
        book._due.insert(0, (now, lease.id))
        book._timer.deadline = now
        await ends(stream)
        assert book.running(lease.id, "cam1--acme") is None


@pytest.mark.slow
async def test_the_agent_ends_a_lease_where_the_proxy_does_not(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path) as on:
        lease = await on.running()
        stream = await on.connect(lease.id)
        assert await echoes(stream)
        # By the agent's clock the time is over; the proxy's says nothing of it.
        now = on.agent.assist.desk.clock.now
        on.agent.assist.desk.clock.now = lambda: now() + 700
        await ends(stream)
        assert on.agent.assist.desk.leases == []
        over = await on.until(lease, "ended")
        assert over.end_reason == "its time is over"


async def test_the_device_switches_off_and_the_registry_learns_who_and_why(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path, mode="ask") as on:
        lease = await on.ask()
        await until(lambda: bool(on.agent.assist.desk.leases))
        assert (await acme.leases.find(lease.id)).consent == "asked"
        on.agent.assist.desk.answer(lease.id, True, by="at its terminal")
        await on.until(lease, "running")
        lease = await on.until(lease, "running")
        await until(lambda: on.proxy.registered.leases.running(lease.id, "cam1--acme") is not None)
        stream = await on.connect(lease.id)
        assert await echoes(stream)
        on.agent.assist.desk.turn_off(by="at its terminal")
        await ends(stream)
        over = await on.until(lease, "ended")
        assert "switched off on the device" in over.end_reason
        assert over.ended_by == on.device_id
        told = [entry.action for entry in await acme.leases.report(lease.id)]
        assert told == ["lease.request", "lease.consent", "lease.end"]
        with trio.fail_after(LONG):
            while True:
                state = (await acme.devices.find(on.device_id)).state.assist
                if state is not None and state.mode == "off":
                    break
                await trio.sleep(0.02)


@pytest.mark.slow
async def test_an_unanswered_request_is_refused_and_written_down(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path, mode="ask", ask_timeout=1.0) as on:
        over = await on.until(await on.ask(), "ended")
        assert (over.consent, "no answer at the device" in over.end_reason) == (
            "refused",
            True,
        )


async def test_a_device_that_takes_no_leases_refuses_and_says_why(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path, mode="off") as on:
        over = await on.until(await on.ask(), "ended")
        assert "assist.mode" in over.end_reason


async def test_an_extension_reaches_proxy_and_device(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path) as on:
        lease = await on.running(seconds=60.0)
        stream = await on.connect(lease.id)
        await acme.leases.extend(lease.id, lease.ends + timedelta(seconds=600))
        await until(lambda: not (on.agent.assist.desk.status()["leases"][0]["seconds_left"] < 600))
        assert await echoes(stream)
        running = on.proxy.registered.leases.running(lease.id, "cam1--acme")
        assert running is not None
        assert running.ends == lease.ends + timedelta(seconds=600)


async def test_a_lease_outlives_its_tunnel_and_the_agents_restart_but_not_its_end(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path, mode="ask") as on:
        on.agent.assist.desk.turn_on(600, by="me")
        asks = DeviceFilter(asks_for_help=True)
        with trio.fail_after(LONG):
            while not (found := (await acme.devices.page(where=asks)).items):  # noqa: ASYNC110
                await trio.sleep(0.05)
        assist = found[0].state.assist
        assert assist is not None
        assert assist.until is not None
        assert timedelta(0) < assist.until - datetime.now(UTC) <= timedelta(seconds=600)
        lease = await on.running()
        session = on.agent.session
        assert session is not None
        await session.aclose()
        await until(lambda: on.agent.session not in (session, None))
        with trio.fail_after(LONG):
            while True:
                try:
                    stream = await on.connect(lease.id)
                    break
                except (SessionError, ConnectFailed, ValueError):
                    await trio.sleep(0.05)
        assert await echoes(stream)
        assert (await acme.leases.find(lease.id)).ended is None


@pytest.mark.slow
async def test_the_serial_number_that_a_device_says_is_taken_over(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path) as on:
        with trio.fail_after(LONG):
            while (await acme.devices.find(on.device_id)).serial != "SN-7":  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert (await acme.devices.find_called("sn-7")).id == on.device_id


async def test_a_stranger_to_the_lease_comes_nowhere_by_its_name(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path) as on:
        await on.running()
        for name in ("x", "00000000-0000-7000-8000-000000000000", "'; DROP", "a" * 4000):
            with pytest.raises(SessionError, match="does not run"):
                await on.connect(name)
            with pytest.raises(ConnectFailed, match="over"):
                await on.connect(named=name)
        assert Secret("x")  # nothing of it is one


async def test_neither_end_waits_for_the_other_to_fall_silent_when_it_drains(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    async with scene(acme, database_url, tmp_path) as on:
        session = on.agent.session
        assert session is not None
        # All that is said is said on one stream, which stays.
        await until(lambda: session.stream_count == 1)
        on.proxy.registered.leases.fall_silent()
        await until(lambda: session.stream_count == 0)
    async with scene(acme, database_url, tmp_path / "2", name="cam2") as on:
        other = on.agent.session
        assert other is not None
        await until(lambda: other.stream_count == 1)
        on.agent.assist.desk.fall_silent()
        await until(lambda: other.stream_count == 0)
