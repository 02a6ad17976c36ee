"""Accepting connections: bounded, and not ended by what goes wrong with one of them."""

from __future__ import annotations

import errno
import socket

import msgspec
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.proxies import agent_of, proxy_config, running
from tunnelmux.config import Address, LimitsConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy import listeners
from tunnelmux.proxy.listeners import ListenerPlan, ListenerSet


async def test_a_flood_of_handshakes_waits_outside_and_sessions_go_on() -> None:
    limits = LimitsConfig(ingress=IngressLimits(max_handshakes=2))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy, agent_of(proxy, "dev1") as connected:
        flood = [await trio.open_tcp_stream(*proxy.tunnel_address) for _ in range(2)]
        arrived = trio.Event()

        async def connect() -> None:
            async with agent_of(proxy, "dev2"):
                arrived.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            with trio.move_on_after(0.1) as waiting:
                await arrived.wait()
            assert waiting.cancelled_caught, "a third handshake was begun beside the two"
            await connected.ping()
            await flood[0].aclose()
            with trio.fail_after(5):
                await arrived.wait()
        await flood[1].aclose()


class FailingListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that is out of file descriptors a few times, and then works."""

    def __init__(self, stream: trio.SocketStream, failures: int) -> None:
        self.socket = trio.socket.from_stdlib_socket(socket.socket())
        self._stream: trio.SocketStream | None = stream
        self._failures = failures
        self.accepts = 0

    async def accept(self) -> trio.SocketStream:
        self.accepts += 1
        if self._failures:
            self._failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        if self._stream is None:
            await trio.sleep_forever()
        stream, self._stream = self._stream, None
        assert stream is not None
        return stream

    async def aclose(self) -> None:
        self.socket.close()


async def test_running_out_of_files_is_logged_and_waited_out(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    [real] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    visitor = await trio.open_tcp_stream("127.0.0.1", real.socket.getsockname()[1])
    failing = FailingListener(await real.accept(), failures=3)
    await real.aclose()
    served: list[tuple[str, float]] = []

    async def open_failing(_host: str, _port: int) -> list[FailingListener]:
        return [failing]

    async def serve(_stream: trio.SocketStream, remote: str) -> None:
        served.append((remote, trio.current_time() - started))

    monkeypatch.setattr(listeners, "open_listeners", open_failing)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        plan = ListenerPlan(
            key="test.listen", address=Address("127.0.0.1", 1), handler=serve, nursery=nursery
        )
        with capture_logs() as logs:
            accepting = ListenerSet(nursery)
            assert await accepting.apply({"test": plan}) == []
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
        with capture_logs() as logs, trio.fail_after(5):
            for message in (b"bug", b"fine"):
                async with await trio.open_tcp_stream(*address) as stream:
                    await stream.send_all(message)
                    assert await stream.receive_some() == b""
            await served.wait()
        assert [line["log_level"] for line in logs] == ["error"]
        accepting.close()
