"""The C-level face of the engine, driven by a small module compiled for these tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tunnelmux
from support import wire
from support.wire import ACK, FIN, SYN
from tunnelmux.errors import RemoteProtocolError, StreamReset
from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine

SOURCE = Path(__file__).with_name("_drive.pyx.txt")
SETUP = """
from pathlib import Path
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(
    name="drive",
    ext_modules=cythonize(
        [Extension("drive", ["drive.pyx"], extra_compile_args=["-O0"])],
        include_path=[{include!r}],
        compiler_directives={{"language_level": 3}},
        quiet=True,
    ),
)
"""
# The compiler needs its time on a busy machine.
pytestmark = pytest.mark.timeout(180)
WINDOW = 262_144
FRAME = 16_384


@pytest.fixture(scope="session")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module _drive.pyx.txt, compiled against the installed .pxd files."""
    compiler = os.environ.get("CC", "cc").split()[0]
    if importlib.util.find_spec("Cython") is None or shutil.which(compiler) is None:
        reason = "compiling needs Cython and a C compiler: pip install cython; apt-get install gcc"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("drive")
    shutil.copy(SOURCE, folder / "drive.pyx")
    package = Path(tunnelmux.__file__).parent
    (folder / "setup.py").write_text(SETUP.format(include=str(package.parent)))
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (built,) = folder.glob("drive.*.so")
    spec = importlib.util.spec_from_file_location("drive", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checksum(data: bytes) -> int:
    """What Plane makes of *data*."""
    value = 0
    for byte in data:
        value = (value * 31 + byte) & 0xFFFFFFFF
    return value


def quiet(**changes: Any) -> Limits:
    """Limits under which no ping of the engine's own mixes in."""
    return Limits(max_stream_window=WINDOW, **changes)


@pytest.mark.parametrize("cut", [0, 1, 1_000])
def test_a_transfer_with_drain_and_feed(drive: Any, cut: int) -> None:
    client, server = Engine(is_client=True), drive.Plane(is_client=False)
    stream = client.open_stream(0.0)
    body = bytes(range(251)) * 2_000
    sent = 0
    while sent < len(body):
        sent += stream.send(body, sent)
        drive.move(client, server, 0.0, 65_536, cut)
        drive.move(server, client, 0.0, 65_536, cut)
        server.accept_stream()
    assert server.delivered == len(body)
    assert server.checksum == checksum(body)
    assert server.unread_bytes == 0
    assert not client.is_closed and not server.is_closed


def test_delivering_gives_credit_back(drive: Any) -> None:
    client, server = (
        Engine(is_client=True, limits=quiet()),
        drive.Plane(is_client=False, limits=quiet()),
    )
    stream = client.open_stream(0.0)
    drive.move(client, server, 0.0)
    accepted = server.accept_stream()
    for _ in range(20):
        assert stream.send(bytes(100_000)) == 100_000
        drive.move(client, server, 0.0)
        drive.move(server, client, 0.0)
    assert server.delivered == 2_000_000
    assert stream.send_credit + WINDOW // 2 >= WINDOW
    assert accepted.receive_credit >= WINDOW // 2


def test_frames_placed_by_the_caller(drive: Any) -> None:
    client, server = (
        Engine(is_client=True, limits=quiet()),
        drive.Plane(is_client=False, limits=quiet()),
    )
    stream = client.open_stream(0.0)
    body = bytes(range(256)) * 2_000
    sent = 0
    while sent < len(body):
        moved = drive.place(client, stream, server, memoryview(body)[sent:], 0.0)
        assert moved > 0
        sent += moved
        server.accept_stream()
        drive.move(server, client, 0.0)
    stream.finish()
    drive.move(client, server, 0.0)
    assert server.delivered == len(body)
    assert server.checksum == checksum(body)


def test_a_placed_frame_carries_what_the_stream_owes(drive: Any) -> None:
    client = Engine(is_client=True, limits=quiet())
    stream = client.open_stream(0.0)
    first = drive.frame_bytes(client, stream, b"first")
    second = drive.frame_bytes(client, stream, b"second")
    assert wire.unpack(first + second) == [wire.data(1, b"first", SYN), wire.data(1, b"second")]
    assert stream.send_credit == WINDOW - 11
    assert client.data_to_send(0.0) == b""

    server = Engine(is_client=False, limits=quiet())
    server.receive_data(first, 0.0)
    answer = server.accept_stream()
    assert answer is not None
    assert wire.unpack(drive.frame_bytes(server, answer, b"yes")) == [wire.data(1, b"yes", ACK)]
    assert server.data_to_send(0.0) == b""


def test_the_room_for_a_frame(drive: Any) -> None:
    client = Engine(is_client=True, limits=quiet(max_frame_payload=FRAME))
    server = drive.Plane(is_client=False, limits=quiet())
    stream = client.open_stream(0.0)
    assert drive.room_for(client, stream) == FRAME
    stream.send(b"queued")
    assert drive.room_for(client, stream) == 0, "what is queued goes first"
    drive.move(client, server, 0.0)
    assert drive.room_for(client, stream) == FRAME
    assert drive.place(client, stream, server, bytes(WINDOW), 0.0) == WINDOW - 6
    assert drive.room_for(client, stream) == 0, "no credit"


def test_no_room_on_a_stream_that_ended(drive: Any) -> None:
    client = Engine(is_client=True)
    finished, broken = client.open_stream(0.0), client.open_stream(0.0)
    client.data_to_send(0.0)
    finished.finish()
    client.receive_data(wire.pack(wire.reset(broken.id)), 0.0)
    assert isinstance(broken.error, StreamReset)
    assert drive.room_for(client, finished) == 0
    assert drive.room_for(client, broken) == 0


def test_a_fin_follows_placed_frames(drive: Any) -> None:
    client = Engine(is_client=True, limits=quiet())
    stream = client.open_stream(0.0)
    placed = drive.frame_bytes(client, stream, b"all there is")
    stream.finish()
    frames = wire.unpack(placed + client.data_to_send(0.0))
    assert frames == [wire.data(1, b"all there is", SYN), wire.update(1, flags=FIN)]


def test_a_protocol_error_leaves_feed(drive: Any) -> None:
    client, server = Engine(is_client=True), drive.Plane(is_client=True)
    client.open_stream(0.0)
    with pytest.raises(RemoteProtocolError, match="both ends"):
        drive.move(client, server, 0.0)
    assert wire.unpack(server.data_to_send(0.0)) == [wire.go_away(1)]


def test_an_error_of_the_plane_leaves_feed(drive: Any) -> None:
    client, server = Engine(is_client=True), drive.Refusing(is_client=False)
    client.open_stream(0.0).send(b"x")
    with pytest.raises(RuntimeError, match="the plane is broken"):
        drive.move(client, server, 0.0)


def test_a_drain_with_little_room_gives_whole_frames(drive: Any) -> None:
    client, server = Engine(is_client=True), drive.Plane(is_client=False)
    streams = [client.open_stream(0.0) for _ in range(10)]
    for stream in streams:
        assert stream.send(bytes(10_000)) == 10_000
    assert drive.move(client, server, 0.0, 2_000) >= 100_000 + 10 * 12
    assert server.delivered == 100_000
