"""A stream joined to a local socket, in the pump."""

from typing import Literal

from typing_extensions import disjoint_base

from tunnelmux.pump.epoll import Member
from tunnelmux.pump.pump_socket import PumpSocket
from tunnelmux.pump.tunnel import Tunnel
from tunnelmux.yamux.streams import EngineStream

@disjoint_base
class Relay(Member):
    """Carries bytes both ways between a stream and a socket, until both directions have ended.

    Under TLS, the end of the stream's direction ends both: not every peer supports a half-close there.
    The relay does not close the socket: its maker does that at the end. While the relay runs, nothing
    else may use the socket or the stream.
    """

    def __init__(self, tunnel: Tunnel, stream: EngineStream, socket: object, owner: object) -> None:
        """*socket* is connected, or being connected, and has a `fileno()`; or a PumpSocket."""
    @property
    def tunnel(self) -> Tunnel:
        """The tunnel that carries the stream's session."""
    @property
    def stream(self) -> EngineStream:
        """The stream."""
    @property
    def local(self) -> PumpSocket:
        """The socket as the pump uses it."""
    @property
    def socket(self) -> object:
        """The socket, as it was given."""
    @property
    def outcome(
        self,
    ) -> Literal["finished", "local broke", "stream broke", "aborted", "handed back"] | None:
        """How it ended; None while it runs. "handed back": the stream is intact, for others to use."""
    @property
    def error(self) -> Exception | None:
        """The error that ended it, or why it was handed back, if there was one."""
    @property
    def bytes_in(self) -> int:
        """Bytes carried from the socket to the stream."""
    @property
    def bytes_out(self) -> int:
        """Bytes carried from the stream to the socket."""
    @property
    def is_agreed(self) -> bool:
        """Whether bytes may flow both ways: the answer was received, or sent."""
    @property
    def agreed_at(self) -> float:
        """When the awaited answer came, or was sent, on Trio's clock; 0 before that, and without an
        answer."""
    def start(self) -> None:
        """Carry bytes both ways from now on."""
    def start_awaiting(self, answer: bytes, reads: bool = True) -> None:
        """Carry bytes to the stream at once, and back once the stream begins with *answer*. If it is
        not to read at once, nothing is taken from the socket before that.

        The answer is not passed on. If the stream begins with anything else, or ends, it is handed
        back. Raises ValueError for an answer of more than 64 bytes.
        """
    def start_connecting(self, answer: bytes, head_size: int) -> None:
        """Begin when the socket, which is being connected, is connected.

        Then the stream's first *head_size* bytes, received already, are dropped and *answer* is
        sent. When the connection fails, the stream is handed back untouched.
        """
    def hand_back(self) -> None:
        """End it, leaving the stream as it is."""
    def abort(self) -> None:
        """End it now: the stream is reset. Harmless when it is over."""
