"""Heads of status 1xx before an answer."""

from __future__ import annotations

import trio
import trio.testing

from support.http_rig import running_rig
from tunnelmux.limits import IngressLimits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_interim_response_starts_the_time_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(response_timeout=60) as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        for _ in range(3):
            await trio.sleep(50)
            await target.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            assert b" 102 " in await rig.visitor.read_head()
        await trio.sleep(50)
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert b" 204 " in await rig.visitor.read_head()


async def test_interim_heads_without_end_are_a_502_that_names_the_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So many come within a minute; within an hour, as signs of life, as many as it takes."""
    interim, limits = b"HTTP/1.1 102 Processing\r\n\r\n", IngressLimits(max_interim_heads=4)
    async with running_rig(limits=limits, response_timeout=120) as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        for _ in range(10):
            await trio.sleep(60)
            await target.send(interim * 4)
            for _ in range(4):
                assert b" 102 " in await rig.visitor.read_head()
        await target.send(interim)
        head = await rig.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Tunnelmux-Reason: target-broke\r\n" in head
        assert "limits.max_interim_heads" in str(rig.exchanges[-1].problem)
