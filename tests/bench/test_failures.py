"""The figures of a failure, and the visitors that they come from."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from bench.failures import visitors
from bench.failures.picture import draw
from bench.failures.report import GOALS, PAGE, PICTURE, judge, page
from bench.failures.scenarios import SCENARIOS
from bench.failures.stage import Stage
from bench.failures.visitors import Door, Request, Visitor
from bench.processes import Started
from trio.testing import MockClock

BEGAN = 100.0
SVG = "{http://www.w3.org/2000/svg}"
WHERE = dict.fromkeys(("date", "commit", "cpus", "cpu", "kernel", "python", "load_average"), "x")


def test_the_figures_of_a_failure() -> None:
    [killed] = [scenario for scenario in SCENARIOS if scenario.name == "node-killed"]
    requests = [
        Request("d0", 10.0, 11.0, "503 device-offline"),  # over before
        Request("d0", 99.0, 100.5, "connection ended", asked="b"),
        Request("d1", 99.5, 101.0, retried=True, asked="a"),  # it was asked once more
        Request("d1", 101.0, 101.2, asked="a"),
        Request("d2", 101.0, 105.5, asked="a"),
        Request("d2", 104.0, 104.5, "503 device-offline", asked="a"),
        Request("d2", 105.5, 106.0, asked="a"),
        Request("d0", 105.5, 107.0, "connection refused", asked="a"),
        Request("d0", 105.0, 115.0, "no answer within 10 s", asked="b"),
        Request("d0", 108.0, 108.1, retried=True, asked="a"),  # a dead kept connection: not lost
        Request("d3", 108.0, 108.2, wrong="d2", asked="a"),
    ]
    outcome = judge(killed, requests, BEGAN, noticed=0.3)
    assert (outcome.requests, outcome.in_flight, outcome.broken) == (10, 2, 1)
    assert (outcome.new, outcome.late, outcome.until) == (2, 1, 7.0)
    assert outcome.again == pytest.approx(8.2), "d3 answered last"
    assert (outcome.longest, outcome.wrong, outcome.noticed) == (4.5, 1, 0.3)
    assert outcome.problems == {"503 device-offline": 1, "connection refused": 1}
    assert outcome.seconds[4:8] == [(1, 1, 0), (1, 0, 0), (1, 0, 0), (1, 1, 0)]
    assert outcome.seconds[15] == (1, 0, 1)
    text, is_reached = GOALS["5 s"]
    assert not is_reached(outcome), text


def test_a_device_that_stays_away_is_told() -> None:
    requests = [Request("d0", 101.0, 101.1), Request("d0", 102.0, 102.1, "503 device-offline")]
    outcome = judge(SCENARIOS[0], requests, BEGAN)
    assert outcome.again == math.inf
    assert "| not within this time |" in page([outcome], WHERE)


def test_the_goals_tell_what_was_reached() -> None:
    named = {scenario.goal for scenario in SCENARIOS}
    assert named - {""} == set(GOALS)
    request = Request("d0", 101.0, 102.4, "503 device-offline")
    good = Request("d0", 102.4, 102.5)
    for requests, reached in (([good], {"5 s", "none failed"}), ([request, good], {"5 s"})):
        outcome = judge(SCENARIOS[0], requests, BEGAN)
        assert {goal for goal, (_, is_reached) in GOALS.items() if is_reached(outcome)} == reached


def skeleton(text: str) -> list[str]:
    """The page without its figures, and without what only some runs have to tell."""
    titles = tuple(f"- {scenario.title}:" for scenario in SCENARIOS)
    kept = (line for line in text.splitlines() if not line.startswith(titles))
    return [
        re.sub(r"[0-9][0-9.,]*( s)?", "#", " ".join(mask(cell) for cell in line.split(" | ")))
        if not line.startswith("Measured")
        else "Measured"
        for line in kept
    ]


def mask(cell: str) -> str:
    is_figure = cell.strip(" |") in {"-", "yes", "**no**", "not within this time"}
    return "#" if is_figure else cell.removesuffix(" |")


def test_the_page_is_what_the_generator_writes_now() -> None:
    """Except for its figures: `make failures` takes a quarter of an hour."""
    wanted = page([judge(scenario, [], BEGAN) for scenario in SCENARIOS], WHERE)
    assert skeleton(PAGE.read_text("utf-8")) == skeleton(wanted)


def test_the_picture_shows_each_failure() -> None:
    requests = [Request("d0", 101.0, 101.5), Request("d0", 101.0, 101.5, "connection refused")]
    drawn = draw([judge(scenario, requests, BEGAN) for scenario in SCENARIOS], "2026-11-28")
    for text in (drawn, PICTURE.read_text("utf-8")):
        root = xml.etree.ElementTree.fromstring(text)
        said = [element.text for element in root.iter(f"{SVG}text")]
        assert {scenario.title for scenario in SCENARIOS} <= set(said)
    bad = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "bad"]
    assert all(float(rect.get("width", "0")) > 0 for rect in bad)


def test_what_the_rest_noticed_is_read_in_its_log(tmp_path: Path) -> None:
    began = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
    lines = [(-5, "node gone"), (1, "request"), (4.25, "node gone"), (9, "node gone")]
    log = [
        json.dumps({"timestamp": (began + timedelta(seconds=at)).isoformat(), "event": event})
        for at, event in lines
    ]
    (tmp_path / "a-2.log").write_text("\n".join(["no JSON: node gone", *log]))
    with Started(tmp_path) as started:
        stage = Stage(started)
        assert stage.noticed(["node gone", "hop ended"], began) == 4.25
        assert stage.noticed(["hop ended"], began) is None


Server = Callable[[trio.SocketStream, int], Awaitable[None]]


@asynccontextmanager
async def visitor_of(*servers: Server) -> AsyncIterator[Visitor]:
    """A visitor of device d0 with these servers, each of which counts its connections."""
    async with trio.open_nursery() as nursery:
        doors: list[Door] = []
        for server in servers:
            count = 0

            async def serve(stream: trio.SocketStream, server: Server = server) -> None:
                nonlocal count
                count += 1
                async with stream:
                    await server(stream, count)

            (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            host, port, *_ = listener.socket.getsockname()
            doors.append(Door("ab"[len(doors)], host, port))
        visitor = Visitor("d0", doors, 0)
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
        second = await visitor.ask()
        assert second.problem == "", "the next one goes to the other proxy"
        assert (first.asked, second.asked) == ("a", "b")


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
