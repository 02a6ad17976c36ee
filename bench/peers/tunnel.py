"""What every tunnel here has in common: how it is had, started and spoken to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from bench.origin import Origin
from bench.processes import HOST, Started

Visitors = Literal["bytes", "http", "https", "nginx"]
"""What visitors speak to the tunnel: anything, HTTP, HTTPS, or HTTPS to an nginx in front of it."""


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
    secure: bool = False
    """Visitors speak TLS, with a certificate that nobody can check."""

    @property
    def url(self) -> str:
        """Of the origin's root, for wrk. Under TLS with a name, which SNI needs."""
        return f"https://localhost:{self.http}" if self.secure else f"http://{HOST}:{self.http}"

    @property
    def processes(self) -> list[int]:
        return [pid for pid in (self.server, self.client) if pid is not None]


class Peer(ABC):
    """One tunnel in one setting."""

    ours = False
    tunnel = True
    """Else it is there for comparison, and no rival."""

    def __init__(
        self,
        name: str,
        what: str,
        *,
        visitors: Visitors = "bytes",
        encrypted: bool = False,
        multiplexes: bool = True,
        columns: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.what = what
        self.visitors = visitors
        self.columns = columns
        """The only columns it is there for; empty: all."""
        self.encrypted = encrypted
        """The tunnel, not its visitors."""
        self.multiplexes = multiplexes
        """All visitors share one connection between its two processes."""
        self.version = ""
        """Known once it is prepared."""

    @property
    def http(self) -> bool:
        """It reads visitors' HTTP; else it carries bytes."""
        return self.visitors != "bytes"

    @abstractmethod
    def prepare(self) -> None:
        """Find or build its programs; raises Unavailable."""

    @abstractmethod
    def start(self, started: Started, origin: Origin) -> Running:
        """Start both ends, and return when visitors can come."""


class Direct(Peer):
    """No tunnel: the origin itself, which everything in the same round is set against."""

    tunnel = False

    def prepare(self) -> None:
        self.version = "-"

    def start(self, started: Started, origin: Origin) -> Running:  # noqa: ARG002 - nothing to start
        return Running(origin.http, None, None, origin.echo)
