"""tunnelmux forward: ports of this machine that lead to services of devices."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from signal import SIGINT

import pytest

from support.installation import COMMAND, Installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def forwarding(
    installation: Installation, way: str, *words: str
) -> Iterator[tuple[list[int], subprocess.Popen[str]]]:
    """The ports that are listened on, one for each service."""
    with subprocess.Popen(
        [*COMMAND, "forward", *words],
        env=installation.way(way),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            ports = []
            for word in words:
                if ":" in word:
                    match = re.fullmatch(
                        rf"127\.0\.0\.1:(\d+) is {word}\n", process.stdout.readline()
                    )
                    assert match is not None
                    ports.append(int(match[1]))
            yield ports, process
        finally:
            process.send_signal(SIGINT)
            assert process.wait(30) == 130


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """What comes back of `data`, whose end was told."""
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    back = b""
    while piece := connection.recv(65_536):
        back += piece
    return back


def test_several_services_at_once(installation: Installation, way: str) -> None:
    with forwarding(installation, way, "dev1:echo", "dev2:web") as ((echo, web), _):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", echo), 30) as connection:
                assert exchange(connection, b"x" * 100_000) == b"x" * 100_000
        with socket.create_connection(("127.0.0.1", web), 30) as connection:
            answer = exchange(connection, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.endswith(b"\r\n\r\nhello\n")


def test_a_device_that_comes_back_is_found_again(installation: Installation, way: str) -> None:
    name = f"roaming-{way}"
    services = {"echo": installation.echo}
    installation.here(partial(installation.add_device, name, services))
    with forwarding(installation, way, f"{name}:echo", "--wait", "60") as ((port,), process):
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            assert exchange(connection, b"before") == b"before"
        installation.here(partial(installation.stop_agent, name))
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            connection.settimeout(60)
            connection.sendall(b"while it was away")
            assert process.stderr is not None
            assert process.stderr.readline().startswith(f"{name}:echo is away: ")
            installation.here(partial(installation.start_agent, name))
            assert process.stderr.readline() == f"{name}:echo is back\n"
            assert exchange(connection, b"") == b"while it was away"


def test_what_is_wrong_is_told_before_it_listens(installation: Installation) -> None:
    for words, status, says in (
        (("dev9:echo",), 4, b'no device is called "dev9"'),
        (("dev1",), 2, b'"dev1" is neither DEVICE:SERVICE nor the port for one'),
        (("dev1:echo", "70000"), 2, b"70000 is not a port"),
    ):
        done = installation.run("forward", *words)
        assert (done.returncode, done.stdout) == (status, b""), done.stderr
        assert says in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = installation.run("forward", "dev1:echo", str(taken.getsockname()[1]))
        assert done.returncode == 2
        assert b"choose another port" in done.stderr
