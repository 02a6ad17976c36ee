"""Devices of a fleet: `python -m bench.failures.devices URL COUNT` runs that many agents, each with
a web server that answers with the device's name."""

from __future__ import annotations

import sys
from functools import partial

import trio

from bench.fleet import device_name, device_token
from bench.processes import HOST
from tunnelmux.agent import run_agent
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig


async def main(url: str, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(run_device, nursery, url, number)


async def run_device(nursery: trio.Nursery, url: str, number: int) -> None:
    name = device_name(number)
    serve = partial(trio.serve_tcp, partial(answer, name.encode()), 0, host=HOST)
    (listener,) = await nursery.start(serve)
    port = listener.socket.getsockname()[1]
    await run_agent(
        AgentConfig(
            proxy=ProxyEndpoint(url=url, token=Secret(device_token(number))),
            device=Device(name=name),
            services=[ServiceConfig(name="web", target=f"http://{HOST}:{port}")],
        )
    )


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
    trio.run(main, sys.argv[1], int(sys.argv[2]))
