"""The figures of a failure, and the visitors that they come from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from bench.failures import report, visitors
from bench.failures.report import judge
from bench.failures.scenarios import SCENARIOS
from bench.failures.visitors import Request, Visitor
from trio.testing import MockClock

BEGAN = 100.0


def test_the_figures_of_a_failure() -> None:
    requests = [
        Request("d0", 10.0, 11.0, "503 device-offline"),  # over before
        Request("d0", 99.0, 100.5, "connection ended"),
        Request("d1", 99.5, 101.0, retried=True),  # it was asked once more
        Request("d1", 101.0, 101.2),
        Request("d2", 101.0, 105.5),
        Request("d2", 104.0, 104.5, "503 device-offline"),
        Request("d0", 105.5, 107.0, "connection refused"),
        Request("d0", 108.0, 108.1, retried=True),  # a kept connection that was dead: not lost
        Request("d3", 108.0, 108.1, wrong="d2"),
    ]
    outcome = judge(SCENARIOS[0], requests, BEGAN)
    assert (outcome.requests, outcome.in_flight, outcome.new, outcome.late) == (8, 2, 2, 1)
    assert (outcome.until, outcome.longest, outcome.wrong) == (7.0, 4.5, 1)
    assert outcome.problems["connection refused"] == 1


def test_the_page_has_a_line_for_each_failure(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "failures.md")
    outcomes = [judge(scenario, [], BEGAN) for scenario in SCENARIOS]
    where = dict.fromkeys(("date", "commit", "cpus", "cpu", "kernel", "python"), "x")
    report.write_page(outcomes, where)
    text = report.PAGE.read_text()
    for scenario in SCENARIOS:
        assert f"| {scenario.title} | 0 | 0 | 0 | 0 | - | 0.0 s |" in text


Server = Callable[[trio.SocketStream, int], Awaitable[None]]


@asynccontextmanager
async def visitor_of(*servers: Server) -> AsyncIterator[Visitor]:
    """A visitor of device d0 with these servers, each of which counts its connections."""
    async with trio.open_nursery() as nursery:
        ports = []
        for server in servers:
            count = 0

            async def serve(stream: trio.SocketStream, server: Server = server) -> None:
                nonlocal count
                count += 1
                async with stream:
                    await server(stream, count)

            (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            ports.append(listener.socket.getsockname()[1])
        visitor = Visitor("d0", ports, 0)
        with trio.fail_after(30):
            yield visitor
        await visitor.leave()
        nursery.cancel_scope.cancel()


def says(body: bytes, status: bytes = b"200 OK", *, times: int = 99) -> Server:
    async def serve(stream: trio.SocketStream, _number: int) -> None:
        for _ in range(times):
            if not await stream.receive_some():
                return
            await stream.send_all(
                b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
            )
        await stream.receive_some()

    return serve


async def test_a_visitor_keeps_its_connection_and_knows_its_device() -> None:
    async with visitor_of(says(b"d0"), says(b"d9")) as visitor:
        for _ in range(3):
            request = await visitor.ask()
            assert (request.problem, request.wrong, request.retried) == ("", "", False)


async def test_a_kept_connection_that_ends_is_replaced_once() -> None:
    async with visitor_of(says(b"d0", times=1), says(b"d9", times=1)) as visitor:
        assert not (await visitor.ask()).retried
        second = await visitor.ask()  # from the other server, which takes it for another device
        assert (second.retried, second.problem, second.wrong) == (True, "", "d9")


async def test_a_new_connection_that_ends_is_a_failure() -> None:
    async with visitor_of(says(b"", times=0), says(b"d0")) as visitor:
        first = await visitor.ask()
        assert (first.problem, first.retried) == ("connection ended", False)
        assert (await visitor.ask()).problem == "", "the next one goes to the other proxy"


async def test_a_refusal_is_a_failure() -> None:
    refused = b"503 Service Unavailable\r\nTunnelmux-Reason: device-offline"
    async with visitor_of(says(b"", refused)) as visitor:
        assert (await visitor.ask()).problem == "503 device-offline"


async def test_silence_is_a_failure(autojump_clock: MockClock) -> None:
    async def serve(stream: trio.SocketStream, _number: int) -> None:
        await trio.sleep_forever()

    async with visitor_of(serve) as visitor:
        began = trio.current_time()
        assert (await visitor.ask()).problem == "no answer within 10 s"
        assert trio.current_time() - began == pytest.approx(visitors.TIMEOUT)
