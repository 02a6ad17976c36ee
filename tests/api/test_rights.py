"""What a caller holds open ends when the right to it ends, within 2 s and at the cost of a look a
second."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import trio
from starlette.requests import HTTPConnection
from starlette.responses import Response
from trio.testing import MockClock

from tunnelmux.api.access import Principal, Role
from tunnelmux.api.identity import Identification
from tunnelmux.api.problems import Refused
from tunnelmux.api.rights import RightfulResponse, Rights

ADA = Principal(user_id="ada", tenant_id="acme", role=Role.ADMIN, token_id="t1")
CONNECTION = cast("HTTPConnection", object())


class Registry:
    """Says who a connection is now."""

    def __init__(self) -> None:
        self.now: Principal | None = ADA
        self.is_away = False
        self.looks = 0

    async def identify(self, _connection: HTTPConnection) -> Principal | None:
        self.looks += 1
        if self.is_away:
            raise Refused(503, "registry_away", "away")
        return self.now


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def rights(registry: Registry) -> Rights:
    return Rights(cast("Identification", registry.identify))


@pytest.mark.parametrize(
    ("later", "ends"),
    [
        (None, True),
        (replace(ADA, role=Role.VIEWER), True),
        (replace(ADA, role=None), True),
        (replace(ADA, tenant_id="other"), True),
        (replace(ADA, role=Role.OWNER, name="Ada L."), False),
    ],
)
async def test_it_ends_with_the_right(
    autojump_clock: MockClock, registry: Registry, rights: Rights, later: Any, ends: bool
) -> None:
    start = trio.current_time()

    async def lose() -> None:
        await trio.sleep(10.25)
        registry.now = later

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        kept = await rights.run(CONNECTION, ADA, partial(trio.sleep, 30))
    assert kept is not ends
    if ends:
        assert 10.25 < trio.current_time() - start <= 12.25


async def test_many_calls_of_one_caller_cost_the_looks_of_two(
    autojump_clock: MockClock, registry: Registry, rights: Rights
) -> None:
    async def one(after: float) -> None:
        await trio.sleep(after)
        assert await rights.run(CONNECTION, ADA, partial(trio.sleep, 20))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number / 100)
    assert registry.looks <= 2 * 21
    assert not rights._seen


async def test_a_short_call_costs_none_and_its_error_is_its_own(
    autojump_clock: MockClock, registry: Registry, rights: Rights
) -> None:
    async def fail() -> None:
        raise Refused(404, "not_found", "no")

    with pytest.raises(Refused, match="no"):
        await rights.run(CONNECTION, ADA, fail)
    assert registry.looks == 0


async def test_what_goes_on_goes_on_while_the_registry_is_away(
    autojump_clock: MockClock, registry: Registry, rights: Rights
) -> None:
    registry.is_away = True
    assert await rights.run(CONNECTION, ADA, partial(trio.sleep, 30))


class Slow(Response):
    """Begins after so many seconds, and never ends."""

    def __init__(self, begin: float) -> None:
        super().__init__()
        self._begin = begin

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await trio.sleep(self._begin)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await trio.sleep(1)


@pytest.mark.parametrize(("begin", "status"), [(0.0, 200), (60.0, 401)])
async def test_an_answer_that_was_cut_does_not_look_complete(
    autojump_clock: MockClock, registry: Registry, rights: Rights, begin: float, status: int
) -> None:
    registry.now = None
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    answer = RightfulResponse(rights, CONNECTION, ADA, Slow(begin))
    await answer({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    assert sent[-1].get("more_body", False) is (status == 200)
