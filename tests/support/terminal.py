"""A program on a pseudo-terminal, typed into and read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
from types import TracebackType
from typing import Self

import trio

__all__ = ["Terminal", "open_terminal"]


class Terminal:
    """What is on the screen so far is `shown`. As a context manager it ends the program."""

    def __init__(self, process: trio.Process, master: int) -> None:
        self.shown = ""
        self._process = process
        self._master = master
        self._seen = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        os.close(self._master)

    async def type(self, text: str) -> None:
        """Type this."""
        await trio.lowlevel.wait_writable(self._master)
        os.write(self._master, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Give the window this size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def expect(self, text: str) -> None:
        """Read until this has come, after what was expected before."""
        with trio.fail_after(30):
            while (place := self.shown.find(text, self._seen)) < 0:
                if not await self._read():
                    raise AssertionError(f"{text!r} did not come: {self.shown!r}")
        self._seen = place + len(text)

    async def wait(self) -> int:
        """The exit status."""
        with trio.fail_after(30):
            while await self._read():
                pass
            return await self._process.wait()

    async def _read(self) -> bool:
        await trio.lowlevel.wait_readable(self._master)
        data = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            data = os.read(self._master, 65_536)
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


async def open_terminal(words: list[str]) -> Terminal:
    """A program with a terminal of 80 columns and 24 rows."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        process = await trio.lowlevel.open_process(
            # With it as the controlling terminal, where programs ask for passwords.
            ["setsid", "--ctty", *words],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.STDOUT,
        )
    finally:
        os.close(slave)
    os.set_blocking(master, False)
    return Terminal(process, master)
