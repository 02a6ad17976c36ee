"""What is taken back while a device is still being connected, which may take its time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tunnelmux.config import Secret
from tunnelmux.config.api import RegistryConfig
from tunnelmux.config.gateway import GatewayConfig, GatewayListener
from tunnelmux.gateway.app import Gateway
from tunnelmux.gateway.authority import Access, Person
from tunnelmux.gateway.connection import TAKEN_BACK, PersonConnection
from tunnelmux.gateway.devices import DeviceSocket
from tunnelmux.gateway.guest import Bridge, run_as_guest
from tunnelmux.gateway.names import Login
from tunnelmux.gateway.relay import PersonSession

DEVICE: Any = SimpleNamespace(
    id="d1", name="cam1", label="cam1", state=SimpleNamespace(services=("ssh", "web"))
)


class Changes:
    """The registry's changes, of which there is one once the test says so."""

    def __init__(self) -> None:
        self.number = 1
        self.news = trio.Event()

    async def latest(self) -> int:
        return self.number

    async def after(self, number: int) -> list[Any]:
        change = SimpleNamespace(number=self.number, object_id="u1")
        return [change] if number < self.number else []

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Any]:
        async def wait() -> None:
            await self.news.wait()
            self.news = trio.Event()

        yield SimpleNamespace(wait=wait)


class Authority:
    """Lets a person in until it is told otherwise."""

    def __init__(self) -> None:
        self.is_good = True
        self.access_now = Access(
            Person("u1", "bob", tenant_id="t1"), "t1", DEVICE, None, frozenset({"exec", "forward"})
        )

    async def access(self, *_: object) -> Access:
        return self.access_now

    async def forward(self, *_: object) -> tuple[Access, str]:
        return self.access_now, "web"

    async def again(self, access: Access, _address: str) -> Access | None:
        return access if self.is_good else None

    async def use(self, *_: object) -> None: ...

    async def note(self, *_: object) -> None: ...


class Channel:
    """A person's channel that notes how it ended."""

    def __init__(self) -> None:
        self.told = b""
        self.ended = ""
        self._send_buf: list[object] = []

    def is_closing(self) -> bool:
        return bool(self.ended)

    def get_environment_bytes(self) -> dict[bytes, bytes]:
        return {}

    def write_stderr(self, data: bytes) -> None:
        self.told += data

    def exit_with_signal(self, _signal: str, _core: bool, reason: str) -> None:
        self.ended = reason


class Stage:
    """A gateway that follows a registry, and one person who has logged in."""

    def __init__(self, gateway: Any, changes: Changes) -> None:
        self.gateway = gateway
        self.authority: Authority = gateway.authority
        self.changes = changes
        self.person = PersonConnection(gateway, "192.0.2.7")
        login = Login("root", "cam1", None)
        proof: Any = SimpleNamespace(
            person=self.authority.access_now.person, login=login, device=None
        )
        self.person._proof = proof
        gateway.connections.add(self.person)

    async def take_back(self) -> None:
        """Take the person's access back, and wait until the gateway has looked."""
        looks = self.gateway.looks
        self.authority.is_good = False
        self.changes.number += 1
        self.changes.news.set()
        while self.gateway.looks == looks:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()


def on_stage(folder: Path, play: Callable[[Stage], Awaitable[None]]) -> None:
    async def main(loop: asyncio.AbstractEventLoop) -> None:
        config = GatewayConfig(
            gateway=GatewayListener(state_dir=folder),
            registry=RegistryConfig(url=Secret("sqlite:///nowhere")),
        )
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                changes = Changes()
                registry: Any = SimpleNamespace(
                    changes=changes, installation=lambda _actor: None, tenant=lambda *_: None
                )
                gateway: Any = Gateway(config, registry, Bridge(loop, nursery))
                gateway.authority = Authority()
                nursery.start_soon(gateway.follow)
                await trio.testing.wait_all_tasks_blocked()
                await play(Stage(gateway, changes))
                nursery.cancel_scope.cancel()

    run_as_guest(main)


def test_a_session_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        bridge = stage.gateway.bridge
        begun: list[object] = []
        device = SimpleNamespace(create_session=begun.append)

        async def slowly(*_: object) -> object:
            await bridge.in_trio(stage.take_back)
            return device

        async def at_once(*_: object) -> Any:
            return SimpleNamespace(record_input=False)

        monkeypatch.setattr(stage.person, "_device_connection", slowly)
        stage.gateway.ssh_rules_of = at_once
        stage.gateway.new_recording = at_once
        session = PersonSession(stage.person, "cam1", bridge.start)
        channel = Channel()
        session.connection_made(channel)
        session.exec_requested("reboot")
        session.session_started()
        await bridge.settle()
        assert channel.ended == TAKEN_BACK
        assert TAKEN_BACK.encode() in channel.told
        assert not begun
        stage.person.uses.clear()

    on_stage(tmp_path, play)


def test_a_forward_carries_nothing(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)

        async def connect(*_: object) -> DeviceSocket:
            await stage.take_back()
            return DeviceSocket(near, b"")

        stage.gateway.devices = SimpleNamespace(connect=connect)
        with far:
            forward = await stage.gateway.bridge.in_asyncio(
                stage.person._forward(object(), "cam1", 80)
            )
            end = trio.socket.from_stdlib_socket(far)
            assert await end.recv(1) == b""
        assert forward.service.is_lost

    on_stage(tmp_path, play)
