"""A session's connection in the pump: payload out of frames, and frames around payload."""

from typing import final

from tunnelmux.pump.epoll import Member, Pump
from tunnelmux.pump.pump_socket import PumpSocket
from tunnelmux.pump.websocket import FrameReader
from tunnelmux.yamux.engine import Engine

class PumpedEngine(Engine):
    """An engine whose streams may belong to relays: their payload never passes through Python."""

@final
class Tunnel(Member):
    """Carries one engine on one connected stream socket, from construction to `detach`."""

    watched: bool
    """While True, the owner is called after every batch that touched the session."""
    turn: float
    """Seconds that are too much for what is read at once: less is read next time."""
    deadline: float
    """The earliest deadline of the engine that the owner knows; it is called for an earlier one."""

    def __init__(
        self,
        pump: Pump,
        engine: PumpedEngine,
        wire: PumpSocket,
        frames: FrameReader | None,
        masks: bool,
        owner: object,
    ) -> None:
        """With *frames*, the bytes on *wire* are WebSocket frames; *masks* is True for the client.

        Raises OSError when the descriptor cannot be watched, ValueError when it is watched already.
        """
    @property
    def engine(self) -> PumpedEngine:
        """The engine it carries."""
    @property
    def portion(self) -> int:
        """How many bytes the next read may take."""
    @property
    def ended(self) -> bool:
        """Whether nothing more will be read: the peer's end or Close, a broken frame, an error."""
    @property
    def lost(self) -> Exception | None:
        """The error that broke the connection, or None."""
    @property
    def last_received(self) -> float:
        """When the last byte came, on Trio's clock."""
    @property
    def bytes_received(self) -> int:
        """How many bytes of payload were fed to the engine so far."""
    @property
    def bytes_sent(self) -> int:
        """How many bytes of payload were put into messages so far."""
    @property
    def is_drained(self) -> bool:
        """Whether everything that the engine had to send was sent."""
    @property
    def controls_waiting(self) -> int:
        """How many control frames have not been given to the socket yet."""
    def feed(self, payload: bytes, now: float) -> None:
        """Take payload that was read before the socket came here."""
    def want_flush(self) -> None:
        """Send what the engine has to send with the next batch."""
    def queue_control(self, frame: bytes) -> None:
        """Send this control frame behind the message that is being sent."""
    def withdraw(self) -> None:
        """Let go of the socket now, because it is about to be closed; the owner is called."""
    def detach(self) -> bool:
        """Let go of the socket for good.

        True when part of what the engine gave was not sent: the byte stream is cut.
        """
