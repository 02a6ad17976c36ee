"""An agent in whose place another one connects: what it says, and that it keeps away."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import structlog
import trio
import trustme
from structlog.typing import EventDict

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


REPLACED, RIVALS = "replaced by another agent", "two agents with one credential"


def of(logs: list[EventDict], event: str) -> list[EventDict]:
    return [line for line in logs if line["event"] == event]


def both_told(logs: list[EventDict]) -> bool:
    """Whether the proxy and an agent have said that there are two."""
    return {"remote" in line for line in of(logs, RIVALS)} == {True, False}


@pytest.mark.parametrize("is_secure", [False, True])
async def test_two_agents_with_one_token_say_so_and_do_not_thrash(
    tmp_path: Path, is_secure: bool
) -> None:
    at_proxy, ca_file = proxy_config(), None
    if is_secure:
        authority, ca_file, own = trustme.CA(), tmp_path / "ca.pem", tmp_path / "own.pem"
        authority.cert_pem.write_to_path(ca_file)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(own)
        tunnel = msgspec.structs.replace(at_proxy.tunnel, tls_certificate=own, tls_key=own)
        at_proxy = msgspec.structs.replace(at_proxy, tunnel=tunnel)
    with structlog.testing.capture_logs() as logs:
        async with running(at_proxy) as proxy, trio.open_nursery() as agents:
            config = agent_config(proxy, 0.2, ca_file)
            for _ in range(2):
                agent = await agents.start(run_agent, config)
                with trio.fail_after(30):
                    await agent.wait_connected()
            with trio.fail_after(30):
                while len(of(logs, REPLACED)) < 4 or not both_told(logs):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            agents.cancel_scope.cancel()
    replaced = of(logs, REPLACED)
    started = [line for line in logs if line["event"] == "session started" and "remote" in line]
    addresses = {line["remote"] for line in started}
    for line in replaced:
        assert line["log_level"] == "warning"
        assert line["by"] in addresses
        assert "stop one of the two" in line["fix"]
        # From half of what was set to all of it, and more each time; the ordinary one is 0.02.
        assert line["retry_in"] >= 0.1
    assert both_told(logs)
    assert all("name and a token of its own" in line["fix"] for line in of(logs, RIVALS))


async def test_an_agent_that_merely_comes_back_is_not_taken_for_another() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(proxy_config()) as proxy, trio.open_nursery() as agents:
            agent = await agents.start(run_agent, agent_config(proxy, 30.0))
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
            agents.cancel_scope.cancel()
    assert of(logs, REPLACED) == of(logs, RIVALS) == []
