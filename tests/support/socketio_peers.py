"""Socket.IO programs that are not ours, as processes: a main server, and the sample agents."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from support.peers import SOURCES, build_program

__all__ = ["OLD", "Program", "main_server", "sample_agent", "sample_agent_command"]

OLD = ("node2", "python4", "go3")
"""Sample agents whose libraries speak Engine.IO 3: npm's socket.io-client 2, python-socketio 4, and
the Go library that the specification's listing names."""

API_KEY = "the-api-key-of-proxy-1"
PROXY_ID = "proxy-1"
PATIENCE = (
    60.0  # s; a process starts in a quarter of one on a quiet machine, in twenty on a busy one
)


class Program:
    """A process that tells what happens to it in lines of JSON."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._put, self._events = trio.open_memory_channel[dict[str, Any]](math.inf)

    async def expect(self, event: str, *, within: float = PATIENCE) -> dict[str, Any]:
        """The next event of that name; others before it are passed over."""
        with trio.fail_after(within):
            while (told := await self._events.receive())["event"] != event:
                pass
            return told

    def told(self) -> list[dict[str, Any]]:
        """All events that came and were not looked at yet."""
        events = []
        while True:
            try:
                events.append(self._events.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                return events

    async def do(self, action: str, **more: object) -> None:
        """Give the main server a command."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps({"do": action, **more}).encode() + b"\n")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        unread = b""
        with self._put:
            async for data in self.process.stdout:
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    self._put.send_nowait(json.loads(line))


@asynccontextmanager
async def running(
    command: list[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    program = Program(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program._read)
        try:
            yield program
        finally:
            process.kill()
            with trio.CancelScope(shield=True):  # bounded: a killed process ends
                await process.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def main_server(**options: object) -> AsyncIterator[tuple[Program, int]]:
    """A main server on npm's socket.io, and its port. It is killed at the end of the block."""
    settings = {"proxyId": PROXY_ID, "apiKey": API_KEY, **options}
    command = build_program("socketio", "main_server")
    async with running([*command, json.dumps(settings)]) as program:
        port = (await program.expect("listening"))["port"]
        yield program, port


def sample_agent_command(language: str) -> list[str]:
    """What starts the sample agent in "node", "python", "go" or one of OLD; builds it first where
    need be.
    """
    if language in ("node", "node2"):
        return build_program("socketio", "sample_agent")
    if language == "python4":
        return build_program("socketio_python4", "sample_agent")
    if language == "go3":
        return build_program("socketio_go", "engineio3")
    if language == "go":
        return build_program("socketio_go", "sample_agent")
    return [sys.executable, str(SOURCES / "socketio" / "sample_agent.py")]


@asynccontextmanager
async def sample_agent(
    language: str,
    port: int,
    *,
    proxy_id: str = PROXY_ID,
    api_key: str = API_KEY,
    options: Mapping[str, object] | None = None,
    namespace: str = "/proxy",
) -> AsyncIterator[Program]:
    """A sample agent of the specification, in that language. It is killed at the block's end."""
    environment = {
        "SERVER_URL": f"http://127.0.0.1:{port}",
        "PROXY_ID": proxy_id,
        "API_KEY": api_key,
        "NAMESPACE": namespace,
        "CLIENT_OPTIONS": json.dumps(options or {}),
    }
    if language == "node2":
        environment["CLIENT_PACKAGE"] = "socket.io-client-2"
    async with running(sample_agent_command(language), environment) as program:
        yield program
