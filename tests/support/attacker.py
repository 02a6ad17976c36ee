"""A device's WebSocket in hostile hands: any yamux bytes out, every answer kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio_websocket

from support.tunnels import Tunnel
from support.wire import GO_AWAY, PING, Frame, FrameReader, pack, ping

__all__ = ["Attacker", "attack"]

MESSAGE = 60_000
"""Bytes per message where a case does not cut them itself: what one read of the proxy's takes."""


class Attacker:
    """What the peer does, and what it was told."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection) -> None:
        self.told: list[Frame] = []
        self.is_over = trio.Event()
        self._websocket = websocket
        self._reader = FrameReader()
        self._news = trio.Event()

    async def say(self, *frames: Frame | bytes, cut: int = MESSAGE) -> bool:
        """Send them in messages of *cut* bytes; False when the proxy has ended it meanwhile."""
        raw = pack(*frames)
        try:
            for at in range(0, len(raw), cut):
                await self._websocket.send_message(raw[at : at + cut])
        except trio_websocket.ConnectionClosed:
            return False
        return True

    async def heard(self, *frames: Frame) -> None:
        """Wait until the proxy has said all of them; AssertionError when it ends before."""
        wanted, seen = set(frames), 0
        while True:
            wanted.difference_update(self.told[seen:])
            seen = len(self.told)
            if not wanted:
                return
            assert not self.is_over.is_set(), f"ended without {wanted}"
            await self._news.wait()

    async def still_lives(self, value: int = 0x11FE) -> None:
        """See that the session goes on: a ping comes back."""
        await self.say(ping(value))
        await self.heard(Frame(PING, 2, 0, value))

    @property
    def go_away_codes(self) -> list[int]:
        return [frame.length for frame in self.told if frame.type == GO_AWAY]

    async def listen(self) -> None:
        """Keep all answers until the proxy ends the connection."""
        try:
            while True:
                message = await self._websocket.get_message()
                assert isinstance(message, bytes), "the proxy sends binary messages only"
                self.told += self._reader.feed(message)
                self._tell()
        except trio_websocket.ConnectionClosed:
            self.is_over.set()
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def attack(tunnel: Tunnel, device: str) -> AsyncIterator[Attacker]:
    """A session of that device's whose peer is the block."""
    since = len(tunnel.proxy.events)
    async with tunnel.dial(device) as websocket, trio.open_nursery() as nursery:
        attacker = Attacker(websocket)
        nursery.start_soon(attacker.listen)
        await tunnel.proxy.logged("session started", since=since, device=device)
        yield attacker
        nursery.cancel_scope.cancel()
