"""A whole yamux session without I/O, clock or random numbers.

Every header is checked as a whole before anything is changed. What is owed to the peer is state,
bounded by `Limits`, and becomes frames only when the transport takes them; the streams and their
part of that state are in `yamux.streams`. The docstrings of the public names are in `engine.pyi`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY, isinf
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from tunnelmux._frame cimport (
    ACK, DATA, FIN, GO_AWAY, HEADER_BYTES, PING, RST, SYN, WINDOW_UPDATE, FrameHeader,
    read_header, read_u32, write_header, write_u32,
)
from tunnelmux.yamux.links cimport Link, append_link, is_linked, unlink
from tunnelmux.yamux.liveness cimport Liveness
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport (
    ACK_DONE, ACK_NEED_SYN, ACK_OFFERED, ACK_OWED, ACK_SYN_SENT, RECEIVE_DISCARD, RECEIVE_OPEN,
    RECEIVE_RESET, SEND_FIN_QUEUED, SEND_FIN_SENT, SEND_OPEN, EngineStream, StreamTable,
)

from tunnelmux.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SessionClosed,
    SessionDraining,
    SessionGoneAway,
    SessionLost,
    SessionTimeout,
    StreamIdsExhausted,
    StreamRefused,
    TooManyStreams,
)
from tunnelmux.limits import INITIAL_WINDOW as _INITIAL_WINDOW, Limits

cdef enum:
    SLACK = 256  # room for the session's own control frames when sizing an output buffer

cdef uint32_t INITIAL_WINDOW = _INITIAL_WINDOW


cdef class Engine(StreamTable):
    # At most one GoAway is ever sent.
    # Nothing is linked to a list, and no stream is in the table, once `error_` is set.

    def __cinit__(self, *args, **kwargs):
        self.pongs = ByteRing.__new__(ByteRing)
        self.refusals = ByteRing.__new__(ByteRing)

    def __init__(
        self,
        *,
        bint is_client,
        limits=Limits(),
        double now=0.0,
        first_stream_id=None,
        process_budget=None,
    ):
        cdef int64_t first = 1 if is_client else 2
        if first_stream_id is not None:
            first = first_stream_id
            if first < 1 or (first & 1) != is_client:
                raise ValueError(f"stream {first} is not one of this side's ids")
        super().__init__(limits, process_budget)
        self.is_client = is_client
        self.next_id = first
        self.liveness = Liveness(limits.keepalive_interval, limits.keepalive_timeout, now)
        self.max_streams = limits.max_streams
        self.accept_backlog = limits.accept_backlog
        self.max_unacked_opens = limits.max_unacked_opens
        self.pending_pongs = limits.pending_pongs
        self.pending_resets = limits.pending_resets
        self.max_pings_per_second = limits.max_pings_per_second
        self.max_stray_frames = limits.max_stray_frames
        self.ack_delay = limits.ack_delay

    def __repr__(self):
        role = "client" if self.is_client else "server"
        return f"<Engine {role}, {len(self.streams)} streams, error={self.error_!r}>"

    # -- looking ------------------------------------------------------------------------------

    @property
    def error(self):
        return self.error_

    @property
    def is_closed(self):
        return self.error_ is not None

    @property
    def is_draining(self):
        return self.remote_go_away_ or self.go_away_due or self.go_away_sent

    @property
    def remote_go_away(self):
        return self.remote_go_away_

    @property
    def stream_count(self):
        return len(self.streams)

    @property
    def rtt(self):
        return self.liveness.rtt

    @property
    def pings_answered(self):
        return self.liveness.pings_answered

    @property
    def can_open(self):
        return self.unacked_opens < self.max_unacked_opens

    @property
    def wants_send(self):
        return self.wants_send_()

    cdef bint wants_send_(self) noexcept:
        if self.error_ is not None:
            return self.go_away_due
        return (
            self.go_away_due
            or self.liveness.ping_due
            or self.pongs.size > 0
            or self.refusals.size > 0
            or is_linked(&self.control_list)
            or is_linked(&self.fresh_list)
            or is_linked(&self.ready_list)
        )

    # -- input from the world -----------------------------------------------------------------

    def receive_data(self, const uint8_t[::1] data not None, double now):
        if data.shape[0]:
            self.feed(&data[0], data.shape[0], now)

    def receive_eof(self, double now):
        cdef EngineStream stream
        cdef Py_ssize_t live = 0
        if self.error_ is not None:
            return
        for stream in self.streams.values():
            # A stream that both sides ended, read or not, lacks nothing; nor does one that broke.
            if stream.error_ is None:
                live += not (stream.remote_fin and stream.send_state == SEND_FIN_SENT)
        if self.header_have or self.body_left:
            self.end(SessionLost("the connection ended in the middle of a frame"), False, 0)
        elif live:
            self.end(SessionLost(f"the connection ended with {live} live streams"), False, 0)
        else:
            self.end(SessionClosed("the peer closed the connection"), False, 0)

    def handle_deadline(self, double now):
        cdef EngineStream stream
        if self.error_ is not None:
            return
        while is_linked(&self.ack_timers):
            stream = <EngineStream>self.ack_timers.following.owner
            if stream.timer_at > now:
                break
            unlink(&stream.timer_link)
            if stream.ack_state == ACK_OFFERED:
                stream.ack_state = ACK_OWED
                self.want_control(stream)
        while is_linked(&self.linger_timers):
            stream = <EngineStream>self.linger_timers.following.owner
            if stream.timer_at > now:
                break
            unlink(&stream.timer_link)
            stream.reset_(0, f"the peer did not end it within {self.linger:g} s of our close")
        while is_linked(&self.grown_list):
            stream = <EngineStream>self.grown_list.following.owner
            if stream.updated_at + self.window_idle > now:
                break
            unlink(&stream.grown_link)
            stream.receive_window.target_ = INITIAL_WINDOW
            self.settle_window(stream)
        if self.liveness.is_dead(now):
            silence = now - self.liveness.last_inbound
            self.end(SessionTimeout(f"the peer has been silent for {silence:.1f} s"), False, 0)

    # -- commands from the application --------------------------------------------------------

    def open_stream(self, double now):
        cdef EngineStream stream
        if self.error_ is not None:
            raise self.error_.with_traceback(None)
        if self.is_draining:
            raise SessionDraining("the session takes no new streams: a GoAway was sent or received")
        if len(self.streams) >= self.max_streams:
            raise TooManyStreams(
                f"{self.max_streams} streams are live; close some or raise limits.max_streams"
            )
        if self.next_id > UINT32_MAX:
            raise StreamIdsExhausted("this session has used all its stream ids: make a new one")
        if self.unacked_opens >= self.max_unacked_opens:
            raise LocalProtocolError(f"{self.unacked_opens} opens wait for an answer already")
        stream = EngineStream.__new__(
            EngineStream, self, <uint32_t>self.next_id, True, INITIAL_WINDOW
        )
        self.next_id += 2
        stream.holds_slot = True
        self.unacked_opens += 1
        self.streams[stream.id] = stream
        self.want_control(stream)
        return stream

    def accept_stream(self):
        cdef EngineStream stream
        if not is_linked(&self.accept_list):
            return None
        stream = <EngineStream>self.accept_list.following.owner
        unlink(&stream.accept_link)
        self.accept_pending -= 1
        self.stop_timer(stream)
        if stream.ack_state == ACK_OFFERED:
            stream.ack_state = ACK_OWED
            self.want_control(stream)
        return stream

    def offered_stream(self):
        return <EngineStream>self.accept_list.following.owner if self.accept_pending else None

    def ping(self, double now):
        if self.error_ is not None:
            raise self.error_.with_traceback(None)
        self.liveness.want_ping()
        return self.liveness.pings_answered + 1

    def go_away(self):
        cdef EngineStream stream
        if self.error_ is not None or self.go_away_sent or self.go_away_due:
            return
        self.go_away_due = True
        self.go_away_code = 0
        # The peer may take an unanswered open for refused when it reads a GoAway (we do), so all
        # that were let in are acknowledged before it leaves.
        for stream in self.streams.values():
            if stream.ack_state == ACK_OFFERED:
                self.stop_timer(stream)
                stream.ack_state = ACK_OWED
                self.want_control(stream)
        if not self.streams:
            self.end(SessionClosed("this side ended the session"), True, 0)

    def close(self, error=None, uint32_t go_away_code=0):
        if error is None:
            error = SessionClosed("this side closed the session")
        self.end(error, True, go_away_code)

    # -- output -------------------------------------------------------------------------------

    def data_to_send(self, double now, Py_ssize_t max_bytes=65536):
        cdef Py_ssize_t room = min(max_bytes, self.output_bound())
        cdef Py_ssize_t used
        cdef bytes out
        if not self.wants_send:
            return b""
        out = PyBytes_FromStringAndSize(NULL, room)
        used = self.drain(<uint8_t *>PyBytes_AS_STRING(out), room, now)
        return out if used == room else out[:used]

    def take_changed(self):
        cdef list changed = self.changed
        cdef EngineStream stream
        if not changed:
            return []
        self.changed = []
        for stream in changed:
            stream.in_changed = False
        return changed

    def next_deadline(self):
        return None if isinf(self.deadline()) else self.deadline()

    cdef double deadline(self) noexcept:
        cdef EngineStream stream
        cdef double at
        if self.error_ is not None:
            return INFINITY
        at = self.liveness.deadline()
        if is_linked(&self.ack_timers):
            at = min(at, (<EngineStream>self.ack_timers.following.owner).timer_at)
        if is_linked(&self.linger_timers):
            at = min(at, (<EngineStream>self.linger_timers.following.owner).timer_at)
        if is_linked(&self.grown_list):
            stream = <EngineStream>self.grown_list.following.owner
            at = min(at, stream.updated_at + self.window_idle)
        return at

    cdef Py_ssize_t output_bound(self) noexcept:
        """Bytes that a flush could use at most, roughly: to size the buffer, not to promise."""
        cdef Py_ssize_t frames = len(self.streams) + self.queued_bytes // self.max_frame_payload
        return SLACK + 3 * (self.pongs.size + self.refusals.size) + (
            2 * HEADER_BYTES * frames + self.queued_bytes
        )

    cdef Py_ssize_t drain(self, uint8_t *out, Py_ssize_t room, double now) except -1:
        """Write whole frames into *out*, at most *room* bytes. Returns how many."""
        cdef EngineStream stream
        cdef Link *link
        cdef Link *queue
        cdef Py_ssize_t used = self.emit_session_control(out, room, now)
        cdef Py_ssize_t size
        used += self.emit_controls(out + used, room - used, now)
        if self.go_away_due and not is_linked(&self.control_list):
            used += self.emit_go_away(out + used, room - used)
        while True:
            queue = &self.fresh_list if is_linked(&self.fresh_list) else &self.ready_list
            if not is_linked(queue):
                break
            link = queue.following
            stream = <EngineStream>link.owner
            unlink(link)
            if not stream.sendable():
                continue
            size = self.emit_data(stream, out + used, room - used)
            if size == 0:
                append_link(queue.following, link)  # back to the front: the next flush begins here
                break
            used += size
            if not stream.forgotten:
                # Even when it has nothing left: a stream that sends a little, often, gets one
                # turn as a fresh one and then waits for the round to come to it.
                append_link(&self.ready_list, link)
        return used + self.emit_controls(out + used, room - used, now)  # FINs behind their data

    cdef Py_ssize_t frame_room(self, EngineStream stream) noexcept:
        """How many payload bytes `place_frame` may be given for *stream* now."""
        if stream.error_ is not None or stream.send_state != SEND_OPEN or stream.outbox.size:
            return 0
        return min(stream.send_window.credit_, self.max_frame_payload)

    cdef int place_frame(self, EngineStream stream, uint8_t *gap, Py_ssize_t size) except -1:
        """Write the header of a data frame whose *size* payload bytes the caller has put, or will
        put, right behind the 12 bytes at *gap*. At most `frame_room(stream)` bytes, at least 1."""
        self.spend(stream, size)
        write_header(gap, DATA, stream.take_opening_flags(), stream.id, <uint32_t>size)
        return 0

    cdef int deliver(self, EngineStream stream, const uint8_t *data, Py_ssize_t size) except -1:
        """Take *size* bytes of payload that came for *stream*; a data plane overrides this."""
        stream.inbox.push(data, size)
        self.unread_bytes += size
        return self.note(stream)

    cdef Py_ssize_t emit_session_control(
        self, uint8_t *out, Py_ssize_t room, double now
    ) except -1:
        cdef Py_ssize_t used = 0
        cdef uint8_t value[4]
        if self.error_ is not None:
            return self.emit_go_away(out, room)
        while self.pongs.size and room - used >= HEADER_BYTES:
            self.pongs.pull(value, 4)
            write_header(out + used, PING, ACK, 0, read_u32(value))
            used += HEADER_BYTES
        if self.liveness.ping_due and room - used >= HEADER_BYTES:
            write_header(out + used, PING, SYN, 0, self.liveness.take_ping(now))
            used += HEADER_BYTES
        while self.refusals.size and room - used >= HEADER_BYTES:
            self.refusals.pull(value, 4)
            write_header(out + used, WINDOW_UPDATE, RST, read_u32(value), 0)
            used += HEADER_BYTES
        return used

    cdef Py_ssize_t emit_go_away(self, uint8_t *out, Py_ssize_t room) noexcept:
        if not self.go_away_due or room < HEADER_BYTES:
            return 0
        write_header(out, GO_AWAY, 0, 0, self.go_away_code)
        self.go_away_due = False
        self.go_away_sent = True
        return HEADER_BYTES

    cdef Py_ssize_t emit_controls(self, uint8_t *out, Py_ssize_t room, double now) except -1:
        """Write the control frames that streams owe, as far as *room* goes."""
        cdef EngineStream stream
        cdef Py_ssize_t used = 0
        while is_linked(&self.control_list) and room - used >= HEADER_BYTES:
            stream = <EngineStream>self.control_list.following.owner
            unlink(&stream.control_link)
            used += self.emit_control(stream, out + used, now)
        return used

    cdef Py_ssize_t emit_control(self, EngineStream stream, uint8_t *out, double now) except -1:
        """Write one control frame that *stream* owes, if any; *out* has room for it."""
        cdef uint16_t flags = 0
        cdef uint32_t delta = 0
        if stream.reset_due:
            write_header(out, WINDOW_UPDATE, RST, stream.id, stream.reset_code)
            stream.reset_due = False
            self.forget(stream)
            return HEADER_BYTES
        if stream.expects_data() and stream.receive_window.update_due_():
            delta = self.window_update(stream, now)
        if stream.send_state == SEND_FIN_QUEUED and stream.outbox.size == 0:
            if stream.ack_state == ACK_OWED:
                self.want_control(stream)  # next: py-libp2p overlooks a FIN that comes with an ACK
            else:
                stream.send_state = SEND_FIN_SENT
                flags = FIN
        if flags or delta or self.go_away_due or not stream.sendable():
            # else SYN or ACK ride on the data, which follows
            flags |= stream.take_opening_flags()
        if not flags and not delta:
            return 0
        write_header(out, WINDOW_UPDATE, flags, stream.id, delta)
        self.forget_if_over(stream)
        return HEADER_BYTES

    cdef uint32_t window_update(self, EngineStream stream, double now) noexcept:
        """The credit to give *stream* now, with a larger window if this one is too small."""
        if self.max_stream_window > INITIAL_WINDOW:
            if not isinf(self.liveness.best_rtt):
                self.grow_window(stream, now - stream.updated_at, self.liveness.best_rtt)
            stream.updated_at = now
            if stream.receive_window.target_ > INITIAL_WINDOW:
                unlink(&stream.grown_link)
                append_link(&self.grown_list, &stream.grown_link)
        return stream.receive_window.take_update_()

    cdef Py_ssize_t emit_data(
        self, EngineStream stream, uint8_t *out, Py_ssize_t room
    ) except -1:
        """One data frame of *stream*, or 0 when *room* is too small for a sensible one."""
        cdef Py_ssize_t size = min(stream.outbox.size, self.max_frame_payload)
        size = min(size, stream.send_window.credit_)
        if size > room - HEADER_BYTES:
            if room < 1024:
                return 0
            size = room - HEADER_BYTES
        write_header(out, DATA, stream.take_opening_flags(), stream.id, <uint32_t>size)
        stream.outbox.pull(out + HEADER_BYTES, size)
        self.spend(stream, size)
        self.note_sent(stream, size)
        if stream.send_state == SEND_FIN_QUEUED and stream.outbox.size == 0:
            # A frame of its own: hashicorp/yamux and go-yamux take a FIN that rides on data for the
            # end before they have read the data, and a reader in between misses the last bytes.
            self.want_control(stream)
        return HEADER_BYTES + size

    # -- the parser ---------------------------------------------------------------------------

    cdef int feed(self, const uint8_t *data, Py_ssize_t size, double now) except -1:
        """Bytes from the transport, cut anywhere; raises RemoteProtocolError."""
        cdef Py_ssize_t take
        if self.error_ is not None:
            return 0
        self.liveness.heard(now)
        while size > 0 and self.error_ is None:
            if self.body_left:
                take = min(size, <Py_ssize_t>self.body_left)
                if self.body_stream is not None:
                    if self.body_stream.receive_state == RECEIVE_OPEN:
                        self.deliver(self.body_stream, data, take)
                    else:
                        self.body_stream.give_back(take)
                self.body_left -= <uint32_t>take
                if self.body_left == 0:
                    self.end_of_body()
            elif self.header_have or size < HEADER_BYTES:
                take = min(size, HEADER_BYTES - self.header_have)
                memcpy(&self.header_bytes[self.header_have], data, take)
                self.header_have += take
                if self.header_have == HEADER_BYTES:
                    self.header_have = 0
                    self.on_header(read_header(self.header_bytes), now)
            else:
                take = HEADER_BYTES
                self.on_header(read_header(data), now)
            data += take
            size -= take
        return 0

    cdef int on_header(self, FrameHeader header, double now) except -1:
        if header.version != 0:
            return self.fail(
                f"yamux version {header.version}, where only 0 exists: not a yamux peer?"
            )
        if header.type == DATA or header.type == WINDOW_UPDATE:
            return self.on_stream_frame(header, now)
        if header.type == PING:
            return self.on_ping(header, now)
        if header.type == GO_AWAY:
            return self.on_go_away(header.length)
        return self.fail(f"frame type {header.type}, where only 0 to 3 exist: not a yamux peer?")

    cdef int on_stream_frame(self, FrameHeader header, double now) except -1:
        cdef EngineStream stream = self.streams.get(header.stream_id)
        cdef uint32_t body = header.length if header.type == DATA else 0
        if header.flags & SYN:
            stream = self.on_syn(header, stream, now)
            if stream is None:  # refused, or pointless: its body is skipped
                self.begin_body(None, body, False)
                return 0
        elif stream is None or stream.is_cut or stream.ack_state == ACK_NEED_SYN:
            self.on_stray()
            self.begin_body(None, body, False)
            return 0
        else:
            self.check_stream_frame(stream, header)
            self.stray_frames = 0
        if header.flags & RST:
            self.peer_reset(stream, header.length if header.type == WINDOW_UPDATE else 0)
            self.begin_body(None, body, False)
            return 0
        if stream.ack_state == ACK_SYN_SENT:  # any answer is an acknowledgement
            stream.ack_state = ACK_DONE
            self.release_open_slot(stream)
        if header.type == DATA:
            return self.on_data(stream, header, now)
        if not header.flags & SYN and stream.send_state < SEND_FIN_SENT:
            stream.send_window.grant_(header.length)
            self.make_ready(stream)
        if header.flags & FIN:
            self.peer_fin(stream)
        return 0

    cdef int check_stream_frame(self, EngineStream stream, FrameHeader header) except -1:
        """Refuse what overruns a window, before anything is changed."""
        if header.type == DATA:
            if stream.expects_data() and header.length > stream.receive_window.credit_:
                return self.fail(
                    f"{header.length} bytes on stream {stream.id}, whose window has "
                    f"{stream.receive_window.credit_} left"
                )
        elif not header.flags & RST and stream.send_state < SEND_FIN_SENT:
            if stream.send_window.credit_ + header.length > UINT32_MAX:
                return self.fail(f"the window of stream {stream.id} grew past 2**32 - 1")
        return 0

    cdef EngineStream on_syn(self, FrameHeader header, EngineStream stream, double now):
        """The stream that a frame with SYN opens; None when it opens none."""
        cdef uint32_t credit = INITIAL_WINDOW
        if header.stream_id == 0:
            self.fail("a stream was opened with id 0")
        if <bint>(header.stream_id & 1) == self.is_client:
            self.fail(
                f"the peer opened stream {header.stream_id}, an id of this side: "
                f"are both ends {'client' if self.is_client else 'server'}?"
            )
        if stream is not None:
            self.fail(f"stream {header.stream_id} was opened twice")
        if header.type == DATA:
            if header.length > INITIAL_WINDOW:
                self.fail(
                    f"{header.length} bytes with the opening of stream {header.stream_id}, "
                    f"where {INITIAL_WINDOW} are allowed"
                )
        elif header.length > UINT32_MAX - INITIAL_WINDOW and not header.flags & RST:
            self.fail(f"the window of stream {header.stream_id} grew past 2**32 - 1")
        else:
            credit += header.length
        if header.flags & RST:
            return None
        if (
            self.go_away_due
            or self.go_away_sent
            or self.accept_pending >= self.accept_backlog
            or len(self.streams) >= self.max_streams
        ):
            self.refuse(header.stream_id)
            return None
        stream = EngineStream.__new__(EngineStream, self, header.stream_id, False, credit)
        self.streams[header.stream_id] = stream
        self.stray_frames = 0
        append_link(&self.accept_list, &stream.accept_link)
        self.accept_pending += 1
        if not isinf(self.ack_delay):
            stream.timer_at = now + self.ack_delay
            append_link(&self.ack_timers, &stream.timer_link)
        return stream

    cdef int on_data(self, EngineStream stream, FrameHeader header, double now) except -1:
        cdef bint fin = header.flags & FIN
        if header.length == 0:
            if fin:
                self.peer_fin(stream)
            return 0
        if stream.remote_fin and not stream.reset_due:
            stream.reset_(0, "the peer sent data after its FIN")
        self.bound_unread()
        if not stream.expects_data():
            self.begin_body(None, header.length, False)
            return 0
        stream.receive_window.accept_(header.length)
        if self.max_stream_window > INITIAL_WINDOW:
            self.liveness.want_fresh_rtt(now)  # so that it is known when the window is found small
            if isinf(stream.updated_at):
                stream.updated_at = now
        self.begin_body(stream, header.length, fin)
        if stream.receive_state == RECEIVE_DISCARD:
            stream.reset_(0, "the peer sent data to a closed reader")
        return 0

    cdef void begin_body(self, EngineStream stream, uint32_t length, bint fin) noexcept:
        self.body_stream = stream if length else None
        self.body_left = length
        self.body_fin = fin

    cdef int end_of_body(self) except -1:
        cdef EngineStream stream = self.body_stream
        self.body_stream = None
        if stream is not None and self.body_fin:
            return self.peer_fin(stream)
        return 0

    cdef int on_stray(self) except -1:
        """A frame for a stream that is not there: normal while a reset is on its way."""
        self.stray_frames += 1
        if self.stray_frames > self.max_stray_frames:
            return self.fail(f"{self.stray_frames} frames in a row for streams that do not exist")
        return 0

    cdef int on_ping(self, FrameHeader header, double now) except -1:
        cdef uint8_t value[4]
        if header.flags & SYN:
            if self.liveness.count_request(now) > self.max_pings_per_second:
                return self.fail(f"more than {self.max_pings_per_second} pings in one second")
            if self.pongs.size >= 4 * self.pending_pongs:
                self.pongs.pull(value, 4)
            write_u32(value, header.length)
            self.pongs.push(value, 4)
        elif header.flags & ACK:
            self.liveness.answered(header.length, now)
        return 0

    cdef int on_go_away(self, uint32_t code) except -1:
        cdef EngineStream stream
        if code != 0:
            what = {1: "a protocol error", 2: "an internal error"}.get(code, "an error")
            error = SessionGoneAway(f"the peer ended the session: {what} (code {code})", code=code)
            return self.end(error, False, 0)
        if self.remote_go_away_:
            return 0
        self.remote_go_away_ = True
        for stream in list(self.streams.values()):
            if stream.ack_state == ACK_NEED_SYN or stream.ack_state == ACK_SYN_SENT:
                error = StreamRefused(f"stream {stream.id}: the peer went away before it answered")
                stream.break_off(error)
                stream.reset_due = stream.ack_state == ACK_SYN_SENT
                self.release_open_slot(stream)
                if stream.reset_due:
                    self.want_control(stream)
                else:
                    self.forget(stream)
        if not self.streams and self.error_ is None:
            self.end(SessionClosed("the peer ended the session"), True, 0)
        return 0

    cdef int fail(self, str message) except -1:
        """The peer broke the rules: say so on the wire and to the caller. Always raises."""
        error = RemoteProtocolError(f"the peer broke the yamux protocol: {message}")
        self.end(error, True, error.wire_code)
        raise error

    # -- what becomes of streams --------------------------------------------------------------

    cdef int refuse(self, uint32_t stream_id) except -1:
        cdef uint8_t value[4]
        if self.refusals.size >= 4 * self.pending_resets:
            return self.fail(
                f"it opened {self.pending_resets} streams over the limit without reading that they "
                f"were refused"
            )
        write_u32(value, stream_id)
        return self.refusals.push(value, 4)

    cdef int on_forgotten(self, EngineStream stream) except -1:
        if self.body_stream is stream:
            self.body_stream = None
        if not self.streams and self.error_ is None and self.is_draining:
            return self.end(SessionClosed("the session was drained"), True, 0)
        return 0

    cdef int end(self, object error, bint tell, uint32_t code) except -1:
        """The session is over: every stream fails with *error*; the peer is told if *tell*."""
        cdef EngineStream stream
        if self.error_ is not None:
            return 0
        self.error_ = error
        if not self.go_away_sent:
            if code != 0 or not self.go_away_due:
                self.go_away_code = code
            self.go_away_due = tell
        for stream in list(self.streams.values()):
            if stream.error_ is None:
                stream.error_ = error
            stream.drop_queued()
            self.forget(stream)
            self.note(stream)
        self.pongs.reset()
        self.refusals.reset()
        self.body_left = 0
        self.header_have = 0
        return 0
