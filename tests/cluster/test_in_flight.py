"""Requests that are under way over a hop when the node at its other end dies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio

from support.doors import Doors, open_doors
from support.http_rig import Peer
from support.nodes import PATIENCE, Nodes, running_nodes
from support.origin import Origin, reply
from support.redis_server import RedisServer
from support.visitor import Answer
from tunnelmux.config import Address


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    async with open_doors("a", "b", "c") as doors:
        yield doors


@pytest.fixture
async def nodes(
    redis: RedisServer, doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Nodes]:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    async with running_nodes(redis, ("a", "b", "c"), doors=doors) as nodes:
        yield nodes


class Slow:
    """A page that leaves the first so many unanswered."""

    def __init__(self, origin: Origin, unanswered: int) -> None:
        self.asked = 0
        self.unanswered = unanswered
        self.all_asked = trio.Event()
        origin.pages[b"/slow"] = self.answer

    async def answer(self, peer: Peer, _head: bytes) -> None:
        self.asked += 1
        if self.asked <= self.unanswered:
            if self.asked == self.unanswered:
                self.all_asked.set()
            await trio.sleep_forever()
        await peer.send(reply(b"second try"))


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
async def test_what_has_no_answer_yet_is_asked_again_or_refused(
    nodes: Nodes, doors: Doors, origin: Origin, web: Address, warm: bool
) -> None:
    """GET goes to the device's other session once (RFC 9110 section 9.2.2). POST may have been
    done, so that its visitor has to decide. Neither is left without an answer."""
    slow = Slow(origin, 3)
    answers: dict[str, Answer] = {}
    async with nodes.agent_at(doors.url("b"), {"web": f"http://{web}"}):
        await nodes.holds("b")
        with trio.fail_after(PATIENCE):
            while len(without := [n for n in "abc" if not nodes[n].store.own_device("dev1")]) > 1:  # noqa: ASYNC110
                await trio.sleep(0.02)
        [at] = without
        if warm:
            for _ in range(3):
                assert (await nodes.get(at, service="web")).status == 200
        there = await nodes[at].store.find_device("dev1")
        assert there is not None

        async def visit(name: str, **options: Any) -> None:
            answers[name] = await nodes.get(at, "/slow", service="web", **options)

        address = nodes[at].http_address
        assert address is not None
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                kept = Peer(await trio.open_tcp_stream(address.host, address.port))
                await kept.send(b"GET /slow HTTP/1.1\r\nHost: web--dev1.localhost\r\n\r\n")
                nursery.start_soon(visit, "get")
                nursery.start_soon(partial(visit, "post", method="POST", body=b"x"))
                await slow.all_asked.wait()
                nodes.stop(there.elsewhere)
                assert (await kept.read_head()).startswith(b"HTTP/1.1 200 ")
                assert await kept.read_exactly(10) == b"second try"
        await trio.aclose_forcefully(kept.stream)
        assert (answers["get"].status, answers["get"].body) == (200, b"second try")
        assert answers["post"].status == 502
        assert answers["post"].reason in {"target-broke", "tunnel-lost"}
        assert slow.asked == 5
