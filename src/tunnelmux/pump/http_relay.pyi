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
        """Reads what the scanner declines."""
    @property
    def source(self) -> str:
        """The address of the visitor's connection, as limits count it."""
    @property
    def heeds(self) -> bool:
        """Whether the connection comes from a trusted proxy, whose forwarding fields count."""
    @property
    def connection_is_shared(self) -> bool:
        """Whether requests with such fields may be those of several visitors: a login that belongs
        to a connection (NTLM) ends with them."""
    @property
    def traces(self) -> bool:
        """Whether some requests get spans, so that `traces_this` is called for each."""
    def traces_this(self, head: bytes) -> bool:
        """Whether the request with this head gets one: it is handed back then."""
    @property
    def by(self) -> object:
        """What admitted the last request. When the object changes, `fields` is called again."""
    @property
    def takes_login(self) -> bool:
        """Whether the `Authorization` of that request was meant for the proxy, and is left out."""
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
        """The route for a request with these fields and credentials; None when Python has to look at
        it. *crosses* says that another site's page may have sent it."""
    def fields(self, host: bytes, said: bytes) -> bytes:
        """The lines to add to a request with this host and the forwarding fields *said*."""
    def cookie_hosts(self, host: bytes, said: bytes) -> tuple[bytes, ...]:
        """The only hosts for which the answer may set cookies (`pump.cookies`)."""
    def about(self, destination: Any) -> bytes | None:
        """The first fields of the log line (`pump.lines`) about the request for which `fields` was
        called last; None when it gets no line."""

@final
class HttpRelay(LegUser):
    """Carries the requests that the scanner accepts, one after the other, and their answers.

    "finished": the last answer said that the connection ends, and was written. The relay then closes
    the connection, and its owner is called once the visitor has closed it too. "handed back": the
    owner goes on with the next request, or with the rest of what came. With `problem`, it has to
    answer the request in progress with `status`.
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
        max_interim_heads: int,
        drain_bytes: int,
        early: bytes = b"",
    ) -> None:
        """*early* was read from the socket and not used. When the visitor goes on sending after the
        end, at most *drain_bytes* are read and thrown away."""
    def start(self, instead_of: Member | None = None) -> None:
        """Begin to carry requests. The relay takes the place of *instead_of*, a member of the pump
        with the same socket, if one is given."""
    @property
    def outcome(
        self,
    ) -> Literal["finished", "local broke", "stream broke", "aborted", "handed back"] | None:
        """How it ended; None while it runs."""
    @property
    def error(self) -> Exception | None:
        """The error that ended it, if one did."""
    @property
    def destination(self) -> object:
        """The destination of the last request's route; None before the first."""
    @property
    def stream_id(self) -> int:
        """The id of the stream that carried the last request; 0 before the first."""
    @property
    def phase(
        self,
    ) -> Literal[
        "agreeing", "idle", "reading", "sending", "waiting", "answering", "leaving", "left"
    ]:
        """What it waits for, in this order: the device's agreement to a new leg, a request, the rest
        of a head, the rest of a body, the first byte of an answer, the rest of an answer, the
        visitor's end, nothing."""
    @property
    def phase_since(self) -> float:
        """When that began, on Trio's clock. For "sending" it is when the last byte came, for "waiting"
        when the request or an interim answer (1xx) was complete."""
    @property
    def problem(self) -> str | None:
        """What is wrong with the request in progress, for its answer; None when nothing is."""
    @property
    def status(self) -> int:
        """The status of that answer."""
    @property
    def requests(self) -> int:
        """How many requests were answered in full."""
    @property
    def unfinished(self) -> tuple[str, str, int, int, int, float] | None:
        """The request in progress, for its log line: method, path without query, status of the answer
        or 0, bytes of its body, bytes of the answer's body, seconds. None when there is none."""
    @property
    def is_spent(self) -> bool:
        """Whether the visitor has sent its end, and all that came before it was used."""
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
        """Hand the connection back once no request is in progress."""
    def give_up(self, problem: str | None, status: int) -> None:
        """Hand the connection back now. With a problem, an answer that has begun is cut; otherwise
        the owner has to answer."""
    def leave(self) -> None:
        """Close the connection of a relay that is over, as after a last answer."""
    def abort(self) -> None:
        """End now: the request in progress is reset."""
    def take_pending(self) -> tuple[bytes, bytes]:
        """The bytes of the visitor that were not passed on, once it was handed back; and the head of
        the request that was, if it could be sent again, else nothing."""
    def take_bound(self) -> tuple[EngineStream, Callable[[], object]] | None:
        """The idle stream to which a login of the visitor belongs, and the opener of its route, once
        the relay was handed back; None when there is none. The caller has to end it."""
