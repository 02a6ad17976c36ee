"""`make demo-cluster`: the installation of deploy/compose without containers, under load. A proxy
is killed and devices move to the other one; then a copy of the API."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import httpx2
import trio

from bench.cluster.installation import FILES, Installation, installation
from bench.cluster.person import checks
from bench.failures.stage import DEVICES, all_answer
from bench.failures.visitors import VISITORS, Crowd, Door, Request
from bench.fleet import device_name
from bench.processes import HOST, StartFailure
from bench.rounds import scratch_folder

KILLED_AT, BACK_AT, API_KILLED_AT, END = 5, 15, 18, 25
"""Seconds."""


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="demo-cluster", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end by itself; 1 if anything failed")
    arguments = parser.parse_args()
    try:
        failed = trio.run(show, arguments.once)
    except StartFailure as exc:
        sys.exit(f"demo-cluster: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(failed > 0)


async def show(once: bool) -> int:
    """Run it, and write a line for each second. The number of failures."""
    print(
        "starting PostgreSQL, Redis, 2 proxies, 2 copies of the API, 2 gateways, nginx", flush=True
    )
    with scratch_folder() as folder:
        async with installation(folder) as this, trio.open_nursery() as nursery:
            crowd = await start_load(this, nursery)
            say_where(this)
            failed = await run(this, nursery, crowd, once)
            nursery.cancel_scope.cancel()
    return failed


async def start_load(this: Installation, nursery: trio.Nursery) -> Crowd:
    """The devices and the visitors, once each device has answered."""
    url = f"ws://{HOST}:{this.ports[3800]}/tunnel/connect"
    tokens = str(FILES / "tokens")
    this.run("devices", [sys.executable, "-m", "bench.failures.devices", url, tokens])
    crowd = Crowd(
        [device_name(number) for number in range(DEVICES)], [Door("nginx", HOST, this.ports[8080])]
    )
    nursery.start_soon(crowd.run)
    await all_answer(crowd)
    return crowd


def say_where(this: Installation) -> None:
    console, visitors, ssh = (this.ports[port] for port in (8000, 8080, 2222))
    print(f"the console   http://localhost:{console}     sign in as ada@example.com")
    print(f"a device      http://device0.localhost:{visitors}")
    print(f"the gateway   ssh -p {ssh} {HOST}")
    if "prometheus" in this.pids:
        print(f"Prometheus    http://{this.addresses['prometheus']}:9090")
    print(f"{DEVICES} devices, {VISITORS} visitors; Ctrl-C ends it", flush=True)


async def run(this: Installation, nursery: trio.Nursery, crowd: Crowd, once: bool) -> int:
    crowd.requests.clear()
    began = trio.current_time()
    total = failed = wrong = second = 0
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        while not once or second < END:
            second += 1
            await trio.sleep_until(began + second)
            seen, crowd.requests = crowd.requests, []
            print(line(second, seen, await places(this, client)), flush=True)
            failed += sum(bool(request.problem) for request in seen)
            wrong += sum(bool(request.wrong) for request in seen)
            total += len(seen)
            await act(this, nursery, second)
        print(f"{total:,} requests, {failed} failed, {wrong} answered by another device")
        for name, is_good in await checks(this, client):
            print(f"{'ok    ' if is_good else 'FAILED'}  {name}", flush=True)
            failed += not is_good
    return failed + wrong


async def act(this: Installation, nursery: trio.Nursery, second: int) -> None:
    """What happens after this second."""
    if second == KILLED_AT:
        os.kill(this.pids["proxy-b"], signal.SIGKILL)
        print("        proxy-b is killed: the sessions with proxy-a serve its devices")
    elif second == BACK_AT:
        nursery.start_soon(this.start_program, "proxy-b")
        print("        proxy-b is started again")
    elif second == API_KILLED_AT:
        os.kill(this.pids["api-a"], signal.SIGKILL)
        print("        api-a is killed: api-b answers for both")


async def places(this: Installation, client: httpx2.AsyncClient) -> dict[str, int]:
    """How many devices each proxy has, by its internal API; one that is not there has none."""
    secret = (this.state / "internal.secret").read_text("utf-8").strip()
    found = dict.fromkeys(("proxy-a", "proxy-b"), 0)
    for name in found:
        url = f"http://{this.addresses[name]}:3801/internal/sessions"
        with trio.move_on_after(1), contextlib.suppress(httpx2.HTTPError):
            answer = await client.get(url, headers={"authorization": f"Bearer {secret}"})
            found[name] = len(json.loads(answer.content)["sessions"])
    return found


def line(second: int, seen: Sequence[Request], devices: dict[str, int]) -> str:
    failed = sum(bool(request.problem) for request in seen)
    longest = max((request.ended - request.began for request in seen), default=0.0)
    held = "  ".join(f"{name} {count:2}" for name, count in devices.items())
    return (
        f"{second:4} s  {len(seen):5} requests  {failed:3} failed  "
        f"longest wait {longest:5.2f} s  devices: {held}"
    )


if __name__ == "__main__":
    main()
