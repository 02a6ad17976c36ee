"""A lease ends in time though the proxy's clock is set while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.tunnels.leases import LeaseBook
from tunnelmux.registry import FleetLease, Lease

BEGINS = datetime(2030, 1, 1, tzinfo=UTC)


def lease_of(seconds: float) -> FleetLease:
    """A lease that runs for so long after the beginning."""
    lease = Lease(
        device_id="d1",
        services=("ssh",),
        holder="u1",
        reason="a fault",
        starts=BEGINS - timedelta(hours=2),
        ends=BEGINS + timedelta(seconds=seconds),
        id="l1",
        kind="person",
        approval="given",
        consent="given",
        decided_by="",
        decided=None,
        uses=0,
        created_by="u1",
        created_by_name="ann",
        created=BEGINS,
        ended=None,
        ended_by="",
        ended_by_name="",
        end_reason="",
        extended=0,
    )
    return FleetLease(tenant_id="t1", lease=lease)


class Proxy:
    """A proxy's leases, of which the clock is some seconds behind."""

    def __init__(self) -> None:
        self.behind = 0.0
        self.began = trio.current_time()
        self.book = LeaseBook(
            DeviceRegister([]), lambda *_: 0, IngressLimits(), clock=self.wall_clock
        )

    @property
    def now(self) -> float:
        return trio.current_time() - self.began

    def wall_clock(self) -> datetime:
        return BEGINS + timedelta(seconds=self.now - self.behind)

    async def until_it_ends(self) -> float:
        """When the lease was over, to the second, by a clock that is right."""
        for _ in range(9000):
            if not len(self.book):
                break
            await trio.sleep(1)
        return self.now


@asynccontextmanager
async def running() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    registry: Any = SimpleNamespace()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.book.run, registry)
        yield proxy
        nursery.cancel_scope.cancel()


async def test_a_clock_an_hour_behind_that_is_set_right_ends_it_in_time(
    autojump_clock: Any,
) -> None:
    async with running() as proxy:
        proxy.behind = 3600
        proxy.book.take([lease_of(3600)])
        await trio.sleep(1000)
        proxy.behind = 0
        assert 3600 <= await proxy.until_it_ends() <= 3602


async def test_one_that_is_over_by_a_clock_set_right_ends_soon(autojump_clock: Any) -> None:
    async with running() as proxy:
        proxy.behind = 3600
        proxy.book.take([lease_of(60)])
        await trio.sleep(100)
        proxy.behind = 0
        assert 100 <= await proxy.until_it_ends() <= 132


@pytest.mark.parametrize("behind", [3600, -3600])
async def test_a_clock_that_is_wrong_for_a_moment_moves_no_end(
    autojump_clock: Any, behind: float
) -> None:
    async with running() as proxy:
        proxy.book.take([lease_of(3600)])
        await trio.sleep(1000)
        proxy.behind = behind
        await trio.sleep(10)
        proxy.behind = 0
        assert 3600 <= await proxy.until_it_ends() <= 3602


async def test_a_clock_that_is_set_back_makes_it_no_longer(autojump_clock: Any) -> None:
    async with running() as proxy:
        proxy.book.take([lease_of(3600)])
        await trio.sleep(1000)
        proxy.behind = 7200
        assert 3600 <= await proxy.until_it_ends() <= 3602
