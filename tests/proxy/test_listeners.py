"""Accepting connections: bounded, and not ended by what goes wrong with one of them."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tunnelmux.config import Address
from tunnelmux.proxy.visitors import listeners
from tunnelmux.proxy.visitors.listeners import ListenerPlan, ListenerSet


async def test_running_out_of_files_is_logged_and_waited_out(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    failures = 3
    served: list[tuple[str, float]] = []
    accept = listeners.accept_from

    def run_out(listener: socket.socket) -> tuple[socket.socket, tuple[object, ...]]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    async def serve(_stream: trio.SocketStream, remote: str) -> None:
        served.append((remote, trio.current_time() - started))

    monkeypatch.setattr(listeners, "accept_from", run_out)
    async with trio.open_nursery() as nursery:
        plan = ListenerPlan(
            key="test.listen", address=Address("127.0.0.1", 0), handler=serve, nursery=nursery
        )
        with capture_logs() as logs:
            accepting = ListenerSet(nursery)
            assert await accepting.apply({"test": plan}) == []
            address = accepting.address("test")
            assert address is not None
            started = trio.current_time()
            visitor = await trio.open_tcp_stream(*address)
            await trio.sleep(1)
        accepting.close()
        nursery.cancel_scope.cancel()
    errors = [line["event"] for line in logs if line["log_level"] == "error"]
    assert [event.partition(";")[0] for event in errors] == ["no connection can be accepted"] * 3
    [(remote, seconds)] = served
    assert remote == str(Address(*visitor.socket.getsockname()))
    assert seconds >= 0.3, "it accepted in a tight loop"
    await visitor.aclose()


async def test_a_bug_in_one_connection_leaves_the_listener_alone() -> None:
    served = trio.Event()

    async def serve(stream: trio.SocketStream, _remote: str) -> None:
        if await stream.receive_some() == b"bug":
            raise RuntimeError("a bug")
        served.set()

    async with trio.open_nursery() as nursery:
        accepting = ListenerSet(nursery)
        plan = ListenerPlan(
            key="test.listen", address=Address("127.0.0.1", 0), handler=serve, nursery=nursery
        )
        await accepting.apply({"test": plan})
        address = accepting.address("test")
        assert address is not None
        with capture_logs() as logs, trio.fail_after(20):
            for message in (b"bug", b"fine"):
                async with await trio.open_tcp_stream(*address) as stream:
                    await stream.send_all(message)
                    assert await stream.receive_some() == b""
            await served.wait()
        assert [line["log_level"] for line in logs] == ["error"]
        accepting.close()
