"""A yamux session in plain Python, for reading: the oracle the compiled engine is held to.

Same face as `tunnelmux.yamux.engine`, no code shared with it but the errors and the limits. Nothing
is fast here: streams are scanned, buffers are copied, frames are built one at a time.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from tunnelmux.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SessionClosed,
    SessionDraining,
    SessionError,
    SessionGoneAway,
    SessionLost,
    SessionTimeout,
    StreamClosed,
    StreamError,
    StreamIdsExhausted,
    StreamRefused,
    StreamReset,
    TooManyStreams,
)
from tunnelmux.limits import Limits

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
INITIAL_WINDOW = 262_144
MAX_CREDIT = 2**32 - 1
ONE_FRAME = 16_384
Buffer = bytes | bytearray | memoryview


class Engine:
    """One session; see `engine.pyi` for what each method promises."""

    def __init__(
        self,
        *,
        is_client: bool,
        limits: Limits | None = None,
        now: float = 0.0,
        first_stream_id: int | None = None,
    ) -> None:
        self.is_client = is_client
        self.limits = limits or Limits()
        self.error: SessionError | None = None
        self.remote_go_away = False
        self.rtt: float | None = None
        self.pings_answered = 0
        self._streams: dict[int, EngineStream] = {}
        self._next_id = first_stream_id or (1 if is_client else 2)
        self._backlog: deque[EngineStream] = deque()
        self._changed: dict[EngineStream, None] = {}
        # What came in and is not understood yet; the body now arriving and whose it is.
        self._input = bytearray()
        self._body_left = 0
        self._body_stream: EngineStream | None = None
        self._body_fin = False
        # What waits to go out, besides the bits on each stream.
        self._go_away_code: int | None = None
        self._go_away_sent = False
        self._local_go_away = False
        self._pongs: deque[int] = deque()
        self._refusals: deque[tuple[int, int]] = deque()
        self._resets: deque[tuple[int, int]] = deque()
        self._idle_first: deque[EngineStream] = deque()
        self._round: deque[EngineStream] = deque()
        # Pings: at most one of ours is wanted or on its way.
        self._ping_wanted = False
        self._ping_sent_at: float | None = None
        self._heard_at = now
        self._probed = False
        # Budgets for hostile peers.
        self._strays = 0
        self._ping_second = now
        self._ping_count = 0

    # -- looking ---------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self.error is not None

    @property
    def is_draining(self) -> bool:
        return self._local_go_away or self.remote_go_away

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def unacked_opens(self) -> int:
        return sum(s.is_outbound and not s.is_acknowledged for s in self._streams.values())

    @property
    def can_open(self) -> bool:
        return self.unacked_opens < self.limits.max_unacked_opens

    @property
    def accept_pending(self) -> int:
        return len(self._backlog)

    @property
    def wants_send(self) -> bool:
        if self._go_away_code is not None:
            return True
        if self.error is not None:
            return False
        return bool(
            self._pongs
            or self._ping_wanted
            or self._refusals
            or self._resets
            or any(s._control_due() or s._data_due() for s in self._streams.values())
        )

    @property
    def queued_bytes(self) -> int:
        return sum(s.queued_bytes for s in self._streams.values())

    @property
    def unread_bytes(self) -> int:
        return sum(s.unread_bytes for s in self._streams.values())

    # -- input from the world --------------------------------------------------------------------

    def receive_data(self, data: Buffer, now: float) -> None:
        if self.error is not None or not len(data):
            return
        self._heard_at, self._probed = now, False
        self._input += data
        try:
            while self._step(now):
                self._finish_drain()
        except RemoteProtocolError as error:
            self.close(error, 1)
            raise

    def _step(self, now: float) -> bool:
        """Understand a little more of the input; False when that needs more bytes."""
        if self.error is not None:
            return False
        if self._body_left:
            piece = bytes(self._input[: self._body_left])
            if not piece:
                return False
            del self._input[: len(piece)]
            self._body_left -= len(piece)
            if self._body_stream is not None:
                self._body_stream._deliver(piece)
        elif len(self._input) >= 12:
            header = struct.unpack_from(">BBHII", self._input)
            del self._input[:12]
            self._body_stream, self._body_fin = None, False
            self._frame(*header, now=now)
        else:
            return False
        if self._body_left == 0 and self._body_fin and self._body_stream is not None:
            self._body_stream._peer_finished()
            self._body_fin = False
        return True

    def _frame(
        self, version: int, type: int, flags: int, stream_id: int, length: int, *, now: float
    ) -> None:
        if version != 0:
            raise RemoteProtocolError(f"frame version {version}; this is not a yamux peer")
        if type == PING:
            self._ping_frame(flags, length, now)
        elif type == GO_AWAY:
            self._go_away_frame(length)
        elif type in (DATA, WINDOW_UPDATE):
            self._body_left = length if type == DATA else 0
            self._stream_frame(type, flags, stream_id, length, now)
        else:
            raise RemoteProtocolError(f"frame type {type}; this is not a yamux peer")

    def _ping_frame(self, flags: int, value: int, now: float) -> None:
        if flags & SYN:
            if now - self._ping_second >= 1.0:
                self._ping_second, self._ping_count = now, 0
            self._ping_count += 1
            if self._ping_count > self.limits.max_pings_per_second:
                raise RemoteProtocolError("a flood of pings")
            self._pongs.append(value)
            if len(self._pongs) > self.limits.pending_pongs:
                self._pongs.popleft()
        elif flags & ACK and self._ping_sent_at is not None and value == self.pings_answered:
            self.rtt = now - self._ping_sent_at
            self._ping_sent_at = None
            self.pings_answered += 1

    def _go_away_frame(self, code: int) -> None:
        if code != 0:
            self._end(SessionGoneAway(f"the peer went away with code {code}", code=code))
        elif not self.remote_go_away:
            self.remote_go_away = True
            for stream in list(self._streams.values()):
                if stream.is_outbound and not stream.is_acknowledged:
                    stream._kill(StreamRefused("the peer takes no new streams"), reset_code=0)

    def _stream_frame(self, type: int, flags: int, stream_id: int, length: int, now: float) -> None:
        stream = self._streams.get(stream_id)
        if flags & SYN:
            if stream_id == 0 or (stream_id % 2 == 1) == self.is_client:
                raise RemoteProtocolError(f"a stream opened with an id of ours, {stream_id}")
            if stream is not None:
                raise RemoteProtocolError(f"stream {stream_id} opened twice")
            if flags & RST:
                return
            if type == DATA and length > INITIAL_WINDOW:
                raise RemoteProtocolError(f"{length} bytes on a new stream")
            if type == WINDOW_UPDATE and INITIAL_WINDOW + length > MAX_CREDIT:
                raise RemoteProtocolError("more credit than a window can hold")
            stream = self._offer(stream_id, now)
            if stream is None:
                return
        elif (
            stream is None or stream._cut or stream._syn_owed
        ):  # the peer cannot know a stream whose SYN waits
            waiting = [entry for entry in self._resets if entry[0] == stream_id]
            if waiting:  # our own reset has not left: the peer cannot know of it
                self._strays = 0
                if flags & RST:
                    self._resets.remove(waiting[0])
                return
            self._strays += 1
            if self._strays > self.limits.max_stray_frames:
                raise RemoteProtocolError("too many frames for streams that do not exist")
            return
        self._strays = 0
        if type == DATA and not stream._peer_fin and length > stream.receive_credit:
            raise RemoteProtocolError(f"{length} bytes on a credit of {stream.receive_credit}")
        if flags & RST:
            stream._peer_reset(length if type == WINDOW_UPDATE else 0)
            return
        if stream.is_outbound:
            stream.is_acknowledged = True  # any answer is one
        if type == DATA:
            if not stream._announce(length):
                return
        elif not stream._fin_sent:
            if stream.send_credit + length > MAX_CREDIT:
                raise RemoteProtocolError("more credit than a window can hold")
            stream.send_credit += length
        self._mark(stream)
        self._body_stream, self._body_fin = stream, bool(flags & FIN)

    def _offer(self, stream_id: int, now: float) -> EngineStream | None:
        """The new inbound stream, or None after refusing it."""
        full = len(self._streams) >= self.limits.max_streams
        if full or len(self._backlog) >= self.limits.accept_backlog or self._local_go_away:
            if len(self._refusals) >= self.limits.pending_resets:
                raise RemoteProtocolError("streams are opened faster than they can be refused")
            self._refusals.append((stream_id, 0))
            return None
        stream = EngineStream(self, stream_id, is_outbound=False)
        stream._ack_at = now + self.limits.ack_delay
        self._streams[stream_id] = stream
        self._backlog.append(stream)
        return stream

    def receive_eof(self, now: float) -> None:
        if self.error is not None:
            return
        whole = [s for s in self._streams.values() if s.error is None]
        live = [s for s in whole if not (s._fin_sent and s._peer_fin)]
        if live or self._input or self._body_left:
            self._end(SessionLost("the transport ended while streams were live"))
        else:
            self._end(SessionClosed("the peer closed the transport"))

    def handle_deadline(self, now: float) -> None:
        if self.error is not None:
            return
        for stream in list(self._streams.values()):
            if stream._ack_at is not None and now >= stream._ack_at:
                stream._owe_ack()
            if stream._linger_at is not None and now >= stream._linger_at:
                stream._kill(StreamReset("the peer never finished"), reset_code=0)
        due = self._heard_at + self.limits.keepalive_interval
        if not self._probed and now >= due:
            self._probed = True
            self.ping(now)
        elif self._probed and now >= due + self.limits.keepalive_timeout:
            self._end(SessionTimeout("nothing came from the peer"))
        self._finish_drain()

    # -- commands from the application -----------------------------------------------------------

    def open_stream(self, now: float) -> EngineStream:
        if self.error is not None:
            raise self.error
        if self.is_draining:
            raise SessionDraining("no new streams on this session")
        if self._next_id > MAX_CREDIT:
            raise StreamIdsExhausted("make a new session")
        if len(self._streams) >= self.limits.max_streams:
            raise TooManyStreams("close some streams")
        if not self.can_open:
            raise LocalProtocolError("too many unanswered opens")
        stream = EngineStream(self, self._next_id, is_outbound=True)
        self._next_id += 2
        self._streams[stream.id] = stream
        return stream

    def accept_stream(self) -> EngineStream | None:
        if not self._backlog:
            return None
        stream = self._backlog.popleft()
        stream._owe_ack()
        return stream

    def ping(self, now: float) -> int:
        if self.error is not None:
            raise self.error
        if not self._ping_wanted and self._ping_sent_at is None:
            self._ping_wanted = True
        return self.pings_answered + 1

    def go_away(self) -> None:
        if self.error is None and not self._local_go_away:
            self._local_go_away = True
            self._go_away_code = 0
            for stream in self._backlog:
                stream._owe_ack()  # before the GoAway, lest the peer takes it for refused
            self._finish_drain()

    def close(self, error: SessionError | None = None, go_away_code: int = 0) -> None:
        if self.error is None:
            code = None if self._go_away_sent else go_away_code
            self._end(error or SessionClosed("the session was closed"), code)

    def _end(self, error: SessionError, go_away_code: int | None = None) -> None:
        self.error = error
        self._go_away_code = go_away_code
        self._body_stream = None
        for stream in self._streams.values():
            stream._break(error)
        self._streams.clear()
        self._backlog.clear()

    def _finish_drain(self) -> None:
        if self.is_draining and self.error is None and not self._streams and not self._resets:
            self.close(SessionClosed("the last stream of a draining session has ended"))

    # -- output ----------------------------------------------------------------------------------

    def data_to_send(self, now: float, max_bytes: int = 65_536) -> bytes:
        out = bytearray()
        while max_bytes - len(out) >= 12:
            frame = self._next_frame(now, max_bytes - len(out))
            if not frame:
                break
            out += frame
        self._finish_drain()
        return bytes(out)

    def _next_frame(self, now: float, room: int) -> bytes:
        if self.error is not None:
            return self._go_away_out()
        if self._pongs:
            return _frame(PING, ACK, 0, self._pongs.popleft())
        if self._ping_wanted:
            self._ping_wanted, self._ping_sent_at = False, now
            return _frame(PING, SYN, 0, self.pings_answered)
        for resets in (self._refusals, self._resets):
            if resets:
                stream_id, code = resets.popleft()
                return _frame(WINDOW_UPDATE, RST, stream_id, code)
        for stream in list(self._streams.values()):
            if stream._control_due():
                return stream._control_frame()
        if self._go_away_code is not None:
            return self._go_away_out()
        for line in (self._idle_first, self._round):
            while line:
                stream = line[0]
                if not stream._data_due():
                    line.popleft()
                elif room <= 12:
                    return b""
                else:
                    line.popleft()
                    frame = stream._data_frame(room - 12)
                    self._round.append(stream)
                    return frame
        return b""

    def _go_away_out(self) -> bytes:
        code, self._go_away_code = self._go_away_code, None
        self._go_away_sent |= code is not None
        return b"" if code is None else _frame(GO_AWAY, 0, 0, code)

    def take_changed(self) -> list[EngineStream]:
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def next_deadline(self) -> float | None:
        if self.error is not None:
            return None
        due = self._heard_at + self.limits.keepalive_interval
        times = [due + self.limits.keepalive_timeout if self._probed else due]
        for stream in self._streams.values():
            times += [t for t in (stream._ack_at, stream._linger_at) if t is not None]
        return min(times)

    def _mark(self, stream: EngineStream) -> None:
        self._changed[stream] = None
        if stream._queue and stream not in self._round and stream not in self._idle_first:
            self._idle_first.append(stream)


class EngineStream:
    """One stream: a send half, a receive half and what is owed to the peer about its opening."""

    owner: Any

    def __init__(self, engine: Engine, stream_id: int, *, is_outbound: bool) -> None:
        self.owner = None
        self.id = stream_id
        self.is_outbound = is_outbound
        self.is_acknowledged = False
        self.error: StreamError | SessionError | None = None
        self.send_credit = INITIAL_WINDOW
        self.receive_credit = INITIAL_WINDOW
        self._engine = engine
        self._queue = bytearray()
        self._finishing = False
        self._fin_sent = False
        self._syn_owed = is_outbound
        self._ack_owed = False
        self._ack_at: float | None = None
        self._linger_at: float | None = None
        self._buffer = bytearray()
        self._announced = 0  # of the frame now arriving, counted in no other place
        self._peer_fin = False
        self._discarding = False
        self._cut = False  # reset by the peer, and what came before not read yet
        self._receive_error: StreamError | SessionError | None = None

    @property
    def queued_bytes(self) -> int:
        return len(self._queue)

    @property
    def unread_bytes(self) -> int:
        return len(self._buffer)

    @property
    def readable(self) -> bool:
        return bool(self._buffer or self._peer_fin or self._discarding or self.error)

    @property
    def writable(self) -> bool:
        return bool(self._finishing or self.error or self._room() > 0)

    def _room(self) -> int:
        limits = self._engine.limits
        session_room = limits.session_send_buffer - self._engine.queued_bytes
        one_frame = limits.max_frame_payload - len(self._queue)
        return min(limits.stream_send_buffer - len(self._queue), max(session_room, one_frame, 0))

    # -- from the application --------------------------------------------------------------------

    def send(self, data: Buffer, start: int = 0) -> int:
        if self.error is not None:
            raise self.error
        if self._finishing:
            raise StreamClosed("sending on this stream was ended")
        taken = bytes(data[start : start + self._room()])
        self._queue += taken
        self._engine._mark(self)
        return len(taken)

    def finish(self) -> None:
        if self.error is not None:
            raise self.error
        self._finishing = True

    def receive(self, max_bytes: int) -> bytes | None:
        if self._receive_error is not None and not self._buffer:
            raise self._receive_error
        if self._discarding:
            raise StreamClosed("receiving on this stream was ended")
        if self._buffer:
            taken = bytes(self._buffer[:max_bytes])
            del self._buffer[: len(taken)]
            self._forget_if_over()
            return taken
        if self._peer_fin:
            return b""
        if self.error is not None:
            raise self.error
        return None

    def stop_receiving(self) -> None:
        self._discarding = True
        self._buffer.clear()
        self._engine._mark(self)
        self._forget_if_over()

    def close(self, now: float) -> None:
        self.stop_receiving()
        if self.error is None:
            self._finishing = True
            if not self._peer_fin and self._linger_at is None:
                self._linger_at = now + self._engine.limits.linger

    def reset(self, code: int = 0) -> None:
        if self._cut:
            self._receive_error = self.error
            self._buffer.clear()
            self._forget_if_over()
        elif self._is_live():
            self._kill(StreamReset("reset by this side", code=code), reset_code=code)
        elif self._buffer:  # over, but not read to its end
            self._receive_error = self.error
            self._buffer.clear()

    # -- from the peer ---------------------------------------------------------------------------

    def _announce(self, size: int) -> bool:
        """Whether a body of *size* bytes may come; if not, the stream was reset."""
        if size and (self._peer_fin or self._discarding):
            self._kill(StreamReset("the peer sent to a half that had ended"), reset_code=0)
            return False
        self.receive_credit -= size
        self._announced = size
        return True

    def _deliver(self, piece: bytes) -> None:
        self._announced -= len(piece)
        if self._is_live() and not self._discarding:
            self._buffer += piece
            self._engine._mark(self)

    def _peer_finished(self) -> None:
        self._peer_fin = True
        self._linger_at = None
        self._engine._mark(self)
        self._forget_if_over()

    def _peer_reset(self, code: int) -> None:
        kind = StreamRefused if self.is_outbound and not self.is_acknowledged else StreamReset
        self._kill(kind(f"reset by the peer with code {code}", code=code), reset_code=None)

    # -- endings ---------------------------------------------------------------------------------

    def _is_live(self) -> bool:
        return self._engine._streams.get(self.id) is self

    def _kill(self, error: StreamError, *, reset_code: int | None) -> None:
        if reset_code is not None and not self._syn_owed:
            self._engine._resets.append((self.id, reset_code))
        self._break(error)
        if reset_code is not None or not self._peer_fin:
            self._receive_error = error
        if reset_code is not None or self in self._engine._backlog:
            self._buffer.clear()
        if self in self._engine._backlog:
            self._engine._backlog.remove(self)
        self._cut = reset_code is None and self._is_live()
        if not (self._cut and self._buffer):
            self._engine._streams.pop(self.id, None)
        for other in self._engine._streams.values():
            self._engine._mark(other)  # there is room again in the session's buffer

    def _break(self, error: StreamError | SessionError) -> None:
        self.error = error
        self._queue.clear()
        self._ack_at = self._linger_at = None
        self._engine._mark(self)

    def _forget_if_over(self) -> None:
        if not self._buffer and (self._cut or (self._fin_sent and self._peer_fin)):
            if self._is_live():
                self._engine._streams.pop(self.id)
                self._engine._finish_drain()
            self._linger_at = None

    # -- frames to send --------------------------------------------------------------------------

    def _owe_ack(self) -> None:
        if not self.is_outbound and not self.is_acknowledged:
            self.is_acknowledged = self._ack_owed = True
            self._ack_at = None

    def _data_due(self) -> bool:
        return bool(self._queue and self.send_credit and self.error is None)

    def _update_size(self) -> int:
        """How much credit to announce now; 0 while it is not worth a frame."""
        if self._peer_fin:
            return 0
        size = INITIAL_WINDOW - self.receive_credit - self._announced - len(self._buffer)
        worth = size * 2 >= INITIAL_WINDOW or self.receive_credit < ONE_FRAME <= size
        return size if worth else 0

    def _fin_due(self) -> bool:
        return self._finishing and not self._fin_sent and not self._queue

    def _control_due(self) -> bool:
        flags_alone = self._syn_owed or self._ack_owed or self._fin_due()
        wait_for_data = self._data_due() and self._engine._go_away_code is None
        return bool(self._update_size() or (flags_alone and not wait_for_data))

    def _opening_flags(self) -> int:
        flags = (SYN if self._syn_owed else 0) | (ACK if self._ack_owed else 0)
        self._syn_owed = self._ack_owed = False
        return flags

    def _control_frame(self) -> bytes:
        size = self._update_size()
        self.receive_credit += size
        fin = self._fin_due() and not self._ack_owed  # py-libp2p overlooks a FIN with an ACK
        flags = self._opening_flags() | (FIN if fin else 0)
        self._fin_sent |= fin
        self._forget_if_over()
        return _frame(WINDOW_UPDATE, flags, self.id, size)

    def _data_frame(self, room: int) -> bytes:
        size = min(len(self._queue), self.send_credit, self._engine.limits.max_frame_payload, room)
        body = bytes(self._queue[:size])
        del self._queue[:size]
        self.send_credit -= size
        self._engine._mark(self)
        return _frame(DATA, self._opening_flags(), self.id, size) + body


def _frame(type: int, flags: int, stream_id: int, length: int) -> bytes:
    return struct.pack(">BBHII", 0, type, flags, stream_id, length)
