"""The services that take raw connections, as agents say in their answers."""

from __future__ import annotations

from typing import cast

from support.sessions import session_pair
from tunnelmux.proxy.visitors.carrier import PumpRoutes
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.wire import MOST_SERVICES


async def test_an_agent_that_confirms_any_name_is_remembered_by_its_last_ones() -> None:
    routes = PumpRoutes(cast("Router", None))  # which only visitors need
    async with session_pair() as (session, _):
        first = routes.learn_service(session, "dev1", "s0", "s0")
        assert routes.learn_service(session, "dev1", None, "s0") is first
        for number in range(1, 1000):
            routes.learn_service(session, "dev1", f"s{number}", f"s{number}")
        assert first.max_idle == 0  # so it keeps no connection that would not be found again
        assert routes.learn_service(session, "dev1", "s0", "s0") is not first


async def test_all_services_of_an_honest_agent_are_remembered() -> None:
    routes = PumpRoutes(cast("Router", None))
    asked = [None, *(f"s{number}" for number in range(MOST_SERVICES))]
    async with session_pair() as (session, _):
        known = [routes.learn_service(session, "dev1", name, name or "s0") for name in asked]
        again = [routes.learn_service(session, "dev1", name, name or "s0") for name in asked]
        assert known == again
        assert all(route.max_idle for route in known)
