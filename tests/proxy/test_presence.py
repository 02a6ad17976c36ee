"""Who was online outlives the process: what is kept, when it is written, what is read again."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from support.own_thread import replace_here
from support.sessions import session_pair
from tunnelmux.config import Address
from tunnelmux.http.refusal import Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session
from tunnelmux.proxy.tunnels import presence
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.proxy.tunnels.presence import PresenceFile, presence_path
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.sessions import EventLog, LocalHandle, MemoryStore

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Process:
    """The part of one proxy process that knows who is online."""

    def __init__(self, path: Path) -> None:
        self.events = EventLog(100)
        self.store = MemoryStore(events=self.events)
        self.file = PresenceFile(path, self.store, self.events)

    async def connect(self, device: str, session: Session) -> LocalHandle:
        handle = LocalHandle(
            session,
            token=f"session-token-of-{device}",
            device=device,
            credential=device.encode(),
            clock=lambda: NOON,
        )
        await self.store.register(handle.token, handle)
        return handle

    async def start(self, nursery: trio.Nursery, *known: str) -> None:
        await self.file.load(lambda name: name in known, 5.0)
        nursery.start_soon(self.file.run)


@pytest.fixture(autouse=True)
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps does not wait for a thread."""

    async def run_sync(function: Callable[..., object], *arguments: object) -> object:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    replace_here(monkeypatch, trio.to_thread, "run_sync", run_sync)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def kept(path: Path) -> dict[str, dict[str, object]]:
    """The devices in the file."""
    devices: dict[str, dict[str, object]] = json.loads(path.read_bytes())["devices"]
    return devices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "presence.json"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was written, each time."""
    written: list[bytes] = []
    real = presence.write_private

    def write(path: Path, content: bytes) -> None:
        written.append(content)
        real(path, content)

    monkeypatch.setattr(presence, "write_private", write)
    return written


async def test_a_visitor_waits_for_a_device_that_was_online_before_the_restart(
    path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async with session_pair() as (_agent, session):
        before = Process(path)
        await before.start(nursery, "dev1")
        await before.connect("dev1", session)
        await trio.sleep(3)
    # Killed: nothing was written at the end.
    after = Process(path)
    await after.start(nursery, "dev1", "dev2")
    devices = DeviceRegister(
        [KnownDevice(name=name, token_sha256=name.encode()) for name in ("dev1", "dev2")]
    )
    router = Router(after.store, devices)
    began = trio.current_time()
    with pytest.raises(Refused):
        await router.open_stream("dev2", IngressLimits())
    assert trio.current_time() == began, "nobody waits for a device that was not online"
    with pytest.raises(Refused) as caught:
        await router.open_stream("dev1", IngressLimits())
    assert trio.current_time() - began == pytest.approx(5.0)
    message = caught.value.refusal.message
    assert "last seen on Mon, 04 May 2026 12:00:00 GMT" in message
    assert "(it has not come back since the proxy was restarted)" in message

    again = Process(path)
    await again.file.load(lambda _name: True, 5.0)
    opened = trio.Event()

    async def visit() -> None:
        await Router(again.store, devices).open_stream("dev1", IngressLimits())
        opened.set()

    async with session_pair() as (_agent, session):
        # It counted as online until it had not come back in time, and not for ever.
        with pytest.raises(Refused):
            await visit()
        await again.connect("dev1", session)
        await visit()
    assert opened.is_set()


async def test_two_restarts_in_a_row_forget_nobody(
    path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async with session_pair() as (_agent, session):
        first = Process(path)
        await first.start(nursery, "dev1")
        await first.connect("dev1", session)
        await first.file.finish()
        await first.store.unregister("session-token-of-dev1")  # by the drain
        await trio.sleep(3)
    second = Process(path)
    await second.start(nursery, "dev1")
    await second.file.finish()
    third = Process(path)
    await third.start(nursery, "dev1")
    assert third.store.lost_at("dev1") == trio.current_time()


async def test_when_and_why_a_device_was_lost_outlives_the_process(
    path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    before = Process(path)
    await before.start(nursery, "dev1")
    async with session_pair() as (_agent, session):
        handle = await before.connect("dev1", session)
        await handle.close("the device was disabled in proxy.toml")
        await before.store.unregister(handle.token, handle)
    await before.file.finish()
    after = Process(path)
    await after.start(nursery, "dev1")
    assert after.store.last_seen("dev1") == NOON
    assert after.store.offline_reason("dev1") == "the device was disabled in proxy.toml"
    began = trio.current_time()
    assert await after.store.wait_for_device("dev1", after.store.lost_at("dev1") or 0) is None
    assert trio.current_time() == began


async def test_it_is_written_at_once_and_then_in_batches(
    path: Path,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    writes: list[bytes],
) -> None:
    process = Process(path)
    await process.start(nursery)
    async with session_pair() as (_agent, session):
        await trio.sleep(10)
        assert writes == [b'{"devices":{}}'], "to try the folder; there is nothing to say yet"
        for number in range(200):
            await process.connect(f"dev{number}", session)
        await trio.sleep(0.5)
        assert len(writes) <= 2
        assert len(json.loads(writes[-1])["devices"]) == 200
        for number in range(10):
            await process.connect(f"more{number}", session)
            await trio.sleep(0.3)
        await trio.sleep(1)
        assert 3 <= len(writes) <= 7, "3 s of changes, at most one writing a second"
        assert len(json.loads(writes[-1])["devices"]) == 210
    assert mode_of(path) == 0o600
    assert b"session-token" not in b"".join(writes)


async def test_a_write_that_takes_long_is_followed_by_a_longer_wait(
    path: Path,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[float] = []

    async def write_slowly(function: Callable[..., object], *arguments: object) -> object:
        begun.append(trio.current_time())
        await trio.sleep(0.5)
        return function(*arguments)

    process = Process(path)
    replace_here(monkeypatch, trio.to_thread, "run_sync", write_slowly)
    nursery.start_soon(process.file.run)
    async with session_pair() as (_agent, session):
        for number in range(60):  # there is always something to write
            await trio.sleep(1)
            await process.connect(f"dev{number}", session)
    pauses = [after - before - 0.5 for before, after in pairwise(begun)]
    assert len(pauses) >= 4
    assert min(pauses) >= 10, "a twentieth of the time, however many devices come and go"
    assert max(pauses) < 12


async def test_what_is_not_known_any_more_is_dropped(path: Path, nursery: trio.Nursery) -> None:
    seen = NOON.isoformat()
    devices = {name: {"last_seen": seen} for name in ("old", "dev1")}
    put(path, json.dumps({"devices": devices}).encode())
    process = Process(path)
    await process.file.load(lambda name: name == "dev1", 5.0)
    assert process.store.last_seen("dev1") == NOON
    assert process.store.presence().keys() == {"dev1"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"devices": {"dev1": {"online": true}}}', b"\xff\0", b"[" * 100_000],
)
async def test_a_damaged_file_is_told_of_and_written_anew(
    path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, content: bytes
) -> None:
    put(path, content)
    process = Process(path)
    with structlog.testing.capture_logs() as logs:
        await process.start(nursery, "dev1")
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("presence not kept", "warning")
    assert f"{path} is damaged" in line["cause"]
    async with session_pair() as (_agent, session):
        await process.connect("dev1", session)
        await trio.sleep(3)
    assert kept(path)["dev1"]["online"] is True


async def test_a_folder_that_cannot_be_written_is_told_of_once(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    (tmp_path / "file").touch()
    process = Process(tmp_path / "file" / "presence.json")
    with structlog.testing.capture_logs() as logs:
        await process.start(nursery, "dev1")
        await trio.sleep(1)
        assert [line["event"] for line in logs] == ["presence not kept"], "before any device came"
        async with session_pair() as (_agent, session):
            for _ in range(3):
                await process.connect("dev1", session)
                await trio.sleep(2)
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert line["event"] == "presence not kept"
    assert "state_dir in [tunnel]" in line["fix"]


def test_each_tunnel_port_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert presence_path(tmp_path, Address("0.0.0.0", 3800)) == (
        tmp_path / "presence-0.0.0.0-3800.json"
    )
    assert presence_path(tmp_path, Address("::1", 3800)) == tmp_path / "presence---1-3800.json"
    assert presence_path(tmp_path, Address("127.0.0.1", 0)) is None
