"""A network of its own in a namespace: a machine on which things can be wrong on purpose."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.programs import require_program

__all__ = ["Namespace", "namespace"]

_SERVERS = Path(__file__).with_name("namespace_servers.py")

_STARTING = 60.0
# Seconds for a program to say that it is ready, on a machine that is busy.


class Namespace:
    """Where programs run. The names that it knows, and its DNS server, can be changed."""

    def __init__(self, folder: Path, enter: list[str]) -> None:
        self.folder = folder
        self._enter = enter
        self._running: list[subprocess.Popen[str]] = []

    def resolve_by(self, text: str) -> None:
        """Replace /etc/resolv.conf."""
        (self.folder / "resolv.conf").write_text(text)

    def start(
        self, words: list[str], ready: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program, and wait until it has written this, if anything; it ends with the
        namespace."""
        process = subprocess.Popen(
            [*self._enter, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        self._running.append(process)
        is_ready = threading.Event()
        if not ready:
            is_ready.set()
        said: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if ready in line:
                    is_ready.set()
            is_ready.set()

        threading.Thread(target=read, daemon=True).start()
        assert is_ready.wait(_STARTING), said
        assert process.poll() is None, said
        return process

    def serve(self, *words: str) -> None:
        """Start one of the small servers of `namespace_servers`."""
        self.start([sys.executable, str(_SERVERS), *words], "ready")

    def open(self, words: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a program, for the caller to wait for."""
        return subprocess.Popen(
            [*self._enter, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
        )

    def wait_for_port(self, port: int) -> None:
        """Return once something listens there."""
        code = "import socket, sys, time\n"
        code += "where = '127.0.0.1', int(sys.argv[1])\n"
        code += "while socket.socket().connect_ex(where): time.sleep(0.05)\n"
        subprocess.run(
            [*self._enter, sys.executable, "-c", code, str(port)], check=True, timeout=_STARTING
        )

    def close(self) -> None:
        """End all that runs."""
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def namespace(folder: Path, hosts: str) -> Iterator[Namespace]:
    """A network with nothing but loopback, in which /etc/hosts is this text and /etc/resolv.conf
    can be written; skips the test where the machine lets nobody make one."""
    unshare = require_program("unshare", "util-linux")
    nsenter = require_program("nsenter", "util-linux")
    (folder / "hosts").write_text(hosts)
    (folder / "resolv.conf").write_text("")
    holder = subprocess.Popen(
        [unshare, "-rnm", sys.executable, str(_SERVERS), "hold", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        said = holder.stdout.readline()
        if said != "ready\n":
            pytest.skip(f"no namespace can be made here: {said}{holder.stdout.read()}")
        enter = [nsenter, "-t", str(holder.pid), "-U", "-n", "-m", "--preserve-credentials"]
        here = Namespace(folder, enter)
        try:
            yield here
        finally:
            here.close()
    finally:
        holder.stdin.close()
        holder.wait(20)
        holder.stdout.close()
