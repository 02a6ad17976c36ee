"""What every tunnel here has in common: how it is had, started and spoken to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from bench.origin import Origin
from bench.processes import Started


class Unavailable(Exception):
    """A peer cannot be had on this machine; the message says why, and what would help."""


@dataclass(frozen=True)
class Running:
    """A tunnel that is up. Processes are given by their roots: children are counted with them."""

    http: int
    """The port where visitors find the origin's web server."""
    server: int | None
    """The process that visitors connect to; None where there is no tunnel."""
    client: int | None
    """The process that has connected to it."""
    echo: int | None = None
    """The port of the origin's echo, through the same session; None where there is none."""
    headers: tuple[str, ...] = ()
    """Header lines that lead a request to the origin."""

    @property
    def processes(self) -> list[int]:
        return [pid for pid in (self.server, self.client) if pid is not None]


class Peer(ABC):
    """One tunnel in one setting."""

    ours = False

    def __init__(
        self,
        name: str,
        what: str,
        *,
        http: bool = False,
        encrypted: bool = False,
        multiplexes: bool = True,
    ) -> None:
        self.name = name
        self.what = what
        self.http = http
        """It reads visitors' HTTP; else it carries bytes."""
        self.encrypted = encrypted
        self.multiplexes = multiplexes
        """All visitors share one connection between its two processes."""
        self.version = ""
        """Known once it is prepared."""

    @abstractmethod
    def prepare(self) -> None:
        """Find or build its programs; raises Unavailable."""

    @abstractmethod
    def start(self, started: Started, origin: Origin) -> Running:
        """Start both ends, and return when visitors can come."""


class Direct(Peer):
    """No tunnel: the origin itself, which everything in the same round is set against."""

    def prepare(self) -> None:
        self.version = "-"

    def start(self, started: Started, origin: Origin) -> Running:  # noqa: ARG002 - nothing to start
        return Running(origin.http, None, None, origin.echo)
