"""Addresses of nodes that are known before the nodes listen, and one that leads to any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from support.origin import serving
from tunnelmux.config import Address
from tunnelmux.relay import abort, relay

__all__ = ["Doors", "open_doors"]


class Doors:
    """Where agents connect; `leads_to` says where each node listens now."""

    def __init__(self) -> None:
        self.leads_to: dict[str, Address] = {}
        self._at: dict[str, Address] = {}
        self.to_any: list[str] = []
        """The nodes that the balancer knows: it leads to the first of them that is there."""

    def url(self, name: str = "") -> str:
        """The URL of this node for agents, or that of the balancer."""
        return f"ws://{self._at[name]}/tunnel/connect"

    async def _lead(self, name: str, stream: trio.SocketStream) -> None:
        names = [name] if name else self.to_any
        for one in [name for name in names if name in self.leads_to]:
            to = self.leads_to[one]
            try:
                onward = await trio.open_tcp_stream(to.host, to.port)
            except OSError:
                continue
            await relay(stream, onward)
            return
        await abort(stream)


@asynccontextmanager
async def open_doors(*names: str) -> AsyncIterator[Doors]:
    """Doors of these nodes and a balancer's for the length of the block."""
    doors = Doors()
    async with AsyncExitStack() as stack:
        for name in ("", *names):
            doors._at[name] = await stack.enter_async_context(serving(partial(doors._lead, name)))
        yield doors
