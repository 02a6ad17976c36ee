"""What a request says of where it goes, and where that led: judged once, and then remembered."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Destination", "KnownNames"]

_KNOWN_NAMES = 4096
# Names remembered with their destination; one more, and all are forgotten. Each costs its visitor
# one request that h11 reads, and us under a kilobyte.

_LONGEST_NAME = 400
# Bytes of one: a host (RFC 1035 2.3.4) with a root dot and a port, and two labels.


@dataclass(frozen=True, slots=True)
class Destination:
    """A device, and the service on it; None is its default one."""

    device: str
    service: str | None = None

    def __str__(self) -> str:
        what = f"service {self.service}" if self.service else "default service"
        return f"{what} of device {self.device}"


class KnownNames:
    """Where requests go that say the same of it as one which h11 has accepted before: the same
    Host, `Tunnelmux-Device` and `Tunnelmux-Service`, byte for byte, empty where there is none."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], Destination] = {}

    def learn(self, name: tuple[bytes, bytes, bytes], destination: Destination) -> None:
        """A request that said this was accepted, and went there."""
        if sum(map(len, name)) > _LONGEST_NAME:
            return
        if len(self._known) >= _KNOWN_NAMES:
            self._known.clear()
        self._known[name] = destination

    def find(self, name: tuple[bytes, bytes, bytes]) -> Destination | None:
        """Its destination, when that was learnt."""
        return self._known.get(name)
