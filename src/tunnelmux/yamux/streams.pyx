"""The streams of a yamux session and the lists they are in: the engine's bookkeeping.

Three independent states are kept for every stream: was it acknowledged
(AckState), may we still send (SendState), may the peer still send (ReceiveState and remote_fin).
One enumeration for all three is where other implementations lose acknowledgements and data.

What is owed to the peer is kept as state on the stream (a bit, a number), never as a queue of
frames: frames are built when the transport takes them, so they carry the latest credit, ride on
data where they can, and cannot pile up.
The docstrings of the public names are in `streams.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY, isinf
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from tunnelmux._frame cimport ACK, SYN, ReceiveWindow, SendWindow
from tunnelmux.yamux.links cimport append_link, init_link, is_linked, unlink
from tunnelmux.yamux.ring cimport ByteRing

from tunnelmux.errors import StreamClosed, StreamRefused, StreamReset
from tunnelmux.limits import INITIAL_WINDOW as _INITIAL_WINDOW

cdef enum:
    LIGHT = 32_768  # unread bytes of a stream for which it is never reset

cdef int64_t INITIAL_WINDOW = _INITIAL_WINDOW


@cython.final
cdef class EngineStream:
    # A stream is in the session's table until both sides have ended it and it was read to its
    # end, or this side reset it and the reset has left, or the peer reset it (`is_cut`) and what
    # came before was read; `forgotten` says that it is there no more. A forgotten stream is on no
    # list.

    def __cinit__(self, StreamTable table, uint32_t stream_id, bint is_outbound, uint32_t credit):
        self.table = table
        self.owner = None
        self.id = stream_id
        self.is_outbound = is_outbound
        self.error_ = None
        self.inbox = ByteRing.__new__(ByteRing)
        self.outbox = ByteRing.__new__(ByteRing)
        self.send_window = SendWindow(credit)
        self.receive_window = ReceiveWindow()
        self.ack_state = ACK_NEED_SYN if is_outbound else ACK_OFFERED
        self.send_state = SEND_OPEN
        self.receive_state = RECEIVE_OPEN
        init_link(&self.control_link, <void *>self)
        init_link(&self.ready_link, <void *>self)
        init_link(&self.accept_link, <void *>self)
        init_link(&self.timer_link, <void *>self)
        init_link(&self.grown_link, <void *>self)
        self.updated_at = -INFINITY

    def __init__(self, *args):
        raise TypeError("streams are made by Engine.open_stream and Engine.accept_stream")

    def __repr__(self):
        return f"<EngineStream {self.id}>"

    @property
    def is_acknowledged(self):
        return self.ack_state == ACK_DONE or self.ack_state == ACK_OWED

    @property
    def error(self):
        return self.error_

    @property
    def readable(self):
        return (
            self.inbox.size > 0
            or self.remote_fin
            or self.receive_state != RECEIVE_OPEN
            or self.table.error_ is not None
        )

    @property
    def writable(self):
        if self.error_ is not None or self.send_state != SEND_OPEN:
            return True
        return self.send_room() > 0

    @property
    def queued_bytes(self):
        return self.outbox.size

    @property
    def unread_bytes(self):
        return self.inbox.size

    @property
    def send_credit(self):
        return self.send_window.credit_

    @property
    def receive_credit(self):
        return self.receive_window.credit_

    @property
    def window(self):
        return self.receive_window.target_

    def send(self, const uint8_t[::1] data not None, Py_ssize_t start=0):
        cdef StreamTable table = self.table
        cdef Py_ssize_t size = data.shape[0] - start
        cdef Py_ssize_t room
        if start < 0 or size < 0:
            raise ValueError(f"start {start} is outside the {data.shape[0]} bytes given")
        if self.error_ is not None:
            raise self.error_.with_traceback(None)
        if self.send_state != SEND_OPEN:
            raise StreamClosed(f"stream {self.id}: sending was ended by this side")
        room = self.send_room()
        if room < size:
            self.send_was_full = True
            table.send_was_full = True
            size = room
        if size > 0:
            self.outbox.push(&data[start], size)
            table.queued_bytes += size
            table.make_ready(self)
        return size

    def finish(self):
        if self.error_ is not None:
            raise self.error_.with_traceback(None)
        if self.send_state == SEND_OPEN:
            self.send_state = SEND_FIN_QUEUED
            if self.outbox.size == 0:
                self.table.want_control(self)

    def receive(self, Py_ssize_t max_bytes):
        cdef Py_ssize_t size
        cdef bytes out
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        if self.inbox.size:
            size = min(max_bytes, self.inbox.size)
            out = PyBytes_FromStringAndSize(NULL, size)
            self.inbox.pull(<uint8_t *>PyBytes_AS_STRING(out), size)
            self.consumed(size)
            return out
        if self.receive_state == RECEIVE_RESET:
            raise self.error_.with_traceback(None)
        if self.receive_state == RECEIVE_DISCARD:
            raise StreamClosed(f"stream {self.id}: receiving was ended by this side")
        if self.remote_fin:
            return b""
        if self.table.error_ is not None:
            raise self.table.error_.with_traceback(None)
        return None

    def peek(self, Py_ssize_t max_bytes):
        cdef Py_ssize_t size = max(0, min(max_bytes, self.inbox.size))
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        self.inbox.copy_front(<uint8_t *>PyBytes_AS_STRING(out), size)
        return out

    def drop(self, Py_ssize_t size):
        if not 0 <= size <= self.inbox.size:
            raise ValueError(f"{size} bytes are not there to be dropped")
        self.inbox.skip(size)
        self.consumed(size)

    def stop_receiving(self):
        if self.is_cut:
            self.drop_unread()
            self.table.forget(self)
        if self.receive_state != RECEIVE_OPEN:
            return
        self.receive_state = RECEIVE_DISCARD
        self.drop_unread()
        self.give_back(0)
        self.table.note(self)
        self.table.forget_if_over(self)

    def close(self, double now):
        if self.error_ is None:
            self.finish()
        self.stop_receiving()
        if not self.forgotten and not self.remote_fin and self.receive_state == RECEIVE_DISCARD:
            if not is_linked(&self.timer_link) and not isinf(self.table.linger):
                self.timer_at = now + self.table.linger
                append_link(&self.table.linger_timers, &self.timer_link)

    def reset(self, uint32_t code=0):
        self.reset_(code, "this side reset it")

    cdef Py_ssize_t send_room(self) noexcept:
        """How many bytes `send` may take. One frame is every stream's own, however much the others
        have queued: slow readers of some streams must not stop the rest."""
        cdef StreamTable table = self.table
        cdef Py_ssize_t room = table.session_send_buffer - table.queued_bytes
        room = max(room, table.max_frame_payload - self.outbox.size)
        return max(0, min(room, table.stream_send_buffer - self.outbox.size))

    cdef bint sendable(self) noexcept:
        """Whether there is data and the credit to send it."""
        return self.outbox.size > 0 and self.send_window.credit_ > 0

    cdef bint expects_data(self) noexcept:
        """Whether the peer may still send, so that credit means something to it."""
        return not self.remote_fin and self.receive_state != RECEIVE_RESET

    cdef uint16_t take_opening_flags(self) noexcept:
        """The SYN or ACK that the next frame of this stream must carry, once."""
        if self.ack_state == ACK_NEED_SYN:
            self.ack_state = ACK_SYN_SENT
            return SYN
        if self.ack_state == ACK_OWED:
            self.ack_state = ACK_DONE
            return ACK
        return 0

    cdef int drop_queued(self) except -1:
        cdef Py_ssize_t size = self.outbox.size
        self.outbox.reset()
        return self.table.note_room(size)

    cdef void drop_unread(self) noexcept:
        self.table.unread_bytes -= self.inbox.size
        self.receive_window.consume_(self.inbox.size)
        self.inbox.reset()

    cdef int consumed(self, Py_ssize_t size) except -1:
        """*size* received bytes have found their place: count them, and give credit for them."""
        self.table.unread_bytes -= size
        self.give_back(size)
        return self.table.forget_if_over(self)

    cdef void give_back(self, Py_ssize_t size) noexcept:
        """Count *size* bytes as consumed, and have an update sent when one is due.

        This goes for bytes that are not read as well: a peer that waits for credit must go on, to
        learn from the reset of its next data that they are not (hashicorp/yamux#133)."""
        self.receive_window.consume_(size)
        if self.window_share:
            self.table.settle_window(self)
        if self.expects_data() and self.receive_window.update_due_():
            self.table.want_control(self)

    cdef int break_off(self, object error) except -1:
        """Nothing can be sent any more, and nothing received but what is complete already."""
        if self.error_ is None:
            self.error_ = error
        self.send_state = SEND_RESET
        cdef bint was_unknown = self.table.withdraw_offer(self)
        self.drop_queued()
        if not self.remote_fin:
            self.receive_state = RECEIVE_RESET
            if not self.is_cut:
                self.drop_unread()
        if was_unknown:  # no task owns it, and a flood of such streams would pile up
            return 0
        return self.table.note(self)

    cdef int reset_(self, uint32_t code, str reason) except -1:
        if self.forgotten and not self.inbox.size:
            return 0
        if self.is_cut:
            self.receive_state = RECEIVE_RESET
            self.drop_unread()
            return self.table.forget(self)
        if self.receive_state == RECEIVE_RESET and self.send_state == SEND_RESET:
            return 0
        self.break_off(StreamReset(f"stream {self.id}: {reason} (code {code})", code=code))
        self.receive_state = RECEIVE_RESET
        self.drop_unread()
        if self.forgotten:
            return 0
        if self.ack_state == ACK_NEED_SYN:
            return self.table.forget(self)  # the peer has not heard of it: its SYN never left
        if not self.reset_due:
            self.reset_due = True
            self.reset_code = code
            self.table.want_control(self)
        return 0


@cython.final
cdef class WindowBudget:
    # What is spent is never negative, and never more than the capacity.

    def __init__(self, int64_t capacity):
        if capacity < 0:
            raise ValueError(f"a budget cannot be {capacity} bytes: it must not be negative")
        self.capacity = capacity
        self.spent = 0


cdef class StreamTable:
    # The queued bytes of the table are the sum over its streams, and so are the unread ones.
    # `accept_pending` is the length of the accept list, `unacked_opens` the number of streams that
    # hold a slot.

    def __cinit__(self, *args, **kwargs):
        init_link(&self.control_list, NULL)
        init_link(&self.fresh_list, NULL)
        init_link(&self.ready_list, NULL)
        init_link(&self.accept_list, NULL)
        init_link(&self.ack_timers, NULL)
        init_link(&self.linger_timers, NULL)
        init_link(&self.grown_list, NULL)
        self.streams = {}
        self.changed = []

    def __init__(self, limits, WindowBudget process_budget=None):
        self.limits = limits
        self.session_budget = WindowBudget(limits.session_window_budget)
        self.process_budget = process_budget or WindowBudget(limits.process_window_budget)
        self.max_stream_window = min(limits.max_stream_window, <int64_t>1 << 31)
        self.window_idle = limits.window_idle
        self.max_unread_bytes = limits.max_unread_bytes
        self.stream_send_buffer = limits.stream_send_buffer
        self.session_send_buffer = limits.session_send_buffer
        self.max_frame_payload = limits.max_frame_payload
        self.linger = limits.linger

    cdef void grow_window(self, EngineStream stream, double interval, double rtt) noexcept:
        """Double the window of *stream* if it was what held the peer back.

        Half a window was consumed in *interval* seconds. A peer that waits for credit uses a
        window in each round trip, so it needs half of one; up to two, the window is enlarged, so
        that it ends at several times what is in flight and jitter does not stop the peer.

        With much unread it is our reader that is slow: a larger window would only fill memory."""
        cdef ReceiveWindow window = stream.receive_window
        cdef int64_t more = min(window.target_, self.max_stream_window - window.target_)
        if interval >= 2 * rtt or more <= 0 or 4 * window.unread_ > window.target_:
            return
        if self.session_budget.spent + more > self.session_budget.capacity:
            return
        if self.process_budget.spent + more > self.process_budget.capacity:
            return
        self.session_budget.spent += more
        self.process_budget.spent += more
        stream.window_share += more
        window.target_ += more

    cdef void settle_window(self, EngineStream stream) noexcept:
        """Return to the budgets what *stream* cannot use any more."""
        cdef ReceiveWindow window = stream.receive_window
        cdef int64_t share = 0
        if not stream.forgotten:
            share = max(window.target_, window.credit_ + window.unread_) - INITIAL_WINDOW
        if share < stream.window_share:
            share = max(share, 0)
            self.session_budget.spent -= stream.window_share - share
            self.process_budget.spent -= stream.window_share - share
            stream.window_share = share

    cdef int bound_unread(self) except -1:
        """More payload has come. Where too much waits already, reset the stream whose reader has been
        still for longest. All of the first 256 KiB was granted by the protocol, so no credit can be
        withheld; and to read no more would stop all streams for the sake of one."""
        cdef EngineStream stream, victim = None
        if self.unread_bytes < self.max_unread_bytes + self.session_budget.spent:
            return 0
        for stream in self.streams.values():
            if stream.inbox.size > LIGHT and (
                victim is None
                or stream.updated_at < victim.updated_at
                or stream.updated_at == victim.updated_at and stream.inbox.size > victim.inbox.size
            ):
                victim = stream
        if victim is None:
            return 0
        return victim.reset_(0, (
            f"its reader has been still for longest, and {self.unread_bytes} bytes of the session wait "
            f"to be read (limits.max_unread_bytes)"
        ))

    cdef int release_open_slot(self, EngineStream stream) except -1:
        """The open of *stream* was answered, or never will be."""
        if stream.holds_slot:
            stream.holds_slot = False
            self.unacked_opens -= 1
        return 0

    cdef int peer_reset(self, EngineStream stream, uint32_t code) except -1:
        if stream.ack_state == ACK_SYN_SENT:
            error = StreamRefused(f"stream {stream.id}: the peer refused it (code {code})", code=code)
        else:
            error = StreamReset(f"stream {stream.id}: the peer reset it (code {code})", code=code)
        # What the peer said before can still be read, and may say why. Until it was, or is given up,
        # the stream counts like any other: so a peer can make us keep no more than by sending it.
        stream.is_cut = True
        stream.break_off(error)
        if stream.inbox.size == 0:
            return self.forget(stream)
        unlink(&stream.control_link)
        self.stop_timer(stream)
        return self.release_open_slot(stream)

    cdef int peer_fin(self, EngineStream stream) except -1:
        if stream.remote_fin or stream.receive_state == RECEIVE_RESET:
            return 0
        stream.remote_fin = True
        if stream.receive_state == RECEIVE_DISCARD:
            self.stop_timer(stream)
        self.note(stream)
        return self.forget_if_over(stream)

    cdef int forget_if_over(self, EngineStream stream) except -1:
        if stream.inbox.size == 0 and (
            stream.is_cut or stream.remote_fin and stream.send_state == SEND_FIN_SENT
        ):
            return self.forget(stream)
        return 0

    cdef int forget(self, EngineStream stream) except -1:
        """*stream* is over on the wire: its id means nothing any more."""
        if stream.forgotten:
            return 0
        stream.forgotten = True
        unlink(&stream.control_link)
        unlink(&stream.ready_link)
        unlink(&stream.timer_link)
        unlink(&stream.grown_link)
        self.settle_window(stream)
        self.withdraw_offer(stream)
        self.release_open_slot(stream)
        del self.streams[stream.id]
        return self.on_forgotten(stream)

    cdef int withdraw_offer(self, EngineStream stream) except -1:
        """*stream* cannot be accepted any more. True if it was waiting for that; then no caller
        will ever read it.
        """
        if not is_linked(&stream.accept_link):
            return 0
        unlink(&stream.accept_link)
        self.accept_pending -= 1
        self.stop_timer(stream)
        stream.drop_unread()
        return 1

    cdef int on_forgotten(self, EngineStream stream) except -1:
        """For the engine to override."""
        return 0

    cdef int note(self, EngineStream stream) except -1:
        """*stream* has news for `take_changed`."""
        if not stream.in_changed:
            stream.in_changed = True
            self.changed.append(stream)
        return 0

    cdef int note_sent(self, EngineStream stream, Py_ssize_t size) except -1:
        """*size* queued bytes of *stream* have left: tell its sender, if it waits, that there is
        room; but only once half the buffer is free, so that it wakes for a good piece of work."""
        if stream.send_was_full and 2 * stream.outbox.size <= self.stream_send_buffer:
            stream.send_was_full = False
            self.note(stream)
        return self.note_room(size)

    cdef int note_room(self, Py_ssize_t size) except -1:
        """*size* queued bytes of the session are gone: the same for senders that its bound held."""
        cdef EngineStream stream
        self.queued_bytes -= size
        if self.send_was_full and 2 * self.queued_bytes <= self.session_send_buffer:
            self.send_was_full = False
            for stream in self.streams.values():
                self.note(stream)
        return 0

    cdef void spend(self, EngineStream stream, Py_ssize_t size) noexcept:
        """*size* bytes of the stream's credit are used."""
        stream.send_window.spend_(size)
        if stream.send_window.credit_ == 0:
            self.window_stalls += 1

    cdef void want_control(self, EngineStream stream) noexcept:
        if not stream.forgotten and not is_linked(&stream.control_link):
            append_link(&self.control_list, &stream.control_link)

    cdef void make_ready(self, EngineStream stream) noexcept:
        """Queue *stream* for sending if it has data and credit; a stream that sent nothing in
        this round goes before those that did, so that a short message does not wait for a bulk
        transfer."""
        if stream.sendable() and not stream.forgotten and not is_linked(&stream.ready_link):
            append_link(&self.fresh_list, &stream.ready_link)

    cdef void stop_timer(self, EngineStream stream) noexcept:
        unlink(&stream.timer_link)
