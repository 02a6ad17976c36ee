"""A device gets another token over its tunnel, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from support.registered import agent_at, agent_config, agent_with, config_for, following
from tunnelmux.config import Secret, hash_token
from tunnelmux.endpoints import dial
from tunnelmux.errors import ConnectError
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.tunnels.rotation import deliver
from tunnelmux.registry import Registry, TenantRegistry
from tunnelmux.sessions import LocalHandle

pytestmark = pytest.mark.timeout(300)


async def states(tenant: TenantRegistry, device_id: str) -> list[str]:
    """The states of the device's credentials, the newest first."""
    return [credential.state for credential in await tenant.credentials.of(device_id)]


async def until_states(tenant: TenantRegistry, device_id: str, wanted: list[str]) -> None:
    with trio.fail_after(120):
        while True:
            if await states(tenant, device_id) == wanted:
                return
            await trio.sleep(0.05)


async def test_a_token_is_rotated_under_a_session_that_goes_on(
    registry: Registry, acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    device, old = await acme.devices.add("cam1")
    file = tmp_path / "token"
    file.write_text(old.reveal())
    file.chmod(0o644)
    async with following(config_for(database_url)) as proxy:
        config = agent_config(proxy, token_file=file)
        async with agent_at(config) as agent:
            session = agent.session
            assert session is not None
            await acme.credentials.rotate(device.id)
            await until_states(acme, device.id, ["active", "ended"])
            assert agent.session is session
            assert not session.is_closed
        new = Secret(file.read_text().strip())
        assert new != old
        assert file.stat().st_mode & 0o777 == 0o600
        assert await registry.fleet.identify(hash_token(old)) is None
        assert not (await acme.devices.find(device.id)).rotation_wanted
        # The new one is what the agent comes back with.
        async with agent_at(config):
            assert await states(acme, device.id) == ["active", "ended"]
    actions = [entry.action for entry in (await acme.audit.page(limit=5)).items]
    assert actions[:4] == [
        "credential.end",
        "credential.prove",
        "credential.add",
        "device.rotate",
    ]


async def test_a_device_that_is_away_is_given_its_token_when_it_comes(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    device, old = await acme.devices.add("cam1")
    await acme.credentials.rotate(device.id)
    file = tmp_path / "token"
    file.write_text(old.reveal())
    async with following(config_for(database_url)) as proxy:
        assert await states(acme, device.id) == ["active"]
        async with agent_at(agent_config(proxy, token_file=file)):
            await until_states(acme, device.id, ["active", "ended"])


async def test_an_agent_that_cannot_keep_a_token_goes_on_with_the_old_one(
    registry: Registry, acme: TenantRegistry, database_url: str
) -> None:
    device, old = await acme.devices.add("cam1")
    with capture_logs() as logs:
        async with (
            following(config_for(database_url)) as proxy,
            agent_at(agent_config(proxy, token=old)) as agent,
        ):
            await acme.credentials.rotate(device.id)
            await until_states(acme, device.id, ["ended", "active"])
            assert agent.session is not None
    assert await registry.fleet.identify(hash_token(old)) is not None
    (log,) = [log for log in logs if log["event"] == "credential not rotated"]
    assert "proxy.token_file" in log["cause"]


async def test_until_the_proof_both_tokens_are_good_and_the_next_session_proves(
    registry: Registry, acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    device, old = await acme.devices.add("cam1")
    file = tmp_path / "token"
    file.write_text(old.reveal())
    attempts = 0

    @asynccontextmanager
    async def dial_once(*args: Any, **kwargs: Any) -> AsyncIterator[trio.abc.Stream]:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            raise ConnectError("the network is gone")
        async with dial(*args, **kwargs) as stream:
            yield stream

    async with following(config_for(database_url)) as proxy:
        config = agent_config(proxy, token_file=file)
        async with agent_at(config, dial=dial_once):
            await acme.credentials.rotate(device.id)
            await until_states(acme, device.id, ["new", "active"])
            with trio.fail_after(120):
                while attempts < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            new = file.read_text().strip()
            assert new != old.reveal()
            for token in (old.reveal(), new):
                assert await registry.fleet.identify(hash_token(token)) is not None
        async with agent_at(config):
            await until_states(acme, device.id, ["active", "ended"])


async def test_a_new_token_is_good_with_every_proxy(
    registry: Registry, acme: TenantRegistry, database_url: str
) -> None:
    device, _ = await acme.devices.add("cam1")
    async with following(config_for(database_url)) as proxy:
        await acme.credentials.rotate(device.id)
        begun = await registry.fleet.begin_credential(device.id)
        assert begun is not None
        async with agent_with(proxy, begun[1]):
            await until_states(acme, device.id, ["active", "ended"])


async def test_a_token_the_proxy_does_not_know_is_put_back(
    acme: TenantRegistry, database_url: str, tmp_path: Path
) -> None:
    _, old = await acme.devices.add("cam1")
    file = tmp_path / "token"
    file.write_text(old.reveal())
    async with (
        following(config_for(database_url)) as proxy,
        agent_at(agent_config(proxy, token_file=file)) as agent,
    ):
        handle = await proxy.store.wait_for_device("cam1--acme", trio.current_time() + 30)
        assert isinstance(handle, LocalHandle)
        delivery = await deliver(handle, Secret("nobody-knows-this"), IngressLimits())
        assert delivery.refused
        assert "The proxy refused it" in delivery.cause
        assert file.read_text().strip() == old.reveal()
        assert agent.session is not None


_NO_TOKEN = "token that a header can carry"


@pytest.mark.parametrize(
    ("token", "cause"),
    [("", _NO_TOKEN), ("two words", _NO_TOKEN), ("x" * 20_000, "The body is longer than")],
)
async def test_what_is_no_token_is_refused_and_nothing_is_written(
    acme: TenantRegistry, database_url: str, tmp_path: Path, token: str, cause: str
) -> None:
    _, old = await acme.devices.add("cam1")
    file = tmp_path / "token"
    file.write_text(old.reveal())
    async with (
        following(config_for(database_url)) as proxy,
        agent_at(agent_config(proxy, token_file=file)),
    ):
        handle = await proxy.store.wait_for_device("cam1--acme", trio.current_time() + 30)
        assert isinstance(handle, LocalHandle)
        delivery = await deliver(handle, Secret(token), IngressLimits())
        assert delivery.refused
        assert cause in delivery.cause
        assert file.read_text() == old.reveal()
