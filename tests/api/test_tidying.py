"""The API has the registry forget what is over, once an hour, by no clock that was just set."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import cast

import pytest
import structlog
import trio
from trio.testing import MockClock

from support.registries import WallClock
from tunnelmux.api.app import keep_tidy
from tunnelmux.errors import RegistryAway
from tunnelmux.registry import Keeping, Registry


class AwayOnce:
    """A registry that is away the second time."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    async def tidy(self, keep: Keeping) -> None:
        assert keep.audit is None
        self.calls.append(trio.current_time())
        if len(self.calls) == 2:
            raise RegistryAway("stopped")


class SetClock:
    """Runs with Trio's clock, until a test sets it."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self._start = WallClock().now - timedelta(seconds=trio.current_time())

    def __call__(self) -> datetime:
        return self._start + self.ahead + timedelta(seconds=trio.current_time())


async def test_once_an_hour_and_again_after_it_was_away(autojump_clock: MockClock) -> None:
    registry, start = AwayOnce(), trio.current_time()
    with trio.move_on_after(3.5 * 3600):
        await keep_tidy(cast("Registry", registry), Keeping(audit=None), SetClock())
    assert [round(call - start) for call in registry.calls] == [3600, 7200, 10800]


@pytest.mark.parametrize("days", [1, -1, 4000])
async def test_not_in_an_hour_in_which_the_clock_was_set(
    autojump_clock: MockClock, days: int
) -> None:
    registry, clock, start = AwayOnce(), SetClock(), trio.current_time()

    async def set_it() -> None:
        await trio.sleep(1.5 * 3600)
        clock.ahead += timedelta(days=days)

    with structlog.testing.capture_logs() as logs, trio.move_on_after(3.5 * 3600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(set_it)
            await keep_tidy(cast("Registry", registry), Keeping(audit=None), clock)
    assert [round(call - start) for call in registry.calls] == [3600, 10800]
    said = [line["problem"] for line in logs if line["event"] == "registry not tidied"]
    assert said[0] == f"the clock was set by {days * 86400} s"
