"""`tunnelmux-agent assist`, against a running agent's socket and without one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trio
from click.testing import CliRunner, Result

from support.shapes import of_whole
from tunnelmux.agent.assist import LeaseOffer
from tunnelmux.agent.assist.service import AssistService
from tunnelmux.cli.agent import agent
from tunnelmux.config import load_agent_config

CONFIG = """
[proxy]
url = "ws://127.0.0.1:1/tunnel/connect"
token = "0123456789abcdef0123456789abcdef"
[device]
name = "cam1"
serial = "SN-7"
state_dir = "{folder}"
[[services]]
name = "ssh"
target = "tcp://127.0.0.1:22"
lease_only = true
[[services]]
name = "web"
target = "8000"
[assist]
mode = "{mode}"
ask_timeout = 300.0
"""

OFFER = LeaseOffer(
    id="00000000-0000-7000-8000-000000000001",
    who="Ada",
    reason="printer jams",
    services=("ssh",),
    rights=("shell",),
    seconds=3600.0,
)


def write_config(folder: Path, mode: str = "ask") -> Path:
    file = folder / "agent.toml"
    file.touch(0o600)
    file.write_text(CONFIG.format(folder=folder, mode=mode))
    return file


def run(file: Path, *words: str, answer: str = "") -> Result:
    first, *rest = words
    return CliRunner().invoke(
        agent, ["assist", first, "--config", str(file), *rest], input=answer, standalone_mode=False
    )


class Running:
    """The agent's switch, served in a thread of its own."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main))

    async def _main(self) -> None:
        self.service = AssistService(load_agent_config(self._file, environ={}))
        self._token = trio.lowlevel.current_trio_token()
        with self.service.opened(), trio.CancelScope() as self._scope:
            await self.service.learn_serial()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.service.run)
                self._ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join(30)

    def offer(self, offer: LeaseOffer) -> Any:
        """What the device says to a lease."""
        return trio.from_thread.run_sync(self.service.desk.offer, offer, trio_token=self._token)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, Running]]:
    file = write_config(tmp_path)
    with Running(file) as there:
        yield file, there


def test_on_lets_in_status_shows_and_off_ends(running: tuple[Path, Running]) -> None:
    file, there = running
    said = run(file, "status")
    assert "asks about each request" in said.output
    assert "SN-7" in said.output
    said = run(file, "on", "--for", "1h30m", "--services", "ssh")
    assert (said.return_value, "on, for 1 h" in said.output) == (0, True)
    assert there.offer(OFFER).state == "given"
    said = run(file, "status")
    assert "Ada has ssh, recorded, for " in said.output
    state = of_whole("tunnelmux-agent assist status", run(file, "status", "--json").output)
    assert state.leases[0].who == "Ada"
    assert "Assistance: off" in run(file, "off").output
    assert there.service.desk.leases == []
    assert there.offer(OFFER).state == "refused"


def test_a_request_is_answered_from_a_terminal(running: tuple[Path, Running]) -> None:
    file, there = running
    assert there.offer(OFFER).state == "asked"
    assert "without an answer" in run(file, "status").output
    assert run(file, "yes", OFFER.id).return_value == 0
    said = run(file, "yes", OFFER.id)
    assert (said.return_value, "no such request" in said.output) == (1, True)
    assert run(file, "stop", OFFER.id).return_value == 0
    assert there.service.desk.leases == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("on", "--for", "soon"), "write it like 90m or 2h"),
        (("on", "--for", "2"), "write it like 90m or 2h"),
        (("on", "--for", "9h"), "assist.longest"),
        (("on", "--services", "vnc"), "no assistance with vnc"),
        (("no", "x" * 100), "cannot be understood"),
    ],
)
def test_what_cannot_be_done_is_said(
    running: tuple[Path, Running], words: tuple[str, ...], message: str
) -> None:
    said = run(running[0], *words)
    assert message in said.output + str(said.exception or "")
    assert said.return_value != 0


def test_the_socket_is_its_users_and_takes_no_rubbish(running: tuple[Path, Running]) -> None:
    import socket

    path = running[0].with_name("cam1.assist.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    for rubbish in (b"\n", b"{}\n", b"[" * 10_000 + b"\n", b"x" * 20_000, b"\xff\n"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(str(path))
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            answer = json.loads(connection.makefile("rb").readline())
            assert answer["problem"]


def test_a_second_agent_of_this_name_is_told(running: tuple[Path, Running]) -> None:
    second = AssistService(load_agent_config(running[0], environ={}))
    with pytest.raises(Exception, match="another agent with this name"), second.opened():
        pass


def test_without_the_agent_the_switch_holds_for_its_next_start(tmp_path: Path) -> None:
    file = write_config(tmp_path, "allow")
    said = run(file, "off")
    assert (said.return_value, "takes effect when it starts" in said.output) == (0, True)
    with Running(file) as there:
        assert "switched off" in there.offer(OFFER).reason
    assert run(file, "yes", OFFER.id).return_value == 1
    assert not (tmp_path / "cam1.assist.sock").exists()


def test_a_socket_that_a_dead_agent_left_is_replaced(tmp_path: Path) -> None:
    import socket

    file = write_config(tmp_path)
    path = tmp_path / "cam1.assist.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    with Running(file):
        assert run(file, "status").return_value == 0


def test_a_folder_with_a_long_path_has_a_socket_too(tmp_path: Path) -> None:
    """A socket's path has 107 bytes; the folder of a device's state may be deeper."""
    folder = tmp_path / ("deep-" * 15) / ("deeper-" * 12)
    folder.mkdir(parents=True)
    file = write_config(folder)
    with Running(file):
        said = run(file, "on", "--for", "1h")
        assert (said.return_value, "SN-7" in said.output) == (0, True), said.output
        second = AssistService(load_agent_config(file, environ={}))
        with pytest.raises(Exception, match="another agent with this name"), second.opened():
            pass
    assert not (folder / "cam1.assist.sock").exists()
    long_name = folder / "agent.toml"
    long_name.write_text(CONFIG.format(folder=folder, mode="ask").replace("cam1", "c" * 58))
    with Running(long_name):
        assert run(long_name, "status").return_value == 0
