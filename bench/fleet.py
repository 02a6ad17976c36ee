"""Many idle agents in few processes, to see what each costs the proxy.

`python -m bench.fleet URL FIRST COUNT` holds COUNT sessions, of the devices from FIRST on, and
prints `connected` when it has them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from contextlib import AsyncExitStack

import trio

import tunnelmux
from tunnelmux.errors import ConnectError
from tunnelmux.limits import Limits

AT_ONCE = 8
"""Handshakes in flight of one process: more of them only wait for each other."""

ATTEMPTS = 5
"""Handshakes that one agent may try: on a busy machine a few take too long."""

# As in agents.py: nothing is said while they connect and are counted.
LIMITS = dataclasses.replace(Limits(), keepalive_interval=300.0)


def device_name(number: int) -> str:
    return f"device{number}"


def device_token(number: int) -> str:
    return f"{number:032x}"


async def hold(url: str, first: int, count: int) -> None:
    places = trio.CapacityLimiter(AT_ONCE)
    up = 0

    async def hold_one(number: int) -> None:
        nonlocal up
        async with AsyncExitStack() as stack:
            async with places:
                await connect(stack, url, device_token(number))
            up += 1
            if up == count:
                print("connected", flush=True)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(first, first + count):
            nursery.start_soon(hold_one, number)


async def connect(stack: AsyncExitStack, url: str, token: str) -> None:
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(ConnectError):
            await stack.enter_async_context(tunnelmux.connect(url, token=token, limits=LIMITS))
            return
    await stack.enter_async_context(tunnelmux.connect(url, token=token, limits=LIMITS))


if __name__ == "__main__":
    trio.run(hold, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
