"""Devices, and people's clients, that leave what they are asked without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
import trio

from tunnelmux.config.gateway import GatewayLimits
from tunnelmux.gateway.channel_stream import open_reverse_channel
from tunnelmux.gateway.connection import PersonConnection
from tunnelmux.gateway.guest import Bridge, run_as_guest
from tunnelmux.gateway.relay import Opened, PersonSession
from tunnelmux.gateway.side_channels import SideChannel, carry_back

SOON = 0.01
"""Seconds that a device has, where it is to be found silent."""


class Device(asyncssh.SSHServer):
    """Answers the opening of a channel when the test says so; where it takes one, it may still
    leave the request for a command without an answer."""

    def __init__(self, *, takes_channels: bool) -> None:
        self.may_answer = asyncio.Event()
        self.asked = 0
        self.commands: list[str] = []
        self.connection: Any = None
        if takes_channels:
            self.may_answer.set()

    def connection_made(self, conn: Any) -> None:
        self.connection = conn

    def begin_auth(self, _username: str) -> bool:
        return False

    def session_requested(self) -> Any:
        channel = self.connection.create_server_channel(None)
        channel._process_exec_request = lambda _packet: self.commands.append("a command")
        return channel, self._answer(asyncssh.SSHServerSession())

    def connection_requested(self, *_: object) -> Any:
        return self._answer(asyncssh.SSHTCPSession())

    async def _answer(self, session: Any) -> Any:
        self.asked += 1
        await self.may_answer.wait()
        return session


@asynccontextmanager
async def connected(device: Device) -> AsyncIterator[Any]:
    """A connection of the gateway's to this device."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with (
        asyncio.timeout(50),
        await asyncssh.listen(
            "127.0.0.1", 0, server_factory=lambda: device, server_host_keys=[key]
        ) as listening,
        asyncssh.connect(
            "127.0.0.1", listening.get_port(), known_hosts=None, config=None, username="u"
        ) as connection,
    ):
        yield connection


async def until(is_so: Callable[[], bool]) -> int:
    """Wait for what another side does, and return how many turns of the loop it took."""
    turns = 0
    while not is_so():
        turns += 1
        await asyncio.sleep(0)
    return turns


class PersonsChannel:
    """The channel of a person who reads nothing."""

    def __init__(self) -> None:
        self.told = b""
        self.end: str | None = None
        self._send_buf: list[object] = []

    def is_closing(self) -> bool:
        return self.end is not None

    def get_environment_bytes(self) -> dict[bytes, bytes]:
        return {}

    def write_stderr(self, data: bytes) -> None:
        self.told += data

    def exit_with_signal(self, _signal: str, _core: bool, reason: str) -> None:
        self.end = self.end or reason

    def exit(self, status: int) -> None:
        self.end = self.end or str(status)


class Owner:
    """Of one session, on this connection to a device."""

    def __init__(self, connection: Any, timeout: float) -> None:
        self._opened = Opened(None, connection, None, {}, timeout)  # type: ignore[arg-type]
        self.over = asyncio.Event()

    async def open_device(self, _session: PersonSession, _device: str) -> Opened:
        return self._opened

    def session_over(self, _session: PersonSession) -> None:
        self.over.set()


def begin(owner: Owner) -> tuple[PersonSession, PersonsChannel]:
    session = PersonSession(owner, "cam1", asyncio.get_running_loop().create_task)  # type: ignore[arg-type]
    channel = PersonsChannel()
    session.connection_made(channel)
    session.exec_requested("reboot")
    session.session_started()
    return session, channel


@pytest.mark.parametrize("takes_channels", [False, True])
def test_a_session_that_a_device_does_not_begin_is_over_in_time(*, takes_channels: bool) -> None:
    async def play() -> PersonsChannel:
        async with connected(Device(takes_channels=takes_channels)) as connection:
            owner = Owner(connection, SOON)
            _, channel = begin(owner)
            await owner.over.wait()
            return channel

    channel = asyncio.run(play())
    assert b"the device's sshd did not begin the session within 0.01 s" in channel.told
    assert channel.end is not None


def test_a_command_does_not_begin_after_the_end_of_its_session() -> None:
    async def play() -> list[str]:
        device = Device(takes_channels=False)
        async with connected(device) as connection:
            session, _ = begin(Owner(connection, 50))
            await until(lambda: bool(device.asked))
            session.cut("your lease has ended")
            device.may_answer.set()
            await until(lambda: not connection._channels)
            return device.commands

    assert asyncio.run(play()) == []


class Tenfold:
    """A connection with so many channels that its other end leaves without an answer."""

    def __init__(self, channels: int) -> None:
        self._channels = dict.fromkeys(range(channels))
        self.is_over = False

    def is_closed(self) -> bool:
        return self.is_over

    def abort(self) -> None:
        self.is_over = True


def person_connection(*, is_busy: bool = False) -> PersonConnection:
    gateway: Any = SimpleNamespace(
        config=SimpleNamespace(limits=GatewayLimits(max_sessions=5)),
        bridge=SimpleNamespace(
            loop=asyncio.get_running_loop(), lane=lambda _peer: SimpleNamespace(is_full=is_busy)
        ),
    )
    person = PersonConnection(gateway, "192.0.2.7")
    proof: Any = SimpleNamespace(person=SimpleNamespace(user_id="u1"), device=None)
    person._proof = proof
    return person


def test_a_device_that_leaves_many_channels_unanswered_is_connected_anew() -> None:
    async def play() -> tuple[bool, bool]:
        person = person_connection()
        good, silent = Tenfold(9), Tenfold(10)
        made: list[Any] = [silent, good]

        async def connect(*_: object) -> Any:
            return made.pop(0)

        person._connect = connect  # type: ignore[method-assign]
        access: Any = SimpleNamespace(device=SimpleNamespace(id="d1"), lease_id="")
        for expected in (silent, good, good):
            found = await person._device_connection("root", access, agent=False, x11=False)
            assert found is expected
        return silent.is_over, good.is_over

    assert asyncio.run(play()) == (True, False)


def test_a_person_whose_ssh_confirms_no_end_gets_no_more_channels() -> None:
    async def play() -> None:
        person = person_connection()
        person._connection = Tenfold(9)
        person._need_room()
        person._connection = Tenfold(10)
        with pytest.raises(asyncssh.ChannelOpenError, match="without an answer"):
            person._need_room()

    asyncio.run(play())


def test_a_person_who_begins_sessions_in_heaps_begins_no_more_for_a_moment() -> None:
    async def play() -> None:
        person = person_connection(is_busy=True)
        person._connection = Tenfold(0)
        with pytest.raises(asyncssh.ChannelOpenError, match="just being begun"):
            person._need_room()

    asyncio.run(play())


def test_a_way_to_a_persons_agent_that_was_cut_is_not_opened_later() -> None:
    async def play() -> tuple[bool, list[str]]:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        events: list[str] = []
        there = SimpleNamespace(abort=lambda: events.append("aborted"), pause_reading=lambda: None)

        async def open_there(factory: Any) -> None:
            await answer
            factory().connection_made(there)

        device: Any = SimpleNamespace(create_unix_channel=lambda *_: None)
        person: Any = SimpleNamespace(
            create_agent_channel=lambda _window: SimpleNamespace(open=open_there)
        )
        end = SideChannel("agent", lambda _: events.append("over"))
        carry_back(
            device, person, lambda _kind: end, lambda _: None, lambda: 65_536, agent=True, x11=False
        )
        _, joining = device._process_auth_agent_at_openssh_dot_com_open(
            SimpleNamespace(check_end=lambda: None)
        )
        task = loop.create_task(joining)
        await asyncio.sleep(0)
        end.cut("your lease has ended")
        answer.set_result(None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await task
        return end.is_over, events

    assert asyncio.run(play()) == (True, ["over", "aborted"])


def test_a_way_to_a_persons_agent_ends_with_the_device_that_was_lost_meanwhile() -> None:
    async def play() -> tuple[bool, list[str]]:
        answer = asyncio.get_running_loop().create_future()
        events: list[str] = []
        there = SimpleNamespace(abort=lambda: events.append("aborted"), pause_reading=lambda: None)

        async def open_there(factory: Any) -> None:
            await answer
            factory().connection_made(there)

        person: Any = SimpleNamespace(
            create_agent_channel=lambda _window: SimpleNamespace(open=open_there)
        )
        end = SideChannel("agent", lambda _: events.append("over"))
        async with connected(Device(takes_channels=True)) as device:
            carry_back(
                device,
                person,
                lambda _kind: end,
                lambda _: None,
                lambda: 65_536,
                agent=True,
                x11=False,
            )
            _, joining = device._process_auth_agent_at_openssh_dot_com_open(
                SimpleNamespace(check_end=lambda: None)
            )
            task = asyncio.get_running_loop().create_task(joining)
            await asyncio.sleep(0)
            device.abort()
            await device.wait_closed()
            answer.set_result(None)
            await task
        return end.is_over, events

    assert asyncio.run(play()) == (True, ["aborted", "over"])


def test_a_visit_that_was_given_up_leaves_no_channel_at_a_device() -> None:
    async def main(loop: asyncio.AbstractEventLoop) -> None:
        async with trio.open_nursery() as nursery:
            bridge = Bridge(loop, nursery)
            device = Device(takes_channels=False)
            stack = connected(device)
            connection = await bridge.in_asyncio(stack.__aenter__())
            with trio.move_on_after(SOON) as waited:
                await open_reverse_channel(bridge, connection, "web", 80)
            assert waited.cancelled_caught
            device.may_answer.set()
            with trio.fail_after(20):
                await bridge.in_asyncio(until(lambda: not connection._channels))
            connection._channels = dict.fromkeys(range(512))
            with pytest.raises(ConnectionRefusedError, match="without an answer"):
                await open_reverse_channel(bridge, connection, "web", 80)
            connection._channels = {}
            await bridge.in_asyncio(stack.__aexit__(None, None, None))

    run_as_guest(main)
