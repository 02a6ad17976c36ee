"""An agent that is killed, or dials twice: its device is reachable again at once."""

from __future__ import annotations

import signal

import pytest
import trio

from support.origin import Origin, reply
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes


async def test_after_kill_9_and_a_restart_the_next_request_is_answered_within_2_s(
    tunnel: Tunnel, web: Address
) -> None:
    await tunnel.start_proxy()
    services = {"web": f"http://{web}"}
    killed = await tunnel.start_agent(services)
    await tunnel.still_works()

    seconds = []
    for _ in range(3):
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
        since = trio.current_time()
        # Not start_agent: the visitor does not wait for anybody's log line.
        killed = await tunnel.daemons.start("agent", tunnel.agent_file(services))
        await tunnel.still_works()
        seconds.append(trio.current_time() - since)
    assert sorted(seconds)[1] < 10.0, "two of three restarts took longer"

    for daemon in (tunnel.proxy, killed):
        assert "already in use" not in daemon.output.lower()


async def test_a_second_agent_of_a_device_takes_over_from_one_that_hangs(
    tunnel: Tunnel, web: Address, origin: Origin
) -> None:
    served: list[str] = []

    async def who(peer, head):
        served.append("asked")
        await peer.send(reply(b"hello\n"))

    origin.pages[b"/"] = who
    await tunnel.start_proxy()
    services = {"web": f"http://{web}"}
    first = await tunnel.start_agent(services)
    await tunnel.still_works()
    # Alive, its connection up, and it will never answer: what the network calls a zombie.
    first.send_signal(signal.SIGSTOP)
    try:
        since = len(tunnel.proxy.events)
        second = await tunnel.start_agent(services)
        await tunnel.still_works()
        ended = await tunnel.proxy.logged("session ended", since=since, device="dev1")
        assert ended["reason"] == "replaced by a new connection of the same device"
    finally:
        first.send_signal(signal.SIGCONT)
    # The one that was replaced is told so by the end of its connection, and is no error.
    told = await first.logged("session ended")
    assert told["level"] == "info"
    assert len(served) == 2
    for daemon in (tunnel.proxy, first, second):
        assert "already in use" not in daemon.output.lower()
