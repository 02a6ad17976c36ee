"""The API has the registry forget what is over, once an hour."""

from __future__ import annotations

from typing import cast

import trio
from trio.testing import MockClock

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


async def test_once_an_hour_and_again_after_it_was_away(autojump_clock: MockClock) -> None:
    registry = AwayOnce()
    with trio.move_on_after(2.5 * 3600):
        await keep_tidy(cast("Registry", registry), Keeping(audit=None))
    start = registry.calls[0]
    assert [round(call - start) for call in registry.calls] == [0, 3600, 7200]
