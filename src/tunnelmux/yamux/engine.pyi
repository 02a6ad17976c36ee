"""A whole yamux session without I/O, clock or random numbers.

The methods of `Engine` are of four kinds (quinn-proto's order):

- looking: properties, no side effects;
- input from the world: `receive_data`, `receive_eof`, `handle_deadline`;
- commands from the application: `open_stream`, `accept_stream`, `ping`, `go_away`, `close`, and
  everything on `EngineStream`;
- output, to be asked for after any of the others: `data_to_send`, `take_changed`, `next_deadline`.

Time goes in as `now` (seconds on any monotonic clock) and comes out as the next deadline.
Nothing here blocks and nothing grows without a bound from `Limits`.
"""

from typing_extensions import disjoint_base

from tunnelmux.errors import SessionError
from tunnelmux.limits import Limits
from tunnelmux.yamux.streams import EngineStream, StreamTable, WindowBudget

@disjoint_base
class Engine(StreamTable):
    def __init__(
        self,
        *,
        is_client: bool,
        limits: Limits = ...,
        now: float = ...,
        first_stream_id: int | None = ...,
        process_budget: WindowBudget | None = ...,
    ) -> None:
        """The client (odd stream ids) is the side that dialled; the server has even ids.
        *process_budget* is shared with the other sessions of the process; None is one of its own.
        *first_stream_id* starts the numbering elsewhere than at 1 or 2; it must keep the parity."""
    # -- looking ----------------------------------------------------------------------------
    @property
    def is_client(self) -> bool: ...
    @property
    def error(self) -> SessionError | None:
        """Why the session is over (a SessionClosed or RemoteProtocolError); None while it lives.
        `receive_eof` with nothing live and a finished drain give a plain SessionClosed."""
    @property
    def is_closed(self) -> bool:
        """True once `error` is set. A GoAway may still be waiting in `data_to_send`."""
    @property
    def is_draining(self) -> bool:
        """A GoAway(0) was sent or received."""
    @property
    def remote_go_away(self) -> bool: ...
    @property
    def stream_count(self) -> int:
        """Live streams, both directions, accepted or not."""
    @property
    def can_open(self) -> bool:
        """False while an open would have to wait for an answer to an earlier one
        (`Limits.max_unacked_opens`)."""
    @property
    def wants_send(self) -> bool:
        """Whether to call `data_to_send`: it may find that what was due no longer is, and give b""."""
    @property
    def rtt(self) -> float | None:
        """Seconds between the last answered ping and its answer; None before the first."""
    @property
    def pings_answered(self) -> int:
        """How many of our pings were answered; the n-th `ping` value is done when this reaches it."""
    # -- input from the world ---------------------------------------------------------------
    def receive_data(self, data: bytes | bytearray | memoryview, now: float) -> None:
        """Bytes from the transport, cut anywhere. Ignored once closed.

        Raises RemoteProtocolError when the peer broke the rules: the session is then closed with
        that error, and `data_to_send` gives the GoAway that says so.
        """
    def receive_eof(self, now: float) -> None:
        """The transport will give no more. Clean between frames with no live streams
        (SessionClosed), a loss otherwise (SessionLost)."""
    def handle_deadline(self, now: float) -> None:
        """Do what was due by *now*: pings, late acknowledgements, lingering streams, the end of a
        silent peer (SessionTimeout). Harmless when nothing is due."""
    # -- commands from the application ------------------------------------------------------
    def open_stream(self, now: float) -> EngineStream:
        """A new outbound stream; its SYN leaves with the next flush, with or without data.

        Raises SessionClosed or what closed it, SessionDraining, TooManyStreams,
        StreamIdsExhausted, and LocalProtocolError when `can_open` is False.
        """
    def accept_stream(self) -> EngineStream | None:
        """The oldest stream the peer opened, now acknowledged; None when there is none."""
    def offered_stream(self) -> EngineStream | None:
        """What `accept_stream` would give, left where it is."""
    def ping(self, now: float) -> int:
        """Ask for an echo; callers that ask while one is under way share it. Done when
        `pings_answered` has reached the value returned. Raises SessionClosed."""
    def go_away(self) -> None:
        """Send GoAway(0) once: the peer opens no more, live streams go on, and those not accepted
        yet are acknowledged. When the last one has ended the session closes by itself."""
    def close(self, error: SessionError | None = None, go_away_code: int = 0) -> None:
        """End the session now: GoAway, every stream fails with *error* (default SessionClosed)."""
    # -- output -----------------------------------------------------------------------------
    def data_to_send(self, now: float, max_bytes: int = 65_536) -> bytes:
        """Whole frames for the transport, at most *max_bytes* (at least 64 KiB is sensible);
        b"" when there is nothing. Pongs and pings first, then resets, acknowledgements and window
        updates, then data: streams that were idle first, then round robin. A GoAway that ends
        the session is all that leaves; one that drains it follows the acknowledgements, so that
        no stream that was let in looks refused."""
    def take_changed(self) -> list[EngineStream]:
        """Streams whose `readable`, `writable` or `error` may have changed since the last call,
        each once."""
    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called; None when nothing is pending."""
