"""Debian's Redis, on a socket in a temporary folder; with options of a test's own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from support.programs import require_program

__all__ = ["RedisServer", "run_redis"]

_STARTING = 30.0


class RedisServer:
    """A server that is running, or was ended on purpose. It keeps nothing on disk."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self._program = program
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        fixed = ["--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        more = [] if "--port" in self._options else ["--port", "0"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *fixed, *more, "--dir", str(self.folder), *self._options],
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + _STARTING
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                self.kill()
                raise OSError(f"Redis did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, with all that it kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def command(self, *words: str) -> bytes:
        """Have the server do this; an error is raised as AssertionError."""
        message = f"*{len(words)}\r\n" + "".join(
            f"${len(word.encode())}\r\n{word}\r\n" for word in words
        )
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_STARTING)
            connection.connect(str(self.socket))
            connection.sendall(message.encode())
            answer = connection.recv(1000)
            assert not answer.startswith(b"-"), answer
            return answer

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(1) in {b"+", b"-"}
        except OSError:
            return False


@contextmanager
def run_redis(*options: str) -> Iterator[RedisServer]:
    """A Redis with these options for the length of the block."""
    program = require_program("redis-server", "redis-server")
    # A socket's path has to be short (unix(7)).
    with TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(program, Path(folder), *options)
        try:
            server.start()
        except OSError as error:
            pytest.fail(str(error))
        try:
            yield server
        finally:
            server.kill()
