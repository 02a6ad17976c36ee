"""Lengths that no counter holds; and an error of our own, which costs the one request it met."""

from __future__ import annotations

import contextlib

import pytest
import structlog
import trio

from support.carried_http import OK, Target, get, rig
from tunnelmux.http.judge import HeadJudge

LENGTHS = [2**63, 10**19, 10**20 - 1]
MANY = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


async def start_of_an_answer(target: Target) -> None:
    """A visitor whose answer is under way; another one is in his place then."""
    peer, _ = await target.ask(get("/whole"))
    await peer.send(MANY + b"a" * 10)
    assert await target.visitor.read_exactly(len(MANY) + 10) == MANY + b"a" * 10
    first, target.visitor = target.visitor, await target.new_visitor()

    async def go_on() -> None:
        await peer.send(b"b" * 10)
        assert await first.read_exactly(10) == b"b" * 10

    target.go_on = go_on  # type: ignore[attr-defined]


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_length_that_cannot_be_counted_to_costs_one_answer(length: int) -> None:
    """It ended the session of the device, with all its visitors; and the hop to it."""
    async with rig(announces=True) as target:
        with trio.fail_after(30):
            await start_of_an_answer(target)
            peer, _ = await target.ask(get("/odd"))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            probe = await target.connection()  # the agent looks whether the target speaks TLS
            await probe.stream.aclose()
            assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 502 ")
            await target.go_on()  # type: ignore[attr-defined]


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_request_of_such_a_length_is_refused(length: int) -> None:
    async with rig(announces=True) as target:
        with trio.fail_after(30):
            await target.visitor.send(
                b"POST / HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: %d\r\n\r\n" % length
            )
            assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 400 ")


async def test_an_error_of_our_own_costs_the_request_it_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("a bug")

    async with rig(announces=True) as target:
        with trio.fail_after(30), structlog.testing.capture_logs() as logs:
            await start_of_an_answer(target)
            peer, _ = await target.ask(get("/odd"))
            with monkeypatch.context() as patch:
                patch.setattr(HeadJudge, "answer", fail)
                await peer.send(b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n")
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await target.visitor.read_all() == b""
            await target.go_on()  # type: ignore[attr-defined]
            target.visitor = await target.new_visitor()
            peer, _ = await target.ask(get("/next"))
            await peer.send(OK + b"ok")
            assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        [line] = [line for line in logs if line["event"] == "unhandled error in the pump"]
        assert str(line["exc_info"]) == "a bug"
