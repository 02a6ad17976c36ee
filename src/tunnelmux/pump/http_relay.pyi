"""A visitor's HTTP connection in the pump: its requests to targets, and their answers back."""

from collections.abc import Callable
from typing import Any, Literal, Protocol, final, type_check_only

from tunnelmux.pump.epoll import Member, Pump
from tunnelmux.pump.followers import Judge
from tunnelmux.pump.legs import LegUser, Route
from tunnelmux.yamux.streams import EngineStream

@type_check_only
class _Carrier(Protocol):
    """Answers a relay's questions about the requests of one connection."""

    @property
    def judge(self) -> Judge:
        """Decides about what the scanner declines."""
    @property
    def heeds(self) -> bool:
        """Whether what a request says of who sent it is listened to."""
    @property
    def traces(self) -> bool:
        """Whether some requests are to have spans, so that `traces_this` is asked about each."""
    def traces_this(self, head: bytes) -> bool:
        """Whether the request with this head is one of them: it is handed back then."""
    @property
    def by(self) -> object:
        """What let the last request in; another object is a reason to ask for `fields` again."""
    @property
    def takes_login(self) -> bool:
        """Whether the `Authorization` of that request stops here."""
    def route(
        self,
        host: bytes,
        device: bytes,
        service: bytes,
        said: bytes,
        cookies: tuple[bytes, bytes],
        login: bytes,
        token: bytes,
        crosses: bool,
    ) -> Route | None:
        """Where a request goes that says and shows this; None when Python has to look at it."""
    def fields(self, host: bytes, said: bytes) -> bytes:
        """The lines that a request gets which says this, with the lines *said* of who sent it."""
    def cookie_hosts(self, host: bytes, said: bytes) -> tuple[bytes, ...]:
        """The hosts to which the cookies of its answer are held (`pump.cookies`)."""
    def about(self, destination: Any) -> bytes | None:
        """What the log's line says first (`pump.lines`) about the request for which `fields` were made
        last; None when there is to be none."""

@final
class HttpRelay(LegUser):
    """Carries requests that leave no doubt, one after the other, and their answers.

    "finished": the last answer said that the connection ends, and was written; the relay leaves by
    itself then, and its owner is called once the visitor has ended too. "handed back": the
    next request, or the rest of what came, is for the owner; with `problem`, the request in progress
    is to be answered with `status`.
    """

    def __init__(
        self,
        pump: Pump,
        socket: object,
        owner: object,
        *,
        carrier: _Carrier,
        max_head_bytes: int,
        max_head_fields: int,
        drain_bytes: int,
        early: bytes = b"",
    ) -> None:
        """*early* is what was read from the socket and not used. Of a visitor who goes on sending
        at the end, at most *drain_bytes* are thrown away."""
    def start(self, instead_of: Member | None = None) -> None:
        """Carry from now on. The relay takes the place of *instead_of* in the pump, which has the
        same socket."""
    @property
    def outcome(
        self,
    ) -> Literal["finished", "local broke", "stream broke", "aborted", "handed back"] | None:
        """How it ended; None while it runs."""
    @property
    def error(self) -> Exception | None:
        """What broke, if anything did."""
    @property
    def destination(self) -> object:
        """Where the last request went, as its route calls it; None before the first."""
    @property
    def stream_id(self) -> int:
        """The stream it went on; 0 before the first."""
    @property
    def phase(
        self,
    ) -> Literal[
        "agreeing", "idle", "reading", "sending", "waiting", "answering", "leaving", "left"
    ]:
        """What it waits for: the device's consent, a request, the rest of a head, the rest of a
        body, the first byte of an answer, or the rest of one; the visitor's end; nothing."""
    @property
    def phase_since(self) -> float:
        """When that began, on Trio's clock; of "sending", when a byte came last, and of "waiting", when
        the request or an interim answer (1xx) was complete."""
    @property
    def problem(self) -> str | None:
        """What is wrong with the request in progress, for its answer; None when nothing is."""
    @property
    def status(self) -> int:
        """The status of that answer."""
    @property
    def requests(self) -> int:
        """Requests that were answered whole."""
    @property
    def unfinished(self) -> tuple[str, str, int, int, int, float] | None:
        """The request in progress, for its line: method, path without query, status of the answer
        or 0, bytes of its body and of the answer's, seconds. None without one."""
    @property
    def is_spent(self) -> bool:
        """Whether the visitor has ended its sending, and all that it sent was used."""
    @property
    def bytes_in(self) -> int:
        """Bytes of the requests' bodies, with their framing."""
    @property
    def bytes_out(self) -> int:
        """Bytes written to the visitor."""
    @property
    def content_out(self) -> int:
        """Bytes of the answers' bodies, with their framing."""
    def finish_soon(self) -> None:
        """Hand back once no request is in progress."""
    def give_up(self, problem: str | None, status: int) -> None:
        """Hand back now; with a problem, cut an answer that began, or leave it to be given."""
    def leave(self) -> None:
        """Of a relay that is over: end the connection as after a last answer."""
    def abort(self) -> None:
        """End now: the request in progress is reset."""
    def take_pending(self) -> bytes:
        """What came from the visitor and was not passed on, once it was handed back."""
    def take_bound(self) -> tuple[EngineStream, Callable[[], object]] | None:
        """The stream that a login of the visitor belongs to, idle, and what opened it, once the relay
        was handed back; None when there is none. It is the caller's to end."""
