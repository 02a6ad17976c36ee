"""A running peer program, spoken to by the command language of tests/peers/README.md."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from support.peers import Implementation
from tunnelmux.endpoints import connect, serve
from tunnelmux.limits import Limits
from tunnelmux.mux import Session

__all__ = [
    "Link",
    "Peer",
    "PeerError",
    "PeerGone",
    "linked",
    "pattern",
    "pattern_digest",
    "start_peer",
]

PERIOD = 251
REPLY_TIMEOUT = 30.0  # s; a case that needs longer says so
PATH = "/tunnel/connect"


class PeerError(Exception):
    """The peer answered a command with an error."""


class PeerGone(Exception):
    """The peer's process ended before it answered."""


class Peer:
    """One peer process. Commands may run at the same time; each waits for its own reply."""

    def __init__(self, process: trio.Process, log: tempfile._TemporaryFileWrapper[bytes]) -> None:
        self.process = process
        self._log = log
        self._numbers = itertools.count(1)
        self._replies: dict[str, trio.MemorySendChannel[tuple[str, str]]] = {}
        self._sending = trio.Lock()
        self._gone = False

    async def call(self, command: str, *, timeout: float = REPLY_TIMEOUT) -> dict[str, str]:
        """The `key=value` pairs of the reply. Raises PeerError, PeerGone, trio.TooSlowError."""
        number = str(next(self._numbers))
        put, get = trio.open_memory_channel[tuple[str, str]](1)
        self._replies[number] = put
        assert self.process.stdin is not None
        try:
            with trio.fail_after(timeout):
                async with self._sending:
                    if self._gone:
                        raise PeerGone(f"before {command}: {self.log()}")
                    await self.process.stdin.send_all(f"{number} {command}\n".encode())
                status, text = await get.receive()
        except (trio.BrokenResourceError, trio.EndOfChannel):
            raise PeerGone(f"during {command}: {self.log()}") from None
        except trio.TooSlowError:
            raise trio.TooSlowError(f"{command}: no reply within {timeout} s") from None
        finally:
            self._replies.pop(number, None)
        if status != "ok":
            raise PeerError(text)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    async def die(self) -> None:
        """Kill the process as the command does: at once, nothing flushed, no goodbye."""
        try:
            await self.call("die")
        except PeerGone:
            return
        raise AssertionError("the peer lives")

    def log(self) -> str:
        """The end of what the peer wrote to its standard error."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace") or "nothing in its log"

    async def _read_replies(self) -> None:
        assert self.process.stdout is not None
        unread = b""
        async for data in self.process.stdout:
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                number, _, rest = line.decode().partition(" ")
                status, _, text = rest.partition(" ")
                if number in self._replies:  # else nobody waits for it any more
                    self._replies[number].send_nowait((status, text))
        self._gone = True
        for put in self._replies.values():
            put.close()


@asynccontextmanager
async def start_peer(command: list[str]) -> AsyncIterator[Peer]:
    """A running peer, killed at the end of the block."""
    # In a file and not a pipe, so that a talkative peer never waits for us.
    with tempfile.NamedTemporaryFile() as log:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        peer = Peer(process, log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer._read_replies)
            try:
                yield peer
            finally:
                process.kill()
                with trio.CancelScope(shield=True):  # bounded: a killed process ends
                    await process.wait()
                nursery.cancel_scope.cancel()


class Link:
    """Our session and the peer that has the other end of it."""

    def __init__(self, implementation: Implementation, session: Session, peer: Peer) -> None:
        self.implementation = implementation
        self.session = session
        self.peer = peer

    @property
    def name(self) -> str:
        """The implementation's name."""
        return self.implementation.name

    async def call(self, command: str, *, timeout: float = REPLY_TIMEOUT) -> dict[str, str]:
        return await self.peer.call(command, timeout=timeout)


@asynccontextmanager
async def linked(
    implementation: Implementation,
    role: str,
    transport: str,
    *,
    options: str = "",
    limits: Limits | None = None,
) -> AsyncIterator[Link]:
    """A session with a fresh peer process. *role* is ours; the client dials, the server listens."""
    async with start_peer(implementation.command()) as peer:
        if role == "client":
            answer = await peer.call(f"listen {transport} server {options}")
            path = PATH if transport == "ws" else ""
            url = f"{transport}://127.0.0.1:{answer['port']}{path}"
            async with connect(url, limits=limits) as session:
                await peer.call("session")
                yield Link(implementation, session, peer)
        else:
            async with _served(peer, transport, options, limits) as session:
                yield Link(implementation, session, peer)


@asynccontextmanager
async def _served(
    peer: Peer, transport: str, options: str, limits: Limits | None
) -> AsyncIterator[Session]:
    put, get = trio.open_memory_channel[Session](0)
    done = trio.Event()

    async def handle(session: Session) -> None:
        await put.send(session)
        await done.wait()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        path = PATH if transport == "ws" else ""
        url = f"{transport}://127.0.0.1:0{path}"
        addresses = await nursery.start(partial(serve, handle, url, limits=limits))
        where = f"127.0.0.1:{addresses[0][1]}{path}"
        nursery.start_soon(partial(peer.call, f"dial {transport} client {where} {options}"))
        with trio.fail_after(REPLY_TIMEOUT):
            session = await get.receive()
        try:
            await peer.call("session")
            yield session
        except Exception as exc:  # kept from the nursery, which would wrap it in a group
            failure = exc
        finally:
            done.set()
            with trio.move_on_after(limits.close_grace if limits else 5.0):
                await session.aclose()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def pattern(count: int, seed: int = 0) -> bytes:
    """The payload every peer makes and knows: byte i is (i + seed) mod 251."""
    block = bytes((i + seed) % PERIOD for i in range(PERIOD))
    return (block * (count // PERIOD + 1))[:count]


def pattern_digest(count: int, seed: int = 0) -> str:
    """The SHA-256, in hex, of `pattern(count, seed)`."""
    return hashlib.sha256(pattern(count, seed)).hexdigest()
