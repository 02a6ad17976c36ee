"""A visitor's kept-alive HTTP connection joined to a stream, in the pump."""

from typing import Literal, final

from tunnelmux.pump.relay import Relay
from tunnelmux.pump.tunnel import Tunnel
from tunnelmux.yamux.streams import EngineStream

@final
class HttpRelay(Relay):
    """Carries requests that leave no doubt, one after the other, and their answers.

    "finished": the last answer said that the connection ends, and was written. "handed back": the
    next request, or the rest of what came, is for the owner; with `problem`, the request in progress
    is to be answered with `status`. The stream is ended in either case.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        stream: EngineStream,
        socket: object,
        owner: object,
        *,
        host: bytes,
        fields: bytes,
        max_head_bytes: int,
        early: bytes,
    ) -> None:
        """Requests must have exactly this *host*; *fields* are the lines that each of them gets.

        *early* is what was read from the socket and not used. Begin with `start_awaiting`.
        """
    @property
    def phase(
        self,
    ) -> Literal["agreeing", "idle", "reading", "sending", "waiting", "answering"]:
        """What it waits for: the device's consent, a request, the rest of a head, the rest of a
        body, the first byte of an answer, or the rest of one."""
    @property
    def phase_since(self) -> float:
        """When that began, on Trio's clock."""
    @property
    def problem(self) -> str | None:
        """What is wrong with the request in progress, for its answer; None when nothing is."""
    @property
    def status(self) -> int:
        """The status of that answer."""
    @property
    def requests(self) -> int:
        """Requests that were answered whole."""
    about: bytes | None
    """What the log's lines about these requests say first (`pump.lines.LineBuffer`), one line for each
    that was answered whole; None when there are to be no lines."""
    parent_cookies: bool
    """Whether the answers' cookies may reach beyond the host; else they are held to it
    (`pump.cookies`)."""
    @property
    def unfinished(self) -> tuple[str, str, int, int, int, float] | None:
        """The request in progress, for its line: method, path without query, status of the answer
        or 0, bytes of its body and of the answer's, seconds. None without one, or `about`."""
    @property
    def is_spent(self) -> bool:
        """Whether the visitor has ended its sending, and all that it sent was used."""
    @property
    def content_out(self) -> int:
        """Bytes of the answers' bodies, with their chunks' framing."""
    def finish_soon(self) -> None:
        """Hand back once no request is in progress."""
    def give_up(self, problem: str, status: int) -> None:
        """End the request in progress: hand back with this problem, or cut an answer that began."""
    def take_pending(self) -> bytes:
        """What came from the visitor and was not passed on, once it was handed back."""
