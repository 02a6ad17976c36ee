"""Proxies that know their devices from the registry, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import trio
from structlog.testing import capture_logs

from support.postgresql import PostgreSQL, run_postgresql
from support.registered import (
    BOUND,
    agent_at,
    agent_config,
    agent_with,
    config_for,
    following,
    within_bound,
)
from support.registries import ANN
from tunnelmux.config import DeviceConfig, InternalListener, Secret
from tunnelmux.errors import ConfigError, ConnectRefused
from tunnelmux.mux import Session
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.registry import Device, Effects, Registry, TenantRegistry, open_registry
from tunnelmux.registry.sql import upgrade_database


async def online(proxy: RunningProxy, name: str) -> None:
    assert await proxy.store.wait_for_device(name, trio.current_time() + 30) is not None


async def refusal_of(proxy: RunningProxy, token: Secret) -> tuple[int, str | None]:
    with pytest.raises(ConnectRefused) as refused:
        async with agent_with(proxy, token):
            pass
    return refused.value.status, refused.value.reason


async def state_of(tenant: TenantRegistry, device: Device, *, is_online: bool) -> Any:
    """The device's state once it is this."""
    with trio.fail_after(20):
        while True:
            state = (await tenant.devices.find(device.id)).state
            if state.online == is_online:
                return state
            await trio.sleep(0.05)


async def test_a_device_of_the_registry_connects_and_says_who_paired_it(
    database_url: str, acme: TenantRegistry
) -> None:
    _, token = await acme.devices.add("cam1", paired_by="ann")
    async with following(config_for(database_url)) as proxy, agent_with(proxy, token):
        await online(proxy, "cam1--acme")
        (summary,) = await proxy.store.list()
        assert (summary.device_id, summary.user_id) == ("cam1--acme", "ann")


async def test_a_label_of_the_registry_is_known_as_soon_as_it_is_set(
    database_url: str, default: TenantRegistry
) -> None:
    device, token = await default.devices.add("cam1", labels={"role": "shop"})
    async with following(config_for(database_url)) as proxy, agent_with(proxy, token):
        await online(proxy, "cam1")
        assert proxy.devices.labelled("role", "shop") == ("cam1",)
        await default.devices.change(device.id, labels={"role": "other"})
        with trio.fail_after(30):
            while proxy.devices.labelled("role", "other") != ("cam1",):  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert proxy.devices.labelled("role", "shop") == ()


async def test_the_registry_says_on_which_port_the_internal_api_was_bound(
    database_url: str, registry: Registry
) -> None:
    """The system chooses it, and the back end reads of it here."""
    config = msgspec.structs.replace(
        config_for(database_url), internal=InternalListener(listen="127.0.0.1:0")
    )
    async with following(config) as proxy:
        assert proxy.internal_address is not None
        bound = f"http://127.0.0.1:{proxy.internal_address.port}"
        with trio.fail_after(30):
            while [known.internal_url for known in await registry.fleet.proxies()] != [bound]:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_device_of_the_file_hides_one_of_the_registry(
    database_url: str, default: TenantRegistry
) -> None:
    _, token = await default.devices.add("cam1")
    mine = DeviceConfig(name="cam1", token=Secret("of-the-file"))
    async with following(config_for(database_url, devices=(mine,))) as proxy:
        assert await refusal_of(proxy, token) == (401, "unauthorized")
        async with agent_with(proxy, Secret("of-the-file")):
            await online(proxy, "cam1")


async def test_a_device_that_was_paired_a_moment_ago_gets_in_at_once(
    database_url: str, acme: TenantRegistry
) -> None:
    async with following(config_for(database_url)) as proxy:
        for number in range(3):
            _, token = await acme.devices.add(f"cam{number}")
            async with within_bound(), agent_with(proxy, token):
                await online(proxy, f"cam{number}--acme")


@pytest.mark.slow
async def test_a_flood_of_wrong_tokens_costs_the_database_a_few_looks(
    database_url: str, acme: TenantRegistry
) -> None:
    await acme.devices.add("cam1")
    async with following(config_for(database_url)) as proxy:
        assert proxy.registered is not None
        await proxy.registered.wait_loaded(5)
        looks = 0

        def count(*_: object) -> None:
            nonlocal looks
            looks += 1

        engine: sa.Engine = proxy.registered._registry._database.engine  # type: ignore[union-attr]
        sa.event.listen(engine, "before_cursor_execute", count)
        began = trio.current_time()
        places = trio.CapacityLimiter(12)  # under what one address may have of the proxy's

        async def try_token(number: int) -> None:
            async with places:
                assert await refusal_of(proxy, Secret(f"wrong-{number}")) == (401, "unauthorized")

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(try_token, number)
        assert looks <= 20 + 40 * (trio.current_time() - began)
        # Each is remembered for a while: now there is nothing to look for at all.
        looks, rounds = 0, 5
        for _ in range(rounds):
            assert await refusal_of(proxy, Secret("wrong-0")) == (401, "unauthorized")
        sa.event.remove(engine, "before_cursor_execute", count)
        assert looks <= 20


Act = Callable[[Registry, TenantRegistry, Device], Awaitable[int | None]]


async def revoke(_: Registry, tenant: TenantRegistry, device: Device) -> int:
    return (await tenant.credentials.revoke(device.id)).change


async def disable(_: Registry, tenant: TenantRegistry, device: Device) -> int:
    return (await tenant.devices.set_enabled(device.id, False)).change


async def quarantine(_: Registry, tenant: TenantRegistry, device: Device) -> int:
    return (await tenant.devices.set_quarantine(device.id, "cloned")).change


async def remove(_: Registry, tenant: TenantRegistry, device: Device) -> int:
    return (await tenant.devices.remove(device.id)).change


async def replace_token(_: Registry, tenant: TenantRegistry, device: Device) -> int:
    revocation, _token = await tenant.credentials.replace(device.id)
    return revocation.change


async def rename(registry: Registry, tenant: TenantRegistry, device: Device) -> int:
    before = await registry.changes.latest()
    await tenant.devices.change(device.id, name="elsewhere")
    return await number_since(registry, before, device.id)


async def disable_tenant(registry: Registry, tenant: TenantRegistry, _: Device) -> int:
    before = await registry.changes.latest()
    await registry.installation(ANN).tenants.change(tenant.tenant_id, enabled=False)
    return await number_since(registry, before, tenant.tenant_id)


async def number_since(registry: Registry, before: int, object_id: str) -> int:
    """Not the latest: the proxy may have published its key in this moment."""
    changes = await registry.changes.after(before)
    assert changes is not None
    return next(change.number for change in changes if change.object_id == object_id)


@pytest.mark.parametrize(
    "act", [revoke, disable, quarantine, remove, replace_token, rename, disable_tenant]
)
async def test_what_may_not_go_on_ends_in_time_and_is_counted(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, database_url: str, act: Act
) -> None:
    device, token = await acme.devices.add("cam1")
    _, neighbour = await other.devices.add("cam1")
    async with (
        following(config_for(database_url)) as proxy,
        agent_with(proxy, neighbour) as staying,
        agent_with(proxy, token) as leaving,
    ):
        await online(proxy, "cam1--acme")
        await online(proxy, "cam1--other")
        visit = proxy.visits.begin("tcp", device="cam1--acme", service=None, visitor="1.2.3.4:5")
        number = await act(registry, acme, device)
        assert number is not None
        async with within_bound():
            effects = await registry.changes.effects(number, within=BOUND)
            await leaving.wait_closed()
        assert_one_session_ended(effects)
        assert visit.cut_reason is not None
        assert not staying.is_closed
        if act is not rename:  # under the new name the old token is good
            assert await refusal_of(proxy, token) in {
                (401, "unauthorized"),
                (403, "device-disabled"),
            }


def assert_one_session_ended(effects: Effects) -> None:
    assert (effects.sessions, effects.visits, effects.missing) == (1, 1, [])


class Download:
    """A visitor that reads an endless answer of a device, through the proxy."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.received = 0

    async def read(self, least: int) -> None:
        """Return when so many more bytes have come."""
        wanted = self.received + least
        while self.received < wanted:
            self.received += len(piece := await self._stream.receive_some(65536))
            assert piece, "the download has ended"

    async def read_to_its_end(self) -> None:
        try:
            while await self._stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass


async def endless(stream: trio.SocketStream) -> None:
    """A target whose one answer never ends."""
    await stream.receive_some(65536)
    try:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 16384)
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def downloading(proxy: RunningProxy, host: str) -> AsyncIterator[Download]:
    assert proxy.http_address is not None
    async with await trio.open_tcp_stream(*proxy.http_address) as stream:
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: {host}.localhost\r\n\r\n".encode())
        download = Download(stream)
        with trio.fail_after(20):
            await download.read(200_000)
        yield download


async def test_revoking_ends_a_running_download_and_its_neighbours_goes_on(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, database_url: str
) -> None:
    device, token = await acme.devices.add("cam1")
    _, neighbour = await other.devices.add("cam1")
    config = config_for(database_url, public=("cam1--acme", "cam1--other"))
    async with trio.open_nursery() as nursery, following(config) as proxy:
        (listener,) = await nursery.start(partial(trio.serve_tcp, endless, 0, host="127.0.0.1"))
        target = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with (
            # It would dial again at once, and end for good when it is told why it was cut.
            agent_at(agent_config(proxy, target, token=token), uniform=lambda *_: 60.0),
            agent_at(agent_config(proxy, target, token=neighbour)),
            downloading(proxy, "cam1--acme") as ending,
            downloading(proxy, "cam1--other") as staying,
        ):
            number = await revoke(registry, acme, device)
            async with within_bound():
                await ending.read_to_its_end()
                effects = await registry.changes.effects(number, within=BOUND)
            assert_one_session_ended(effects)
            with trio.fail_after(20):
                await staying.read(1_000_000)
        nursery.cancel_scope.cancel()


async def test_every_proxy_answers_for_what_it_ended(
    registry: Registry, acme: TenantRegistry, database_url: str
) -> None:
    device, token = await acme.devices.add("cam1")
    async with (
        following(config_for(database_url, name="p1")) as first,
        following(config_for(database_url, name="p2")) as second,
        agent_with(first, token),
        agent_with(second, token),
    ):
        await online(first, "cam1--acme")
        await online(second, "cam1--acme")
        number = await revoke(registry, acme, device)
        effects = await registry.changes.effects(number, within=BOUND)
        assert sorted(effect.proxy_name for effect in effects.done) == ["p1", "p2"]
        assert (effects.sessions, effects.missing) == (2, [])


@pytest.mark.slow
async def test_what_an_agent_says_and_does_is_written_back(
    acme: TenantRegistry, database_url: str
) -> None:
    device, token = await acme.devices.add("cam1")
    async with following(config_for(database_url)) as proxy:
        async with agent_with(proxy, token, services="web, ssh, No Name"):
            state = await state_of(acme, device, is_online=True)
            assert state.agent_version == "9.9"
            assert state.address.startswith("127.0.0.1:")
            assert state.services == ("web", "ssh")
        await state_of(acme, device, is_online=False)
        (session,) = (await acme.devices.sessions(device.id)).items
        assert (session.ended is not None, session.reason) == (True, "the peer ended the session")


@pytest.mark.slow
async def test_a_cloned_device_is_shown_until_it_has_another_token(
    acme: TenantRegistry, database_url: str
) -> None:
    device, token = await acme.devices.add("cam1")
    async with following(config_for(database_url)) as proxy:
        async with agent_with(proxy, token, instance="first"):
            await online(proxy, "cam1--acme")
            async with agent_with(proxy, token, instance="clone"):
                await online(proxy, "cam1--acme")
                async with agent_with(proxy, token, instance="first"):
                    with trio.fail_after(20):
                        while not (  # noqa: ASYNC110
                            await acme.devices.find(device.id)
                        ).state.rival:
                            await trio.sleep(0.05)
        state = (await acme.devices.find(device.id)).state
        assert state.rival.startswith("127.0.0.1:")
        assert state.rival_seen is not None
    await acme.credentials.replace(device.id)
    assert (await acme.devices.find(device.id)).state.rival == ""


async def test_a_bug_in_following_ends_no_tunnel(
    acme: TenantRegistry, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await acme.devices.add("cam1")
    with capture_logs() as logs:
        async with following(config_for(database_url)) as proxy, agent_with(proxy, token) as live:
            await online(proxy, "cam1--acme")
            with monkeypatch.context() as patched:

                def fail(*_: object, **__: object) -> None:
                    raise ZeroDivisionError

                patched.setattr(proxy.devices, "replace_registered", fail)
                await acme.devices.add("cam2")
                with trio.fail_after(20):
                    while proxy.registered is None or proxy.registered.away is None:  # noqa: ASYNC110
                        await trio.sleep(0.02)
                assert not live.is_closed
            with trio.fail_after(20):
                while proxy.registered.away is not None:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            assert proxy.devices.knows("cam2--acme")
    assert "unhandled error in the registry" in [log["event"] for log in logs]


@pytest.mark.slow
async def test_a_proxy_that_ends_takes_its_devices_along(
    registry: Registry, acme: TenantRegistry, database_url: str
) -> None:
    device, token = await acme.devices.add("cam1")
    async with following(config_for(database_url)) as proxy, agent_with(proxy, token):
        await state_of(acme, device, is_online=True)
        await proxy.drain(0)
    assert not (await acme.devices.find(device.id)).state.online
    assert [known.living for known in await registry.fleet.proxies()] == [False]


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite:///relative.db"])
async def test_a_url_that_cannot_be_used_is_said_before_anything_is_served(url: str) -> None:
    with pytest.raises(ConfigError, match=r"registry\.url"):
        await run_proxy(config_for(url))


# -- the registry away ----------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[PostgreSQL]:
    """A server that this test may stop and freeze."""
    with run_postgresql() as server:
        yield server


class Away:
    """A registry on a server of its own, with one device that was there before, and one session."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.url = server.new_database()
        upgrade_database(Secret(self.url))

    async def check_known_goes_on(self, proxy: RunningProxy, token: Secret, live: Session) -> None:
        """What was known before goes on, and nothing that was not."""
        assert not live.is_closed
        async with within_bound(), agent_with(proxy, token):
            await online(proxy, "cam2")
        with trio.fail_after(20):
            assert await refusal_of(proxy, Secret("unknown")) == (503, "registry-away")
        # From now on that is known, and said at once.
        async with within_bound():
            assert await refusal_of(proxy, Secret("unknown")) == (503, "registry-away")

    async def check_back(self, proxy: RunningProxy, live: Session) -> None:
        """Changes have their effect again."""
        async with open_registry(Secret(self.url), timeout=30) as registry:
            tenant = await registry.installation(ANN).tenants.find_named("default")
            devices = registry.tenant(tenant.id, by=ANN).devices
            device = await devices.find_named("cam1")
            with trio.fail_after(30):
                await devices.set_enabled(device.id, False)
                await live.wait_closed()
            _, token = await devices.add("cam3")
        with trio.fail_after(30):
            while not await self._gets_in(proxy, token, "cam3"):  # noqa: ASYNC110
                await trio.sleep(0.1)

    async def _gets_in(self, proxy: RunningProxy, token: Secret, name: str) -> bool:
        """Whether an agent is let in, which is refused while the last attempt to reach the registry
        has its time, and would dial again."""
        try:
            async with agent_with(proxy, token):
                await online(proxy, name)
        except ConnectRefused as refused:
            assert (refused.status, refused.reason) == (503, "registry-away")
            return False
        return True


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["stopped", "frozen", "slow"])
async def test_a_registry_that_is_away_takes_nothing_from_those_known_before(
    own_server: PostgreSQL, trouble: str
) -> None:
    away = Away(own_server)
    async with open_registry(Secret(away.url)) as registry:
        tenant = await registry.installation(ANN).tenants.find_named("default")
        devices = registry.tenant(tenant.id, by=ANN).devices
        _, first = await devices.add("cam1")
        _, second = await devices.add("cam2")
    async with following(config_for(away.url)) as proxy, agent_with(proxy, first) as live:
        await online(proxy, "cam1")
        if trouble == "stopped":
            await trio.to_thread.run_sync(own_server.stop)
        elif trouble == "frozen":
            own_server.freeze()
        else:
            lock = await trio.to_thread.run_sync(
                own_server.lock, away.url, "changes, counters, devices"
            )
        await away.check_known_goes_on(proxy, second, live)
        if trouble == "stopped":
            await trio.to_thread.run_sync(own_server.start)
        elif trouble == "frozen":
            own_server.thaw()
        else:
            lock.close()
        await away.check_back(proxy, live)


@pytest.mark.slow
async def test_a_proxy_starts_without_its_registry_and_finds_it_later(
    own_server: PostgreSQL,
) -> None:
    away = Away(own_server)
    async with open_registry(Secret(away.url)) as registry:
        tenant = await registry.installation(ANN).tenants.find_named("default")
        _, token = await registry.tenant(tenant.id, by=ANN).devices.add("cam1")
    await trio.to_thread.run_sync(own_server.stop)
    mine = DeviceConfig(name="mine", token=Secret("of-the-file"))
    with capture_logs() as logs:
        async with following(config_for(away.url, devices=(mine,)), loaded=False) as proxy:
            async with agent_with(proxy, Secret("of-the-file")):
                await online(proxy, "mine")
            assert await refusal_of(proxy, token) == (503, "registry-away")
            await trio.to_thread.run_sync(own_server.start)
            assert proxy.registered is not None
            await proxy.registered.wait_loaded(30)
            async with agent_with(proxy, token):
                await online(proxy, "cam1")
    assert [log["event"] for log in logs].count("registry away") == 1


async def test_a_reload_leaves_the_devices_of_the_registry_alone(
    database_url: str, acme: TenantRegistry
) -> None:
    _, token = await acme.devices.add("cam1")
    config = config_for(database_url)
    async with following(config) as proxy, agent_with(proxy, token) as session:
        await online(proxy, "cam1--acme")
        report = await proxy.reload(config)
        assert report.kicked == []
        assert not session.is_closed
