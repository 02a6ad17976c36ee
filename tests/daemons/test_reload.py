"""SIGHUP to an agent: the file is read again, and what need not end goes on."""

from __future__ import annotations

import signal

import pytest
import trio

from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes


async def test_an_agent_reads_its_file_again_and_keeps_its_session(
    tunnel: Tunnel, web: Address
) -> None:
    await tunnel.start_proxy()
    agent = await tunnel.start_agent({"web": f"http://{web}"})
    await tunnel.still_works()
    file = tunnel.daemons.file(agent.name)

    async def change(configuration: str, event: str) -> dict[str, object]:
        since = len(agent.events)
        tunnel.daemons.write(file, configuration)
        agent.send_signal(signal.SIGHUP)
        return await agent.logged(event, since=since)

    # For as long as it may take the other way: by a visitor who came before.
    more = {"web": f"http://{web}", "more": f"http://{web}"}
    await change(tunnel.agent_file(more), "configuration reloaded")
    answer = await tunnel.fetch(device="dev1", service="more")
    assert (answer.status, answer.body) == (200, b"hello\n")

    refused = await change("[proxi]\n", "configuration not reloaded; the one before stays")
    assert 'proxi: is not a known key: did you mean "proxy"?' in str(refused["error"])

    await change(tunnel.agent_file({"web": f"http://{web}"}), "configuration reloaded")
    for _ in range(2):  # the first may still go by what the proxy remembers
        answer = await tunnel.fetch(device="dev1", service="more")
        assert answer.status == 404
    await tunnel.still_works()
    assert [event["event"] for event in agent.events].count("session started") == 1

    wrong = tunnel.agent_file({"web": "http://127.0.0.1:1"})
    await change(wrong, "session started")
    with trio.fail_after(30):
        assert (await tunnel.fetch(device="dev1")).status == 502
    assert agent.status is None
