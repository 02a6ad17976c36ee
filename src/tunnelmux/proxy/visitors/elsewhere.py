"""Visitors whose device another process of this proxy has: how to tell, and the way there.

A visitor may be served by any process: one that is not where the device is takes a hop. So what is
read here is a hint, which need not be judged: it decides what a request costs, not where it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import trio

    from tunnelmux.pump.sockets import BareSocket

__all__ = ["HandsOver", "WayThere"]


class WayThere(Protocol):
    """The way to another process."""

    def pass_on(self, slot: str, local: BareSocket, remote: str) -> bool:
        """Pass a connection that came to the listener of that slot, and of which nothing was read.
        It must not be in the pump, and is the way's to close if the answer is true. False where no
        more can be passed now."""

    def pass_soon(self, slot: str, local: BareSocket, remote: str) -> bool:
        """The same with the next `pass_waiting`, by which several visitors go at the cost of one.
        If the answer is true, one who cannot be passed then is served here."""

    def pass_waiting(self) -> None:
        """Pass those who wait for it."""


class HandsOver(Protocol):
    """Knows the ways to the other processes."""

    def way_to(self, device: str) -> WayThere | Literal["here", "unknown"]:
        """The way to the process that has the device's session; `here` where this one is as good as
        any, `unknown` where `find_way` would tell."""

    async def find_way(self, device: str) -> None:
        """Ask who has the device, and make the way there. Returns within a few seconds."""

    def pass_later(
        self, nursery: trio.Nursery, device: str, slot: str, local: BareSocket, remote: str
    ) -> bool:
        """Find the way, then pass the connection, or serve it here. False, and nothing done, where
        too many wait for that already."""
