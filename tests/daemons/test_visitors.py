"""Many visitors at once: each gets its own answer."""

from __future__ import annotations

import hashlib

import pytest
import trio

from support.origin import Origin
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes

VISITORS = 200


async def test_200_visitors_at_once_each_get_their_own_body_back(
    tunnel: Tunnel, origin: Origin, web: Address
) -> None:
    here = 0
    all_here = trio.Event()

    async def echo(peer, head):
        nonlocal here
        here += 1
        if here == VISITORS:
            all_here.set()
        # Nobody is answered before the last one has come: they are all under way at once.
        await all_here.wait()
        (line,) = (line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        size = int(line.partition(b":")[2])
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for start in range(0, size, 10_000):
            await peer.send(await peer.read_exactly(min(10_000, size - start)))

    origin.pages[b"/echo"] = echo
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    wrong: list[int] = []

    async def visit(number: int) -> None:
        body = hashlib.shake_128(b"visitor %d" % number).digest(20_000 + 400 * number)
        answer = await tunnel.fetch("/echo", method="POST", body=body)
        if (answer.status, answer.body) != (200, body):
            wrong.append(number)

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            for number in range(VISITORS):
                nursery.start_soon(visit, number)
    assert wrong == []
