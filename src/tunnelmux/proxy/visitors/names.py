"""What a request says of where it goes, and where that led: judged once, then remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tunnelmux.proxy.access.proofs import Sender

__all__ = ["Destination", "KnownNames", "SenderLines"]

_KNOWN_NAMES = 4096
# Names remembered with their destination, each under a kilobyte; one more, and all are forgotten.

_LONGEST_NAME = 400
# Bytes of one: a host (RFC 1035 2.3.4) with a root dot and a port, and two labels.


_LONGEST_SAID = 1024
# Bytes of a Host and what a request says of who sent it, up to which both are remembered.


@dataclass(frozen=True, slots=True)
class Destination:
    """A device, and the service on it; None is its default one."""

    device: str
    service: str | None = None

    def __str__(self) -> str:
        what = f"service {self.service}" if self.service else "default service"
        return f"{what} of device {self.device}"


class SenderLines(NamedTuple):
    """What is made of where a request comes from."""

    lines: bytes
    """What it gets, which says so."""
    cookie_hosts: tuple[bytes, ...]
    """The hosts to which the cookies of the answer are held."""
    client: str | None
    """The address that trusted proxies name."""
    sender: Sender
    """The same for the rules of visitors."""


class KnownNames:
    """Where requests go that say the same of it as one that was judged before: the same Host,
    `Tunnelmux-Device` and `Tunnelmux-Service`, byte for byte, empty where there is none."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], Destination] = {}
        self._made: dict[tuple[str, str, bytes, bytes], SenderLines] = {}

    def learn(self, name: tuple[bytes, bytes, bytes], destination: Destination) -> None:
        """A request that said this was accepted, and went there."""
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
        """What `make` makes of a peer's address and scheme, a Host, and what a request says of
        who sent it: remembered for the next one of the same client, on any connection."""
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _KNOWN_NAMES:
                self._made.clear()
            made = make()
            if len(key[2]) + len(key[3]) <= _LONGEST_SAID:
                self._made[key] = made
        return made

    def find(self, name: tuple[bytes, bytes, bytes]) -> Destination | None:
        """Its destination, when that was learnt."""
        return self._known.get(name)
