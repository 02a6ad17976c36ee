"""A proxy that is restarted while visitors ask."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from support.proxies import free_port
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_visitor_who_asks_at_once_waits_for_the_device(
    tunnel: Tunnel, web: Address, tmp_path: Path, how: signal.Signals
) -> None:
    state = tmp_path / "state"
    configuration = tunnel.proxy_file(
        tunnel=f'127.0.0.1:{free_port()}"\nstate_dir = "{state}',
        http=f"127.0.0.1:{free_port()}",
        more="[limits]\nreconnect_wait = 30.0",
    )

    async def start_proxy() -> None:
        tunnel.proxy = await tunnel.daemons.start("proxy", configuration)
        tunnel.at_tunnel = await tunnel.proxy.listening("tunnel.listen")
        tunnel.at_http = await tunnel.proxy.listening("ingress.http.listen")

    await start_proxy()
    services = {"web": f"http://{web}"}
    await tunnel.start_agent(services)
    lost = await tunnel.start_agent(services, device="dev2")
    await tunnel.still_works()
    lost.send_signal(signal.SIGTERM)
    await tunnel.proxy.logged("session ended", device="dev2")
    for _ in range(2):
        await trio.sleep(1.1)  # a crash may forget its last second
        tunnel.proxy.send_signal(how)
        await tunnel.proxy.wait()
        await trio.sleep(1.5)
        await start_proxy()
        answers = []
        with trio.fail_after(45):
            async with trio.open_nursery() as visitors:
                for _ in range(3):
                    visitors.start_soon(partial(_ask, tunnel, answers))
        assert answers == [200, 200, 200]
    # Of the other one it is known when it was seen, and nobody waits for it.
    began = trio.current_time()
    answer = await tunnel.fetch(device="dev2")
    assert answer.status == 503
    assert trio.current_time() - began < 20, "the answer waited reconnect_wait"
    assert b"it was last seen on " in answer.body


async def _ask(tunnel: Tunnel, answers: list[int]) -> None:
    answers.append((await tunnel.fetch(device="dev1")).status)
