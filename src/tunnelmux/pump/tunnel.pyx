"""A session's connection in the pump: payload out of frames, and frames around payload.

Input is unmasked where it lies, in the pump's one input buffer, and fed to the engine. Output, the
frames of relays and of the engine, is gathered in one buffer and sent as one WebSocket message with
one system call. While that is sent, the next message is gathered.
The docstrings of the public names are in `tunnel.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_RawFree
from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from tunnelmux.yamux.engine cimport Engine
from tunnelmux._frame cimport HEADER_BYTES
from tunnelmux.yamux.links cimport Link, append_link, init_link, is_linked, unlink
from tunnelmux.pump.epoll cimport CONTROL_ROOM, INPUT, OUTPUT, Member, Pump
from tunnelmux.pump.pump_socket cimport BROKEN, PumpSocket
from tunnelmux.yamux.streams cimport EngineStream
from tunnelmux.pump.websocket cimport MAX_FRAME_HEAD, FrameReader, write_frame_head, xor_copy

from tunnelmux.errors import RemoteProtocolError

cdef enum:
    FLUSHES = 4  # messages one tunnel sends in one batch
    LEAST_INPUT = 8192  # bytes read from a tunnel whose frames cost much

cdef double TURN = 0.003  # seconds that are too much for one read: of bulk it takes about 1 ms


cdef class PumpedEngine(Engine):
    # A relay or leg that owns a stream gets its payload; payload of the others is kept for Python.

    cdef int deliver(self, EngineStream stream, const uint8_t *data, Py_ssize_t size) except -1:
        if isinstance(stream.owner, Member):
            return (<Member>stream.owner).take_payload(data, size)
        return Engine.deliver(self, stream, data, size)

    cdef void make_ready(self, EngineStream stream) noexcept:
        if isinstance(stream.owner, Member):
            (<Member>stream.owner).on_credit()
        Engine.make_ready(self, stream)


@cython.final
cdef class Tunnel(Member):
    # `out[out_at:out_end]` is being sent, and is freed after that. `fill` holds `filled`
    # bytes of payload behind its gap; it becomes `out` when that is free. No buffer is held while
    # there is nothing to send.

    def __cinit__(self, *args, **kwargs):
        init_link(&self.dirty_link, <void *>self)
        init_link(&self.waiting, NULL)
        self.controls = []
        self.deadline = INFINITY

    def __init__(self, Pump pump not None, PumpedEngine engine not None,
                 PumpSocket wire not None, FrameReader frames, bint masks, owner):
        self.pump = pump
        self.engine = engine
        self.wire = wire
        wire.portion = MAX_FRAME_HEAD + OUTPUT + CONTROL_ROOM  # a flush takes one call
        self.fd = wire.fd
        self.frames = frames
        self.masks = masks
        self.portion, self.turn = INPUT, TURN
        self.owner = owner
        self.last_received = engine.liveness.last_inbound
        pump.add(self)

    def __dealloc__(self):
        unlink(&self.dirty_link)
        if self.fill != NULL:
            PyMem_RawFree(self.fill)
        if self.out != NULL:
            PyMem_RawFree(self.out)

    @property
    def is_drained(self):
        return not self.is_sending() and self.filled == 0 and not self.controls and (
            not self.engine.wants_send_()
        )

    @property
    def controls_waiting(self):
        return len(self.controls)

    def want_flush(self):
        if self.registered:
            self.mark_dirty()
            self.pump.wake()

    def queue_control(self, bytes frame not None):
        self.controls.append(frame)
        self.want_flush()

    def feed(self, const uint8_t[::1] payload not None, double now):
        if payload.shape[0]:
            self.pump.now = now
            self.bytes_received += payload.shape[0]
            try:
                self.engine.feed(&payload[0], payload.shape[0], now)
            except RemoteProtocolError:
                pass
            self.after_touch()
        self.pump.now = now
        self.receive()  # under TLS, there may be records that were read and not decrypted
        self.pump.wake()

    def withdraw(self):
        self.ended = True
        self.pump.tell(self)
        self.pump.remove(self)
        self.pump.wake()

    def detach(self):
        cdef bint torn = self.is_sending()
        cdef Link *link
        self.pump.remove(self)
        unlink(&self.dirty_link)
        while is_linked(&self.waiting):
            unlink(self.waiting.following)
        if self.fill != NULL:
            self.pump.give_buffer(self.fill)
        if self.out != NULL:
            self.pump.give_buffer(self.out)
        self.fill = self.out = NULL
        # What the engine gave and was not sent is lost, so the byte stream is cut.
        torn = torn or self.filled > 0
        self.out_at = self.out_end = self.filled = 0
        return torn

    # -- the pump's calls -----------------------------------------------------------------------

    cdef int on_event(self, uint32_t events) except -1:
        self.wire.on_event(events)
        if self.wire.can_write and (self.is_sending() or is_linked(&self.waiting)):
            self.mark_dirty()
        return self.receive() if self.wire.can_read else 0

    cdef int take_turn(self) except -1:
        return self.receive()

    cdef int fail(self, object error) except -1:
        if not self.ended:
            self.ended = True
            self.lost = error
        return self.pump.tell(self)

    # -- input ------------------------------------------------------------------------------------

    cdef int receive(self) except -1:
        """Read a portion that does not take long: in small frames the same bytes cost a hundred times
        as much, and all others wait."""
        cdef ssize_t n
        cdef double began
        if self.ended or self.engine.error_ is not None:
            return 0
        n = self.wire.read_into(self.pump.input, self.portion)
        if self.wire.can_read:
            self.want_turn()  # after the turns of all others
        if self.wire.is_sending():
            self.mark_dirty()
        if n > 0:
            began = self.pump.moment()
            self.take(self.pump.input, n)
            if self.pump.moment() - began > self.turn:
                self.portion = max(LEAST_INPUT, self.portion // 4)
            else:
                self.portion = min(INPUT, self.portion * 2)
            return 0
        if n == 0:  # the next owner of the socket meets the end again, and finds out how it came
            self.ended = True
            return self.pump.tell(self)
        return self.fail(self.wire.error) if n == BROKEN else 0

    cdef int take(self, uint8_t *data, Py_ssize_t size) except -1:
        self.last_received = self.pump.now
        try:
            if self.frames is not None:
                self.read_frames(data, size)
            else:
                self.bytes_received += size
                self.engine.feed(data, size, self.pump.now)
        except RemoteProtocolError:
            pass  # the engine is closed with it, and has a GoAway to send
        return self.after_touch()

    cdef int read_frames(self, uint8_t *data, Py_ssize_t size) except -1:
        """Unmask payload where it lies, and feed it to the engine."""
        cdef FrameReader frames = self.frames
        cdef Py_ssize_t used = 0, took
        while used < size and frames.goes_on():
            used += frames.take_head(data + used, size - used)
            if frames.left and frames.goes_on():
                took = frames.take_body(data + used, size - used, data + used)
                if frames.given:
                    self.bytes_received += took
                    self.engine.feed(data + used, took, self.pump.now)
                used += took
        if frames.close is not None or frames.error is not None:
            self.ended = True
        if self.ended or frames.has_control_():
            self.pump.tell(self)
        return 0

    cdef int after_touch(self) except -1:
        """Call it when the engine was given something: tell relays and Python what has changed."""
        cdef Engine engine = self.engine
        cdef list changed
        cdef EngineStream stream
        cdef bint tell = self.watched, again
        while True:
            changed = engine.changed
            engine.changed = []
            again = False
            for stream in changed:
                if isinstance(stream.owner, Member):
                    stream.in_changed = False
                    (<Member>stream.owner).on_change()
                    again = True
                elif stream.owner is None:
                    stream.in_changed = False
                else:
                    engine.changed.append(stream)
                    tell = True
            if not again:
                break
        if tell or engine.error_ is not None or engine.accept_pending or engine.remote_go_away_:
            self.pump.tell(self)
        elif engine.deadline() < self.deadline:
            self.pump.tell(self)
        if engine.wants_send_():
            self.mark_dirty()
        return 0

    # -- output -----------------------------------------------------------------------------------

    cdef void mark_dirty(self) noexcept:
        if self.registered and not is_linked(&self.dirty_link):
            append_link(&self.pump.dirty, &self.dirty_link)

    cdef Py_ssize_t space(self) noexcept:
        """How many bytes of payload a frame can have now."""
        if not self.registered or self.ended or self.engine.error_ is not None:
            return 0
        return OUTPUT - self.filled - HEADER_BYTES

    cdef uint8_t *place(self) except NULL:
        """Where the next frame begins."""
        if self.fill == NULL:
            self.fill = self.pump.take_buffer()
        return self.fill + MAX_FRAME_HEAD + self.filled

    cdef int flush(self) except -1:
        cdef int i
        if not self.registered:
            return 0
        for i in range(FLUSHES):
            if self.is_sending() and not self.push_out():
                return 0  # go on when the socket takes more
            if not self.seal():
                self.resume_waiting()
                return self.pump.tell(self) if self.watched else 0
            self.resume_waiting()
        self.mark_dirty()
        return 0

    cdef bint seal(self) except -1:
        """Make one message of all that waits to be sent; False when nothing waits."""
        cdef Pump pump = self.pump
        cdef uint8_t *payload
        cdef Py_ssize_t size
        if self.engine.wants_send_() and OUTPUT - self.filled >= SENSIBLE:
            payload = self.place()
            size = self.engine.drain(payload, OUTPUT - self.filled, pump.now)
            self.filled += size
            self.after_touch()
        if self.filled == 0 and not self.controls:
            if self.fill != NULL:
                pump.give_buffer(self.fill)
                self.fill = NULL
            return False
        return self.send_message() or True

    cdef bint send_gathered(self) except -1:
        """Send what relays have gathered now, and make room for more, if the socket takes it. The
        engine is not asked for more, so that a relay may call this while it is given payload."""
        if not self.registered or self.filled == 0 or self.is_sending():
            return False
        return self.send_message()

    cdef bint send_message(self) except -1:
        """Make one message of what is gathered, and of control frames. True when all was sent."""
        cdef Pump pump = self.pump
        cdef const uint8_t *mask = NULL
        cdef uint8_t *payload
        cdef Py_ssize_t end
        cdef bytes frame
        self.place()
        payload = self.fill + MAX_FRAME_HEAD
        self.out_at = MAX_FRAME_HEAD
        end = MAX_FRAME_HEAD + self.filled
        if self.frames is not None and self.filled:
            if self.masks:
                mask = pump.next_mask()
                xor_copy(payload, payload, self.filled, mask, 0)
            self.out_at -= write_frame_head(payload, self.filled, mask)
        while self.controls:
            frame = self.controls[0]
            if end - MAX_FRAME_HEAD - self.filled + len(frame) > CONTROL_ROOM:
                break
            memcpy(self.fill + end, PyBytes_AS_STRING(frame), len(frame))
            end += len(frame)
            del self.controls[0]
            pump.tell(self)
        self.bytes_sent += self.filled
        self.out, self.out_end = self.fill, end
        self.fill = NULL
        self.filled = 0
        self.messages += 1
        return self.push_out()

    cdef bint is_sending(self) except -1:
        """Whether there is a message that was made and is not yet sent."""
        return self.out != NULL or self.wire.is_sending()

    cdef bint push_out(self) except -1:
        """Send the message that was made. True when all of it was sent."""
        cdef ssize_t n
        while self.out_at < self.out_end:
            if self.ended and self.lost is not None:
                return False
            n = self.wire.write(self.out + self.out_at, self.out_end - self.out_at)
            if n == BROKEN:
                self.on_broken()
                return False
            if n == 0:
                return False
            self.out_at += n
        if self.out != NULL:
            self.pump.give_buffer(self.out)
            self.out = NULL
            self.out_at = self.out_end = 0
        return self.wire.flush()

    cdef int on_broken(self) except -1:
        """Nothing can be sent any more. Read what the peer sent before that first."""
        if self.engine.error_ is not None:
            return self.fail(self.wire.error)
        self.want_turn()
        return 0

    cdef void resume_waiting(self) noexcept:
        cdef Link *link
        while is_linked(&self.waiting):
            link = self.waiting.following
            unlink(link)
            (<Member>link.owner).want_turn()
