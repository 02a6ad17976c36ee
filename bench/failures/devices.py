"""Devices of a fleet: `python -m bench.failures.devices URL TOKENS` runs an agent for each line of
that file, each with a web server that answers with the device's name. With `--churn 300` each is
away for a moment about every 300 seconds."""

from __future__ import annotations

import argparse
import math
import random
from functools import partial
from pathlib import Path

import trio

from bench.fleet import device_name
from bench.processes import HOST
from tunnelmux.agent import run_agent
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig

AWAY = 1.0
"""Seconds for which a device that churns is away."""


async def main(url: str, tokens: list[str], churn: float) -> None:
    async with trio.open_nursery() as nursery:
        for number, token in enumerate(tokens):
            nursery.start_soon(run_device, nursery, url, device_name(number), token, churn)


async def run_device(nursery: trio.Nursery, url: str, name: str, token: str, churn: float) -> None:
    serve = partial(trio.serve_tcp, partial(answer, name.encode()), 0, host=HOST)
    (listener,) = await nursery.start(serve)
    port = listener.socket.getsockname()[1]
    config = AgentConfig(
        proxy=ProxyEndpoint(url=url, token=Secret(token)),
        device=Device(name=name),
        services=[ServiceConfig(name="web", target=f"http://{HOST}:{port}")],
    )
    while True:
        with trio.move_on_after(random.uniform(0, 2 * churn) if churn else math.inf):
            await run_agent(config)
        await trio.sleep(AWAY)


async def answer(name: bytes, stream: trio.SocketStream) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name)
    seen = b""
    try:
        async with stream:
            async for data in stream:
                seen += data
                while b"\r\n\r\n" in seen:
                    seen = seen.partition(b"\r\n\r\n")[2]
                    await stream.send_all(head + name)
    except trio.BrokenResourceError:
        return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--churn", type=float, default=0.0)
    given = parser.parse_args()
    trio.run(main, given.url, given.tokens.read_text("utf-8").split(), given.churn)
