"""What an agent says of leases is taken a little at a time, and only what makes sense."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import trio
from structlog.testing import capture_logs

from tunnelmux.errors import NoSuchRecord
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.tunnels import leases
from tunnelmux.proxy.tunnels.assistance import AgentEvent
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.tunnels.leases import LeaseBook
from tunnelmux.registry import AssistState


class Fleet:
    """Takes the reports of devices, when Trio's clock shows this."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, AssistState]] = []
        self.codes: list[tuple[datetime, datetime]] = []

    async def report_assist(self, _device: str, state: AssistState) -> None:
        self.reports.append((trio.current_time(), state))

    async def answer_lease(self, *_: Any, **__: Any) -> None:
        raise NoSuchRecord("lease", "x")

    async def open_code_lease(self, *_: Any, starts: datetime, ends: datetime, **__: Any) -> None:
        self.codes.append((starts, ends))


async def hears(monkeypatch: Any, *events: AgentEvent, seconds: float) -> Fleet:
    """The registry after an agent has told this."""
    fleet = Fleet()

    async def follow(_handle: Any, _limits: Any, take: Any) -> None:
        for event in events:
            take(event)
        await trio.sleep_forever()

    monkeypatch.setattr(leases, "follow_agent", follow)
    book = LeaseBook(DeviceRegister([]), lambda *_: 0, IngressLimits())
    handle: Any = SimpleNamespace(device="dev1", session=SimpleNamespace(error=None))
    registry: Any = SimpleNamespace(fleet=fleet)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run, registry)
        await trio.testing.wait_all_tasks_blocked()
        book.session_began(handle, "dev1", assists=True)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return fleet


async def test_an_agent_that_says_much_is_heard_once_a_second(
    autojump_clock: Any, monkeypatch: Any
) -> None:
    flood = [AgentEvent(type="state", mode="ask")] * 5000
    fleet = await hears(monkeypatch, *flood, seconds=100.5)
    assert 150 <= len(fleet.reports) <= 161  # 60 at once, then one each second


async def test_numbers_and_names_are_held_to_what_makes_sense(
    autojump_clock: Any, monkeypatch: Any
) -> None:
    odd = AgentEvent(type="state", mode="ask", services=["a\0b" * 100] * 100, longest=1e308)
    code = AgentEvent(type="open", lease="x", services=["ssh"], seconds=-1e308, began=-1e308)
    fleet = await hears(monkeypatch, odd, code, seconds=1)
    (_, state), *_ = fleet.reports
    assert len(state.services) == 64
    assert all(len(name) <= 63 and name.isprintable() for name in state.services)
    assert state.longest == 43_200
    assert len(fleet.codes) == 1


async def test_an_agent_that_says_what_the_registry_refuses_fills_no_log(
    autojump_clock: Any, monkeypatch: Any
) -> None:
    flood = [AgentEvent(type="answer", lease=str(number)) for number in range(5000)]
    with capture_logs() as lines:
        await hears(monkeypatch, *flood, seconds=100.5)
    told = [line for line in lines if line["event"] == "registry takes no word"]
    assert len(told) == 30  # of 160 that were heard, within what the real clock calls a minute
