"""An agent in whose place another one connects: what it says, and that it keeps away."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import structlog
import trio
import trustme

from support.proxies import proxy_config, running
from tunnelmux.agent import run_agent
from tunnelmux.config import (
    AgentConfig,
    BackoffConfig,
    Device,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.proxy import RunningProxy


def agent_config(proxy: RunningProxy, replaced: float, ca_file: Path | None = None) -> AgentConfig:
    return AgentConfig(
        proxy=ProxyEndpoint(
            url=f"{'wss' if ca_file else 'ws'}://{proxy.tunnel_address}/tunnel/connect",
            token=Secret("token-of-dev1"),
            ca_file=ca_file,
        ),
        device=Device(name="dev1"),
        services=[ServiceConfig(name="web", target="http://127.0.0.1:1")],
        backoff=BackoffConfig(minimum=0.01, early=0.02, maximum=0.02, replaced=replaced),
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_secure", [False, True])
async def test_two_agents_with_one_token_say_so_and_do_not_thrash(
    nursery: trio.Nursery, tmp_path: Path, is_secure: bool
) -> None:
    at_proxy, ca_file = proxy_config(), None
    if is_secure:
        authority, ca_file, own = trustme.CA(), tmp_path / "ca.pem", tmp_path / "own.pem"
        authority.cert_pem.write_to_path(ca_file)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(own)
        tunnel = msgspec.structs.replace(at_proxy.tunnel, tls_certificate=own, tls_key=own)
        at_proxy = msgspec.structs.replace(at_proxy, tunnel=tunnel)
    with structlog.testing.capture_logs() as logs:
        async with running(at_proxy) as proxy:
            # A wait is from half of this to all of it, and doubles: in 2 s there are a few turns,
            # and there were a hundred with the ordinary back-off.
            config = agent_config(proxy, 0.2, ca_file)
            for _ in range(2):
                agent = await nursery.start(run_agent, config)
                with trio.fail_after(20):
                    await agent.wait_connected()
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
    replaced = [line for line in logs if line["event"] == "replaced by another agent"]
    assert 2 <= len(replaced) <= 12
    started = [line for line in logs if line["event"] == "session started" and "remote" in line]
    addresses = {line["remote"] for line in started}
    for line in replaced:
        assert line["log_level"] == "warning"
        assert line["by"] in addresses
        assert "stop one of the two" in line["fix"]
        assert line["retry_in"] >= 0.1
    told = [line for line in logs if line["event"] == "two agents with one credential"]
    assert {"remote" in line for line in told} == {True, False}, "the proxy and the agents say so"
    assert all("name and a token of its own" in line["fix"] for line in told)


async def test_an_agent_that_merely_comes_back_is_not_taken_for_another(
    nursery: trio.Nursery,
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(proxy_config()) as proxy:
            agent = await nursery.start(run_agent, agent_config(proxy, 30.0))
            for _ in range(3):
                with trio.fail_after(20):
                    await agent.wait_connected()
                    session = agent.session
                    assert session is not None
                    session.abort()
                    while agent.session is session:  # noqa: ASYNC110  no event says so
                        await trio.sleep(0.01)
            with trio.fail_after(20):
                await agent.wait_connected()
            nursery.cancel_scope.cancel()
    events = {line["event"] for line in logs}
    assert not events & {"replaced by another agent", "two agents with one credential"}
