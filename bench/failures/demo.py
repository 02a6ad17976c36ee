"""`make demo-cluster`: two proxies of one cluster under load. One is killed, and its devices move
to the other one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

import trio

from bench.failures.stage import DEVICES, Stage, stage
from bench.failures.visitors import VISITORS, Request
from bench.processes import HOST, StartFailure
from bench.rounds import scratch_folder

KILLED_AT, BACK_AT, END = 5, 15, 25
"""Seconds."""


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="demo-cluster", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end by itself; 1 if a request failed")
    arguments = parser.parse_args()
    try:
        failed = trio.run(show, arguments.once)
    except StartFailure as exc:
        sys.exit(f"demo-cluster: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(failed > 0)


async def show(once: bool) -> int:
    """Run it, and write a line for each second. The number of requests that failed."""
    print(
        f"starting Redis, the nodes a and b, {DEVICES} devices and {VISITORS} visitors", flush=True
    )
    total = failed = wrong = second = 0
    with scratch_folder() as folder:
        async with stage(folder, nodes=2, workers=1) as this, trio.open_nursery() as nursery:
            say_where(this)
            began = trio.current_time()
            this.crowd.requests.clear()
            while not once or second < END:
                second += 1
                await trio.sleep_until(began + second)
                seen, this.crowd.requests = this.crowd.requests, []
                print(line(second, seen, await places(this)), flush=True)
                failed += sum(bool(request.problem) for request in seen)
                wrong += sum(bool(request.wrong) for request in seen)
                total += len(seen)
                if second == KILLED_AT:
                    this.kill("b")
                    print(
                        "        node b is killed: sessions with node a serve its devices",
                        flush=True,
                    )
                if second == BACK_AT:
                    nursery.start_soon(this.start_proxy, "b")
                    print("        node b is started again", flush=True)
            nursery.cancel_scope.cancel()
    print(f"{total:,} requests, {failed} failed, {wrong} answered by another device", flush=True)
    return failed + wrong


def say_where(this: Stage) -> None:
    for proxy in this.proxies.values():
        print(f"node {proxy.name}: curl -H 'Host: device0.localhost' http://{HOST}:{proxy.http}/")
    print(f"in {KILLED_AT} s node b is killed, and started again {BACK_AT - KILLED_AT} s later")


async def places(this: Stage) -> dict[str, int]:
    """How many devices each node has, by its internal API; a node that is not there has none."""
    found = {}
    for proxy in this.proxies.values():
        answer = b""
        with trio.move_on_after(1):
            try:
                async with await trio.open_tcp_stream(HOST, proxy.internal) as stream:
                    await stream.send_all(
                        b"GET /internal/sessions HTTP/1.1\r\nHost: localhost\r\n"
                        b"Connection: close\r\n\r\n"
                    )
                    async for data in stream:
                        answer += data
            except (OSError, trio.BrokenResourceError):
                pass
        body = answer.partition(b"\r\n\r\n")[2]
        found[proxy.name] = len(json.loads(body)["sessions"]) if body else 0
    return found


def line(second: int, seen: Sequence[Request], devices: dict[str, int]) -> str:
    failed = sum(bool(request.problem) for request in seen)
    again = sum(request.retried for request in seen)
    longest = max((request.ended - request.began for request in seen), default=0.0)
    held = "  ".join(f"{name} {count:2}" for name, count in devices.items())
    return (
        f"{second:4} s  {len(seen):5} requests  {failed:3} failed  {again:3} asked again  "
        f"longest wait {longest:5.2f} s  devices: {held}"
    )


if __name__ == "__main__":
    main()
