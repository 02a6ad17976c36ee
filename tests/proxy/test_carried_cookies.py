"""Cookies of a device whose answers the pump carries: held to its own host there too."""

from __future__ import annotations

import pytest

from support.carried_http import OK, WAYS, Target, get, rig
from support.http_rig import Peer

PARENT = b"Set-Cookie: a=1; Domain=.LocalHost; Path=/\r\nSET-COOKIE:b=2;domain=localhost\r\n"
HELD = b"Set-Cookie: a=1; Path=/\r\nSET-COOKIE:b=2\r\n"
OWN = b"Set-Cookie: c=3; Domain=dev1.localhost\r\nX-Cookie: d=4; Domain=localhost\r\n"


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "way", request.param)


def answer(*lines: bytes) -> bytes:
    return OK[:-2] + b"".join(lines) + b"\r\n"


async def carried(target: Target) -> Peer:
    """The target's connection, once the pump carries what comes from it."""
    await target.first_exchange()
    return await target.carried_exchange()


@pytest.mark.parametrize("cut", [0, 30, 60, 80])
async def test_a_carried_answer_sets_no_cookie_for_the_neighbours(cut: int) -> None:
    async with rig() as target:
        peer = await carried(target)
        await target.visitor.send(get("/1"))
        await peer.read_head()
        head = answer(PARENT, OWN)
        for part in (head[:cut], head[cut:] + b"11") if cut else (head + b"11",):
            await peer.send(part)
        assert await target.visitor.read_head() == answer(HELD, OWN)
        assert await target.visitor.read_exactly(2) == b"11"
        for turn in range(3):  # and the connection goes on
            await target.visitor.send(get(f"/{turn}"))
            assert (await peer.read_head()).startswith(b"GET /%d " % turn)
            await peer.send(answer(OWN, PARENT) + b"22")
            assert await target.visitor.read_head() == answer(OWN, HELD)
            assert await target.visitor.read_exactly(2) == b"22"


async def test_the_last_answer_of_a_connection_sets_none_either() -> None:
    async with rig() as target:
        peer = await carried(target)
        await target.visitor.send(get("/1", "Connection: close\r\n"))
        await peer.read_head()
        await peer.send(answer(PARENT) + b"11")
        head = await target.visitor.read_head()
        assert HELD in head and b"omain" not in head


async def test_where_it_is_allowed_they_pass() -> None:
    async with rig(parent_cookies=True) as target:
        peer = await carried(target)
        await target.visitor.send(get("/1"))
        await peer.read_head()
        await peer.send(answer(PARENT, OWN) + b"11")
        assert await target.visitor.read_head() == answer(PARENT, OWN)


CLEARS = (
    b'Clear-Site-Data: "cache", "cookies"\r\nCLEAR-SITE-DATA:"*"\r\nclear-site-data: "cookies"\r\n'
)
CLEARS_OWN = (
    b'Clear-Site-Data: "cache"\r\nCLEAR-SITE-DATA: "cache", "executionContexts", "storage"\r\n'
)


@pytest.mark.parametrize("cut", [0, 30, 60, 80])
async def test_a_carried_answer_clears_no_cookies_of_the_neighbours(cut: int) -> None:
    async with rig() as target:
        peer = await carried(target)
        await target.visitor.send(get("/1"))
        await peer.read_head()
        head = answer(CLEARS)
        for part in (head[:cut], head[cut:] + b"11") if cut else (head + b"11",):
            await peer.send(part)
        assert await target.visitor.read_head() == answer(CLEARS_OWN)
        assert await target.visitor.read_exactly(2) == b"11"


async def test_where_it_is_allowed_they_are_cleared() -> None:
    async with rig(parent_cookies=True) as target:
        peer = await carried(target)
        await target.visitor.send(get("/1"))
        await peer.read_head()
        await peer.send(answer(CLEARS) + b"11")
        assert await target.visitor.read_head() == answer(CLEARS)
