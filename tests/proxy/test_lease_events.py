"""What an agent says of leases over its tunnel, in lines that may come in any pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.sessions import session_pair
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.tunnels.assistance import AgentEvent, AssistFailed, follow_agent
from tunnelmux.sessions import LocalHandle

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def line(**said: object) -> bytes:
    return json.dumps(said).encode() + b"\n"


def chunks(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


@asynccontextmanager
async def agent_that_says(content: bytes) -> AsyncIterator[LocalHandle]:
    """The proxy's handle of an agent that answers one request with these chunks and no more."""

    async def answer() -> None:
        stream = await agent.accept_stream()
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += await stream.receive_some()
        try:
            await stream.send_all(HEAD + content)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the proxy has heard enough

    async with session_pair() as (proxy, agent), trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        yield LocalHandle(proxy, token="token-of-dev1", device="dev1")


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_events_come_in_any_pieces_and_what_is_no_event_is_passed_over(size: int) -> None:
    data = line(type="switched", mode="on") + b"no JSON\n\n[]\n" + line(type="ended", lease="l1")
    events: list[AgentEvent] = []
    async with agent_that_says(chunks(data, size) + b"0\r\n\r\n") as handle:
        await follow_agent(handle, IngressLimits(), events.append)
    assert [(event.type, event.mode, event.lease) for event in events] == [
        ("switched", "on", ""),
        ("ended", "off", "l1"),
    ]


@pytest.mark.parametrize("size", [1_000, 100_000])
async def test_a_line_without_an_end_is_not_kept_for_ever(size: int) -> None:
    events: list[AgentEvent] = []
    data = line(type="switched") + b"x" * 70_000
    async with agent_that_says(chunks(data, size)) as handle:
        with pytest.raises(AssistFailed, match="too long"):
            await follow_agent(handle, IngressLimits(), events.append)
    assert [event.type for event in events] == ["switched"]


async def test_a_line_that_is_nested_deeply_or_is_no_utf_8_is_passed_over_too() -> None:
    deep = b'{"type": "switched", "more": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n"
    data = deep + b'{"type": "\xff"}\n' + line(type="ended", lease="l1")
    events: list[AgentEvent] = []
    async with agent_that_says(chunks(data, 100_000) + b"0\r\n\r\n") as handle:
        await follow_agent(handle, IngressLimits(), events.append)
    assert [event.lease for event in events] == ["l1"]
