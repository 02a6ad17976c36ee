"""Heads of requests whose ends do not come: what a hostile proxy may make an agent hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from support.fake_proxy import FakeProxy
from support.streams import next_bytes
from tunnelmux import Stream
from tunnelmux.agent import RunningAgent
from tunnelmux.config import AgentConfig, LimitsConfig
from tunnelmux.limits import IngressLimits

LONG = b"GET http://%s/v1/info HTTP/1.1\r\nHost: a\r\nX-A: " % b"agent.tunnelmux" + b"a" * 30_000


async def test_heads_without_an_end_take_so_much_memory_and_no_more(
    proxy: FakeProxy,
    make_config: Callable[..., AgentConfig],
    start_agent: Callable[[AgentConfig], Awaitable[RunningAgent]],
) -> None:
    """1,024 heads of 60 KB took an agent from 31 to 159 MiB."""
    limits = IngressLimits(max_unfinished_heads=100_000)
    await start_agent(make_config(limits=LimitsConfig(ingress=limits)))
    session = await proxy.next_session()

    async def begin(head: bytes) -> Stream:
        stream = await session.open_stream()
        await stream.send_all(head)
        return stream

    held = [await begin(LONG) for _ in range(3)]
    refused = await begin(LONG)
    assert (await next_bytes(refused, 13)) == b"HTTP/1.1 503 "
    answer = b"".join([data async for data in refused])
    assert b"Tunnelmux-Reason: device-busy\r\n" in answer
    assert b"limits.max_unfinished_heads" in answer
    short = await begin(LONG[:3000])
    for stream in (short, *held):
        await stream.send_all(b"\r\n\r\n")
        assert (await next_bytes(stream, 9)) == b"HTTP/1.1 "
        await stream.aclose()
    again = await begin(LONG)
    await again.send_all(b"\r\n\r\n")
    assert (await next_bytes(again, 12)) != b"HTTP/1.1 503"
