"""A node of several workers: other nodes see one node, and reach devices at each of its workers."""

from __future__ import annotations

import json
import signal

import pytest
import trio

from support.daemons import DaemonSet
from support.origin import Origin, serving
from support.redis_server import RedisServer, run_redis
from support.tunnels import Tunnel
from support.visitor import fetch
from support.workers import PATIENCE, SECRET, Workers
from tunnelmux.backend import ProxyClient
from tunnelmux.config import Address

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

AT_ONCE = "[backoff]\nminimum = 0.05\nearly = 0.1\nmaximum = 0.2\n"


def as_node(redis: RedisServer, name: str) -> str:
    return f'[cluster]\nredis = "{redis.url}"\nlisten = "127.0.0.1:0"\nnode = "{name}"\n'


INTERNAL = f'[internal]\nlisten = "127.0.0.1:0"\nsecret = "{SECRET}"\n'


async def called_by_token(many: Workers, one: Address) -> None:
    """A back end calls either machine about a session that is at any worker of either."""
    fields = [("Authorization", f"Bearer {SECRET}")]
    for at, other in ((many.at_internal, one), (one, many.at_internal)):
        answer = await fetch(at, "/internal/sessions", headers=fields)
        for session in json.loads(answer.body)["sessions"]:
            for _ in range(4):  # calls come to either worker
                path = f"/internal/session/{session['token']}"
                told = json.loads((await fetch(other, path, headers=fields)).body)
                assert told["device_id"] == session["deviceId"]


async def reaches(address: Address, device: str) -> None:
    """Return when visitors there get the device's page."""
    with trio.fail_after(PATIENCE):
        while (answer := await fetch(address, device=device)).status != 200:
            assert answer.status == 503, answer
            await trio.sleep(0.05)
    assert answer.body == b"hello\n"


async def test_a_node_of_two_workers(daemons: DaemonSet) -> None:
    with run_redis() as redis:
        async with serving(Origin().handle) as web:
            await run(daemons, redis, web)


async def run(daemons: DaemonSet, redis: RedisServer, web: Address) -> None:
    devices = ("dev1", "dev2", "dev3")
    many, one = Workers(daemons), Tunnel(daemons)
    await many.start(web, as_node(redis, "a"), devices=devices)
    assert many.worker_of("dev1") != many.worker_of("dev2")
    # The other machine's node has the name that a worker would have without a cluster.
    one.tokens = many.tokens
    await one.start_proxy(devices=devices, more=as_node(redis, "worker-2") + INTERNAL)
    await one.proxy.logged("node joined", node="a")
    await one.start_agent({"web": f"http://{web}"}, device="dev3", more=AT_ONCE)
    assert redis.command("HLEN", "tunnelmux:nodes") == b":2\r\n"

    # Hops of the other node come to either worker, and each leads to the devices of both.
    for device in devices:
        await reaches(one.at_http, device)
        for _ in range(6):  # visitors come to either worker, too
            await reaches(many.at_http, device)
    assert redis.command("HLEN", "tunnelmux:incarnations") == b":2\r\n"

    at_internal = await one.proxy.listening("internal.listen")
    await called_by_token(many, at_internal)

    # A worker is killed: its device goes to the other one, and is found there from both machines.
    dies, since = many.worker_of("dev2"), len(many.proxy.events)
    async with ProxyClient(f"http://{at_internal}", secret=SECRET).events() as events:
        many.kill(dies)
        with trio.fail_after(PATIENCE):
            async for _, event in events:
                if event is not None and (event.type, event.device_id) == ("lost", "dev2"):
                    assert event.proxy_node_id == "a"
                    assert event.reason.startswith(f"{dies}, which had it, ended")
                    break
    for address in (one.at_http, many.at_http):
        await reaches(address, "dev2")
    await many.proxy.logged("worker ready", since=since, worker=dies)
    for device in devices:
        for address in (one.at_http, many.at_http):
            await reaches(address, device)

    # The device moves to the other machine, under another start of its agent: the session at the
    # worker is over, and visitors of both workers find it there.
    since = len(many.proxy.events)
    one.agents["dev1"] = await daemons.start(
        "agent", one.agent_file({"web": f"http://{web}"}, device="dev1", more=AT_ONCE)
    )
    await many.proxy.logged("session ended", since=since, device="dev1")
    many.agents["dev1"].send_signal(signal.SIGKILL)
    for _ in range(6):
        await reaches(many.at_http, "dev1")

    # The other machine's node goes: the workers are told.
    one.proxy.send_signal(signal.SIGKILL)
    await many.proxy.logged("node gone", node="worker-2")
    await reaches(many.at_http, "dev2")
