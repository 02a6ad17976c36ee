"""Commands that go on until Ctrl-C, and what they write meanwhile."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT

from support.installation import COMMAND, Installation

__all__ = ["collect", "following", "lines_of"]


@contextmanager
def following(installation: Installation, way: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *words],
        env=installation.way(way),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(SIGINT)
            assert process.wait(30) == 130


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


def collect(process: subprocess.Popen[str]) -> queue.SimpleQueue[str]:
    """The lines that it writes, as they come."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in lines_of(process):
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    return lines
