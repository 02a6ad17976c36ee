"""A client that asks again and again without showing anything is one that fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from support.hostile_ssh import HostileClient
from tunnelmux.config.gateway import GatewayLimits, TunnelsConfig
from tunnelmux.gateway.connection import PersonConnection
from tunnelmux.gateway.reverse import DeviceTunnel
from tunnelmux.observability import BoundedLines


class Gateway:
    """As much of a gateway as a connection needs that never logs in."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            limits=GatewayLimits(),
            tunnels=SimpleNamespace(url=None),
            gateway=SimpleNamespace(console_url=None),
        )
        self.bridge = SimpleNamespace(loop=asyncio.get_running_loop())
        self.authority = self.confirmations = None
        self.lines = BoundedLines("gateway")
        self.over: asyncio.Future[bool] = self.bridge.loop.create_future()

    def left(self, _connection: PersonConnection, *, failed: bool) -> None:
        self.over.set_result(failed)


async def asks(times: int) -> bool:
    """Whether it counts as a failed log-in to ask so often, each time as another person."""
    gateway: Any = Gateway()
    key = asyncssh.generate_private_key("ssh-ed25519")
    client = HostileClient()
    async with (
        asyncio.timeout(50),
        await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: PersonConnection(gateway, "192.0.2.7"),
            server_host_keys=[key],
        ) as listening,
    ):
        await client.connect(listening.get_port())
        for number in range(times):
            client.ask_to_be_let_in(f"ann{number}@cam1")
        if times < 10:
            client.disconnect(asyncssh.DISC_BY_APPLICATION, "enough")
        failed: bool = await gateway.over
        client.abort()
        return failed


def test_a_client_that_leaves_without_a_log_in_has_failed() -> None:
    # Its key exchange was most of the work of a log-in, whatever it asked for after that.
    assert asyncio.run(asks(0))
    assert asyncio.run(asks(2))


def test_asking_for_ever_ends_the_connection_and_counts() -> None:
    assert asyncio.run(asks(500))


class Wire:
    """A device's connection, as far as its tunnel speaks to it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ended: list[str] = []

    def send_debug(self, sentence: str, **_: Any) -> None:
        self.told.append(sentence)

    def disconnect(self, _code: int, reason: str) -> None:
        self.ended.append(reason)


def tunnel_of(wire: Wire, loop: Any) -> DeviceTunnel:
    bridge: Any = SimpleNamespace(loop=loop, soon=lambda *_: None)
    device: Any = SimpleNamespace(label="old1")
    nothing: Any = None
    config = TunnelsConfig(url="wss://p")
    return DeviceTunnel(
        bridge, BoundedLines("gateway"), nothing, config, wire, device, "192.0.2.7", 4
    )


async def test_a_device_that_asks_for_forwards_in_vain_for_ever_is_ended() -> None:
    wire = Wire()
    tunnel = tunnel_of(wire, SimpleNamespace(time=lambda: 0.0))
    with capture_logs() as logs:
        for _ in range(1000):
            tunnel.forward_requested("no name " * 10_000, 80)
    assert wire.ended == ["it asks for too many forwards that are refused"]
    assert len(wire.told) < 200
    assert sum(map(len, wire.told)) < 50_000 and len(str(logs)) < 100_000


async def test_a_device_that_connects_in_a_loop_has_some_lines_a_minute() -> None:
    lines = BoundedLines("gateway")
    with capture_logs() as logs:
        for _ in range(1000):
            lines.write("ssh device connected", "old1", device="old1", address="192.0.2.7")
        lines.write("ssh device connected", "another", device="another", address="192.0.2.7")
    written = [line["device"] for line in logs if line["event"] == "ssh device connected"]
    assert written == ["old1"] * 30 + ["another"]
    assert "lines left out" in {line["event"] for line in logs}


async def test_a_device_has_so_many_sessions_and_one_time_to_end() -> None:
    timers: list[Any] = []

    class Loop:
        def time(self) -> float:
            return 1000.0

        def call_later(self, seconds: float, *_: Any) -> Any:
            timer = SimpleNamespace(when=lambda: 1000.0 + seconds, is_cancelled=False)
            timer.cancel = lambda: setattr(timer, "is_cancelled", True)
            timers.append(timer)
            return timer

    tunnel = tunnel_of(Wire(), Loop())
    for _ in range(4):
        tunnel.session_requested()
    with pytest.raises(asyncssh.ChannelOpenError):
        tunnel.session_requested()
    for seconds in (7200, 60, *[3600] * 1000):
        tunnel.limit(seconds)
    assert [timer.when() for timer in timers if not timer.is_cancelled] == [1060.0]
    assert len(timers) == 2
