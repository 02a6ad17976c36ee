"""A cache of requests' destinations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tunnelmux.proxy.access.proofs import Sender

__all__ = ["Destination", "KnownNames", "SenderLines"]

_KNOWN_NAMES = 4096
# Cached destinations, each under a kilobyte; with one more the cache is emptied.

_LONGEST_NAME = 400
# Bytes of one: a host (RFC 1035 2.3.4) with a root dot and a port, and two labels.


_LONGEST_SAID = 1024
# Bytes of a Host and the fields about the sender; longer ones are not cached.


@dataclass(frozen=True, slots=True)
class Destination:
    """A device and a service on it; None is its default service."""

    device: str
    service: str | None = None

    def __str__(self) -> str:
        what = f"service {self.service}" if self.service else "default service"
        return f"{what} of device {self.device}"


class SenderLines(NamedTuple):
    """The result of evaluating a request's sender."""

    lines: bytes
    """The field lines about the sender to add to the request."""
    cookie_hosts: tuple[bytes, ...]
    """The hosts that cookies of the answer are limited to."""
    client: str | None
    """The visitor's address, according to trusted proxies."""
    sender: Sender
    """The sender, for access rules."""


class KnownNames:
    """The known destinations of requests, by the exact bytes of Host, `Tunnelmux-Device` and
    `Tunnelmux-Service`; absent fields are empty.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], Destination] = {}
        self._made: dict[tuple[str, str, bytes, bytes], SenderLines] = {}

    def learn(self, name: tuple[bytes, bytes, bytes], destination: Destination) -> None:
        """Cache the destination of an accepted request."""
        if sum(map(len, name)) > _LONGEST_NAME:
            return
        if len(self._known) >= _KNOWN_NAMES:
            self._known.clear()
        self._known[name] = destination

    def made_for(
        self,
        key: tuple[str, str, bytes, bytes],
        make: Callable[[], SenderLines],
    ) -> SenderLines:
        """The result of `make` for a peer's address and scheme, a Host, and a request's fields
        about its sender; cached for the client's next request on any connection.
        """
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _KNOWN_NAMES:
                self._made.clear()
            made = make()
            if len(key[2]) + len(key[3]) <= _LONGEST_SAID:
                self._made[key] = made
        return made

    def find(self, name: tuple[bytes, bytes, bytes]) -> Destination | None:
        """The cached destination, or None."""
        return self._known.get(name)
