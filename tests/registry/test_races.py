"""Several who act on the same thing in the same moment, through two programs: one outcome, written
down once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

import pytest
import trio

from support.registries import ANN, OpenRegistry, WallClock, add_lease, add_tenant
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import Actor, Registry, TenantRegistry

OPERATORS = [Actor(kind="user", id=name, name=name) for name in ("bea", "carl")]

Act = Callable[[], Awaitable[object]]


PATIENCE = 60.0
"""Seconds for what waits for all others, on a machine that does other things as well."""


@pytest.fixture
async def both(open_registry: OpenRegistry) -> AsyncIterator[tuple[Registry, Registry]]:
    """One registry, as two programs have it open."""
    async with open_registry(timeout=PATIENCE) as one, open_registry(timeout=PATIENCE) as two:
        yield one, two


@pytest.fixture
async def acme(both: tuple[Registry, Registry]) -> TenantRegistry:
    return await add_tenant(both[0], "acme")


async def all_at_once(acts: Sequence[Act]) -> Counter[object]:
    """What they returned, or the codes with which they were refused; any other error is raised."""
    results: Counter[object] = Counter()

    async def run(act: Act) -> None:
        try:
            result = await act()
        except RegistryRefused as refused:
            results[refused.code] += 1
        else:
            results[result if isinstance(result, bool) else "done"] += 1

    async with trio.open_nursery() as nursery:
        for act in acts:
            nursery.start_soon(run, act)
    return results


@pytest.mark.slow
async def test_operators_the_device_and_the_one_who_asked_act_at_once(
    both: tuple[Registry, Registry], acme: TenantRegistry, clock: WallClock
) -> None:
    lease = await add_lease(acme, clock)
    later = lease.ends + timedelta(hours=1)
    acts: list[Act] = []
    for one in both:
        for operator in OPERATORS:
            leases = one.tenant(acme.tenant_id, by=operator).leases
            acts += [
                partial(leases.decide, lease.id, True),
                partial(leases.decide, lease.id, False, "no"),
                partial(leases.extend, lease.id, later),
                partial(leases.end, lease.id, "enough"),
            ]
        answer = partial(one.fleet.answer_lease, lease.id, lease.device_id)
        acts += [partial(answer, given=True), partial(answer, given=False)]
    await all_at_once(acts)
    after = await acme.leases.find(lease.id)
    written = Counter(entry.action for entry in await acme.leases.report(lease.id))
    ends = sum(written[f"lease.{what}"] for what in ("deny", "refuse", "end"))
    assert (after.state(clock.now), ends) == ("ended", 1)
    assert max(written.values()) == 1, written
    assert written["lease.approve"] + written["lease.deny"] <= 1
    assert after.extended == written["lease.extend"]
    assert (after.ends == later) == bool(after.extended)


@pytest.mark.slow
async def test_what_is_good_once_is_used_once_and_what_is_not_by_all(
    both: tuple[Registry, Registry], acme: TenantRegistry, clock: WallClock
) -> None:
    lease = await add_lease(acme, clock, approved=True, max_uses=1)
    await both[0].fleet.answer_lease(lease.id, lease.device_id, given=True)
    link = await acme.service_links.add(lease.device_id, "web", lifetime=600, once=True)
    until = clock.now.timestamp() + 90
    uses = [partial(one.tenant(acme.tenant_id, by=ANN).leases.use, lease.id) for one in both]
    assert await all_at_once(uses * 4) == {"done": 1, "lease_over": 7}
    tickets = [partial(one.visitors.use_ticket, "ticket", until) for one in both]
    assert await all_at_once(tickets * 4) == {True: 1, False: 7}
    links = [partial(one.visitors.use_link, link.id, link.label, "web") for one in both]
    assert await all_at_once(links * 4) == {True: 1, False: 7}
    sessions = [one.installation(ANN).browser_sessions for one in both]
    tokens = [
        partial(some.use_once, "logout 1", clock.now + timedelta(minutes=1)) for some in sessions
    ]
    assert await all_at_once(tokens * 4) == {True: 1, False: 7}
