"""The streams of a yamux session: `EngineStream`, made by `Engine` only."""

from typing import Any, final

from typing_extensions import disjoint_base

from tunnelmux.errors import SessionError, StreamError
from tunnelmux.limits import Limits

@final
class EngineStream:
    """One yamux stream. Made by `Engine.open_stream` and `Engine.accept_stream` only."""

    owner: Any
    """For the adapter's own use; the engine never reads it."""

    @property
    def id(self) -> int: ...
    @property
    def is_outbound(self) -> bool: ...
    @property
    def is_acknowledged(self) -> bool:
        """The peer has answered (outbound), or we have accepted (inbound)."""
    @property
    def error(self) -> StreamError | SessionError | None:
        """Why sending fails now, or None. (A receive half whose FIN has come stays readable.)"""
    @property
    def readable(self) -> bool:
        """`receive` would give bytes, b"" for the end, or raise: it would not give None."""
    @property
    def writable(self) -> bool:
        """`send` would take at least one byte, or raise."""
    @property
    def queued_bytes(self) -> int: ...
    @property
    def unread_bytes(self) -> int: ...
    @property
    def send_credit(self) -> int: ...
    @property
    def receive_credit(self) -> int: ...
    @property
    def window(self) -> int:
        """Bytes of the receive window we aim for: 256 KiB at first, more when it was too small."""
    def send(self, data: bytes | bytearray | memoryview, start: int = 0) -> int:
        """Queue what fits of data[start:] (copied) and say how many bytes that was; 0 when
        the stream's buffer is full, or the session's is and this stream has a frame queued already.

        Raises StreamClosed after `finish`, and `error` when it is set.
        """
    def finish(self) -> None:
        """No more data from this side: a FIN follows the last queued byte. Harmless twice.
        Raises `error` when the stream or session is broken."""
    def receive(self, max_bytes: int) -> bytes | None:
        """Up to *max_bytes* of what has come: b"" once the peer's FIN is reached, None when there is
        nothing yet.

        Raises StreamReset, StreamClosed after `stop_receiving`, or what ended the session (after all
        bytes that came before it were read).
        """
    def peek(self, max_bytes: int) -> bytes:
        """The first bytes of what has come, left where they are; b"" when there is nothing."""
    def drop(self, size: int) -> None:
        """Throw away the first *size* bytes of what has come. Raises ValueError when fewer have."""
    def stop_receiving(self) -> None:
        """Throw away what is unread and whatever still comes; if the peer goes on sending, the
        stream is reset so that it learns of it. Harmless twice."""
    def close(self, now: float) -> None:
        """`finish` and `stop_receiving`; after `Limits.linger` without the peer's FIN the stream is
        reset. Never raises."""
    def reset(self, code: int = 0) -> None:
        """End both halves now; queued data is dropped. Harmless when already over."""

@final
class WindowBudget:
    """Bytes that receive windows may grow by; shared by all the sessions it is given to."""

    def __init__(self, capacity: int) -> None: ...
    @property
    def capacity(self) -> int: ...
    @property
    def spent(self) -> int:
        """Bytes that windows have grown by, and that peers may still use."""

@disjoint_base
class StreamTable:
    """What the streams of a session share; `Engine` is one."""

    def __init__(self, limits: Limits, process_budget: WindowBudget | None = ...) -> None: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def unacked_opens(self) -> int: ...
    @property
    def accept_pending(self) -> int:
        """Streams waiting for `accept_stream`."""
    @property
    def window_stalls(self) -> int:
        """How often a stream has used up all the credit it had: what follows has to wait for the
        peer to read."""
    @property
    def queued_bytes(self) -> int:
        """Payload bytes accepted by `EngineStream.send` and not yet given out."""
    @property
    def unread_bytes(self) -> int:
        """Payload bytes received and not yet taken by `EngineStream.receive`, all streams."""
