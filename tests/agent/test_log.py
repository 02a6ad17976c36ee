"""The agent's own log, read over the tunnel."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from support.fake_proxy import FakeProxy
from tunnelmux import Session
from tunnelmux.agent import RunningAgent
from tunnelmux.backend.agent_log import LogLine, LogRefused, read_log
from tunnelmux.config import AgentConfig
from tunnelmux.observability import configure_logs, get_logger
from tunnelmux.observability.recent import RecentLines, keep_recent, recent

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]


@pytest.fixture
def kept() -> Iterator[RecentLines]:
    """What this process keeps of its log."""
    keep_recent(0)
    keep_recent(3)
    lines = recent()
    assert lines is not None
    yield lines
    keep_recent(0)


@pytest.fixture
async def session(proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent) -> Session:
    await start_agent(make_config())
    return await proxy.next_session()


def said(number: int) -> str:
    content = {"timestamp": "2026-11-28T08:00:00Z", "level": "info", "event": f"event {number}"}
    return json.dumps({**content, "component": "agent", "n": number})


async def lines_of(session: Session, **wanted: Any) -> list[LogLine]:
    stream = await session.open_stream()
    with trio.fail_after(20):
        async with read_log(stream, follow=False, **{"lines": 100, **wanted}) as log:
            begin, *found = [line async for line in log]
    assert (begin.position != "", begin.event) == (True, "")
    return found


async def test_the_last_lines_come_with_what_they_say(kept: RecentLines, session: Session) -> None:
    for number in (1, 2):
        kept.add(said(number))
    first, second = (await lines_of(session))[-2:]
    assert (first.event, first.level, first.component) == ("event 1", "info", "agent")
    assert first.at is not None
    assert first.at.isoformat() == "2026-11-28T08:00:00+00:00"
    assert second.fields == {"n": 2}
    assert [line.event for line in await lines_of(session, lines=1)] == ["event 2"]
    assert await lines_of(session, after=second.position) == []
    assert [line.event for line in await lines_of(session, after=first.position)] == ["event 2"]
    # Another process of the same agent has begun to count anew: all of its lines are new.
    other = await lines_of(session, after=f"{'0' * 16}.{kept.count}", lines=0)
    assert [line.event for line in other][-2:] == ["event 1", "event 2"]


async def test_no_more_lines_are_kept_than_the_limit_says(
    kept: RecentLines, session: Session
) -> None:
    kept.add(said(0))
    position = f"{kept.process}.{kept.count}"
    kept.add("\n".join(said(number) for number in range(1, 6)))
    found = await lines_of(session, after=position)
    assert [line.missing for line in found] == [2, 0, 0, 0]
    assert [line.event for line in found[1:]] == ["event 3", "event 4", "event 5"]
    keep_recent(1)
    assert [line.event for line in await lines_of(session)] == ["event 5"]


async def test_lines_that_come_are_followed(
    kept: RecentLines, session: Session, autojump_clock: trio.abc.Clock
) -> None:
    stream = await session.open_stream()
    kept.add(said(1))
    async with read_log(stream, lines=1, follow=True) as log:
        await anext(log)
        assert (await anext(log)).event == "event 1"
        # No line for some minutes: it says that it lives, or this end would give it up.
        with trio.move_on_after(200) as wait:
            await anext(log)
        assert wait.cancelled_caught
    again = await session.open_stream()
    async with read_log(again, lines=0, follow=True) as log:
        await anext(log)
        kept.add(said(2))
        assert (await anext(log)).event == "event 2"
        keep_recent(0)  # the device does not show its log any more
        with pytest.raises(StopAsyncIteration):
            await anext(log)


async def test_a_device_that_keeps_nothing_shows_nothing(session: Session) -> None:
    with pytest.raises(LogRefused, match=r"keep_lines under \[log\]"):
        await lines_of(session)


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_is_logged_is_kept_as_json_and_without_secrets(kept: RecentLines, format: Any) -> None:
    out = io.StringIO()
    configure_logs("info", format, stream=out)
    try:
        get_logger("agent").info("token taken", token="s3cret", path="/x?token=s3cret")
        get_logger("agent").debug("not wanted")
        get_logger("agent").warning("too long", **dict.fromkeys("abc", "x" * 4000))
    finally:
        configure_logs()
    [(_, first), (_, second)] = kept.after(kept.count - 2)
    assert json.loads(first)["token"] == "***"
    assert "s3cret" not in first
    assert json.loads(first)["event"] == "token taken"
    assert len(second) < 4000
    assert json.loads(second)["event"] == "too long"
    assert len(out.getvalue()) > 12_000
