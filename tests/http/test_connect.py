"""CONNECT: a raw connection to a service, payload along with the question."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.http_rig import Peer
from support.resettable import ResettableStream, resettable_pair
from support.streams import next_bytes
from tunnelmux.http import (
    ConnectFailed,
    ConnectStream,
    Refusal,
    ServerConnection,
    accept_connect,
    open_connect,
    requested_service,
)
from tunnelmux.limits import IngressLimits

LIMITS = IngressLimits()


@asynccontextmanager
async def asked_for(service: str) -> AsyncIterator[tuple[ConnectStream, Peer, ResettableStream]]:
    """A CONNECT just sent, and the other end, which has not read it yet."""
    near, far = resettable_pair()
    with trio.fail_after(100):
        yield await open_connect(near, service, LIMITS, answer_timeout=15), Peer(far), near


async def test_what_is_written() -> None:
    async with asked_for("ssh") as (_, far, _near):
        assert await far.read_head() == b"CONNECT ssh HTTP/1.1\r\nHost: ssh\r\n\r\n"


async def test_payload_follows_at_once() -> None:
    async with asked_for("ssh") as (stream, far, _):
        await stream.send_all(b"payload")
        assert await far.read_until(b"payload")  # before there was any answer
        await far.send(b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n")
        assert await stream.receive_some(4) == b"SSH-"
        assert await next_bytes(stream, 7) == b"2.0-x\r\n"
        await far.send(b"more")
        assert await next_bytes(stream, 4) == b"more"


async def test_half_close_of_both_sides() -> None:
    async with asked_for("ssh") as (stream, far, _):
        await stream.send_eof()
        await far.send(b"HTTP/1.1 200 OK\r\n\r\nlate")
        await far.end()
        assert await next_bytes(stream, 4) == b"late"
        assert await stream.receive_some() == b""
        assert (await far.read_all()).startswith(b"CONNECT ssh ")


async def test_refusal_carries_status_reason_and_message() -> None:
    async with asked_for("telnet") as (stream, far, near):
        server = ServerConnection(far.stream, LIMITS)
        request = await server.read_request()
        assert request is not None
        assert requested_service(request) == "telnet"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.refuse, Refusal(404, "unknown-service", "No telnet here."))
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
        failure = caught.value.__cause__
        assert isinstance(failure, ConnectFailed)
        assert (failure.status, failure.reason) == (404, "unknown-service")
        assert "No telnet here." in str(failure)
        assert near.was_reset


async def test_no_answer_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with asked_for("ssh") as (stream, _, near):
        with pytest.raises(ConnectFailed, match="no answer within 15 s"):
            await stream.wait_answer()
        assert near.was_reset


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 O", b"SSH-2.0-x\r\n\r\n"])
async def test_answer_that_is_none(answer: bytes) -> None:
    async with asked_for("ssh") as (stream, far, _):
        if answer:
            await far.send(answer)
        await far.end()
        with pytest.raises(ConnectFailed) as caught:
            await stream.wait_answer()
        assert caught.value.status is None


async def test_accepting_hands_over_the_payload_that_came_along() -> None:
    near, far = resettable_pair()
    await near.send_all(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    server = ServerConnection(far, LIMITS)
    request = await server.read_request()
    assert request is not None
    assert requested_service(request) == "127.0.0.1:22"
    assert await accept_connect(server) == b"GET / HTTP/1.1\r\n\r\n"
    assert await next_bytes(near, 19) == b"HTTP/1.1 200 OK\r\n\r\n"
