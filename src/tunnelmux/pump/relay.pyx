"""A stream joined to a local socket, in the pump.

The socket is read straight into the tunnel's output buffer, behind a gap for the frame's header.
Payload goes from the pump's input buffer straight to the socket. What the kernel does not take is
kept in the stream's inbox, bounded by its window. An orderly end is passed on as one (a FIN frame is a
shutdown(SHUT_WR) on the socket), every other end as a reset, behind what came before it.
The docstrings of the public names are in `relay.pyi`.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from tunnelmux._frame cimport HEADER_BYTES
from tunnelmux.yamux.links cimport append_link, init_link, is_linked, unlink
from tunnelmux.pump.epoll cimport EPOLLERR, EPOLLHUP, EPOLLOUT, Member
from tunnelmux.pump.pump_socket cimport BROKEN, NOTHING, PumpSocket
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport RECEIVE_RESET, EngineStream
from tunnelmux.pump.tunnel cimport SENSIBLE, Tunnel

cdef enum:
    LONGEST_ANSWER = 64  # bytes of the answer a relay may wait for before it lets payload through

_OUTCOMES = (None, "finished", "local broke", "stream broke", "aborted", "handed back")


cdef class Relay(Member):
    # A relay owns its stream while it runs: `stream.owner` is the relay. It is a member of the
    # pump from its start to its end.

    def __cinit__(self, *args, **kwargs):
        init_link(&self.wait_link, <void *>self)

    def __init__(self, Tunnel tunnel not None, EngineStream stream not None, socket, owner):
        if isinstance(stream.owner, Member):
            raise ValueError(f"stream {stream.id} is relayed already")
        self.pump = tunnel.pump
        self.tunnel = tunnel
        self.stream = stream
        self.local = socket if isinstance(socket, PumpSocket) else PumpSocket(socket)
        self.fd = self.local.fd
        self.owner = owner
        self.stream_owner = stream.owner

    @property
    def socket(self):
        return self.local.socket

    @property
    def outcome(self):
        return _OUTCOMES[self.ended_as]

    def __dealloc__(self):
        unlink(&self.wait_link)

    def start(self):
        self.reads = self.writes = True
        self.stream.owner = self
        self.pump.add(self)
        self.want_turn()
        self.on_change()
        self.pump.wake()

    def start_connecting(self, bytes answer not None, Py_ssize_t head_size):
        self.connecting = True
        self.answer = answer
        self.head_size = head_size
        self.stream.owner = self
        self.pump.add(self)

    def start_awaiting(self, bytes answer not None, bint reads=True):
        if len(answer) > LONGEST_ANSWER:
            raise ValueError(
                f"the answer has {len(answer)} bytes: a relay waits for {LONGEST_ANSWER} at most"
            )
        self.reads = reads
        self.answer = answer
        self.stream.owner = self
        self.pump.add(self)
        self.want_turn()
        self.pump.wake()

    def abort(self):
        if self.ended_as == RUNNING:
            self.end(ABORTED)
            self.pump.wake()

    def hand_back(self):
        if self.ended_as == RUNNING:
            self.end(HANDED_BACK)
            self.pump.wake()

    def _wake(self):
        self.on_change()
        self.pump.wake()

    @property
    def is_agreed(self):
        return self.answer is None

    # -- the pump's calls -------------------------------------------------------------------------

    cdef int on_event(self, uint32_t events) except -1:
        self.local.on_event(events)
        if self.connecting:
            if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
                return self.on_connected()
            return 0
        if self.local.error is not None:
            return self.on_broken()
        if self.local.can_write and (self.stream.inbox.size or self.local.is_sending()):
            if self.writes:
                self.write_out()
                if self.tunnel.engine.wants_send_():
                    self.tunnel.mark_dirty()
        if self.local.can_read:
            self.want_turn()
        return 0

    cdef int take_turn(self) except -1:
        return self.read_local()

    cdef int fail(self, object error) except -1:
        if self.error is None:
            self.error = error
        return self.end(LOCAL_BROKE)

    cdef void on_credit(self) noexcept:
        if self.local.can_read:
            self.want_turn()

    # -- from the local socket to the stream ------------------------------------------------------

    cdef int read_local(self) except -1:
        cdef Tunnel tunnel = self.tunnel
        cdef EngineStream stream = self.stream
        cdef Py_ssize_t room, space
        cdef ssize_t n
        cdef uint8_t *gap
        if not self.reads or not self.local.can_read or self.local.at_end:
            return 0
        if self.ended_as != RUNNING:
            return 0
        room = tunnel.engine.frame_room(stream)
        if room == 0:
            if stream.sendable():  # the next flush first sends what Python has queued
                self.wait_for_flush()
            return 0  # else `on_credit` gives the next turn, or `on_change` ends the relay
        space = tunnel.space()
        if space < SENSIBLE:
            self.wait_for_flush()
            return 0
        room = min(min(stream.send_window.credit_, TURN), space)
        gap = tunnel.place()
        n = self.local.read_into(gap + HEADER_BYTES, room)
        tunnel.mark_dirty()  # even without payload: it may have to give an unused buffer back
        if n > 0:
            tunnel.engine.place_frame(stream, gap, n)
            tunnel.filled += HEADER_BYTES + n
            self.bytes_in += n
            if self.local.can_read:
                self.want_turn()
        elif n == 0:
            stream.finish()
            if self.local_half_closed:
                self.end(FINISHED)
        elif n == BROKEN:
            self.local_failed()
        return 0

    cdef void wait_for_flush(self) noexcept:
        if not is_linked(&self.wait_link):
            append_link(&self.tunnel.waiting, &self.wait_link)
        self.tunnel.mark_dirty()

    # -- from the stream to the local socket ------------------------------------------------------

    cdef int take_payload(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Send bytes of the stream to the socket, as far as it takes them; put the rest in the inbox."""
        cdef EngineStream stream = self.stream
        cdef Py_ssize_t n = 0
        if self.writes and self.local.can_write and stream.inbox.size == 0:
            n = self.send_local(data, size)
            if self.ended_as != RUNNING:
                return 0
            stream.table.unread_bytes += n
            stream.consumed(n)
        if n < size:
            stream.inbox.push(data + n, size - n)
            stream.table.unread_bytes += size - n
            if self.answer is not None and not self.connecting:
                self.look_for_answer()
        return 0

    cdef Py_ssize_t send_local(self, const uint8_t *data, Py_ssize_t size) except -1:
        """How many bytes the socket took."""
        cdef Py_ssize_t taken = 0
        cdef ssize_t n
        while taken < size and self.local.can_write:
            n = self.local.write(data + taken, size - taken)
            if n == BROKEN:
                self.on_broken()
                break
            if n == 0:
                break
            taken += n
        self.bytes_out += taken
        return taken

    cdef int write_out(self) except -1:
        """Write what the inbox holds to the socket, and then the end, if that has come."""
        cdef EngineStream stream = self.stream
        cdef ByteRing inbox = stream.inbox
        cdef Py_ssize_t n
        self.local.flush()
        while inbox.size and self.local.can_write:
            n = self.send_local(inbox.base + inbox.head, min(inbox.size, inbox.capacity_ - inbox.head))
            if n == 0:
                break
            inbox.skip(n)
            stream.consumed(n)
        if self.ended_as != RUNNING or self.local.error is not None or self.local.is_sending():
            return 0
        return self.pass_on_end()

    cdef int pass_on_end(self) except -1:
        """Pass the stream's end on, if it has come and all before it was written."""
        cdef EngineStream stream = self.stream
        if not self.writes or stream.inbox.size or self.local_half_closed:
            return self.after_half_close()
        if stream.remote_fin:
            self.local_half_closed = True
            if self.local.at_end and self.local.tls is None:
                return self.end(FINISHED)  # its owner closes the socket, which sends the FIN
            self.local.end_writing()
            if self.local.error is not None:
                return self.on_broken()
            return self.after_half_close()
        elif stream.error_ is not None:
            return self.stream_failed()
        return 0

    # -- what happens to the stream ---------------------------------------------------------------

    cdef int on_change(self) except -1:
        cdef EngineStream stream = self.stream
        if self.ended_as != RUNNING:
            return 0
        if stream.error_ is not None and not (
            # Both directions have ended in order: what happens to the session does not matter.
            self.local.at_end and stream.remote_fin and stream.receive_state != RECEIVE_RESET
        ):
            # What the peer sent before it reset the stream is passed on first.
            if not self.writes or self.local.error is not None or (
                stream.inbox.size == 0 and not self.local.is_sending()
            ):
                return self.stream_failed()
            return self.write_out()
        if self.connecting:
            return 0
        if self.answer is not None:
            if stream.remote_fin:
                return self.end(HANDED_BACK)
            return 0
        if self.local.can_read:
            self.want_turn()
        return self.write_out()

    cdef int after_half_close(self) except -1:
        """End the relay under TLS once the stream's end was sent: not every peer supports a
        half-close there."""
        if self.local_half_closed and self.local.tls is not None and not self.local.is_sending():
            return self.end(FINISHED)
        return 0

    cdef int stream_failed(self) except -1:
        self.error = self.stream.error_
        return self.end(STREAM_BROKE)

    # -- before bytes flow --------------------------------------------------------------------------

    cdef int on_connected(self) except -1:
        """The socket was connected, or could not be: then Python gets the stream back."""
        cdef int code
        if self.local.error is None and (code := self.local.pending_error()) != 0:
            self.local.fail(code)
        if self.local.error is not None and not self.local.has_input():
            self.error = self.local.error
            return self.end(HANDED_BACK)
        self.connecting = False
        self.reads = self.writes = True
        self.agreed_at = self.pump.now
        answer, self.answer = self.answer, None
        self.stream.drop(self.head_size)
        self.stream.send(answer)
        self.want_turn()
        self.on_change()
        self.tunnel.mark_dirty()
        return 0

    cdef int look_for_answer(self) except -1:
        """Let payload through when the agreed answer has come; hand anything else to Python."""
        cdef ByteRing inbox = self.stream.inbox
        cdef Py_ssize_t size = len(self.answer)
        cdef uint8_t head[LONGEST_ANSWER]
        if inbox.size < size:
            return 0
        inbox.copy_front(head, size)
        if memcmp(head, PyBytes_AS_STRING(self.answer), size) != 0:
            return self.end(HANDED_BACK)
        self.answer = None
        self.agreed_at = self.pump.now
        inbox.skip(size)
        self.stream.consumed(size)
        self.reads = self.writes = True
        self.want_turn()
        return self.write_out()

    # -- the end ----------------------------------------------------------------------------------

    cdef int on_broken(self) except -1:
        """The socket broke: pass on what it still holds, before the stream is reset."""
        if not self.reads or self.local.at_end:
            return self.local_failed()
        self.want_turn()
        return 0

    cdef int local_failed(self) except -1:
        if self.error is None:
            self.error = self.local.error
        return self.end(LOCAL_BROKE)

    cdef int end(self, Outcome outcome) except -1:
        if self.ended_as != RUNNING:
            return 0
        self.ended_as = outcome
        self.leave()
        if outcome == FINISHED:
            self.stream.close(self.pump.now)
        elif outcome != HANDED_BACK:
            if outcome == STREAM_BROKE and self.bytes_out:
                self.pump.delay_reset(self.fd)
            self.stream.reset_(0, "the relay was cut")
        self.tunnel.mark_dirty()
        return self.pump.tell(self)

    cdef int leave(self) except -1:
        """Give the stream back to its owner, and the socket to its owner."""
        self.pump.remove(self)
        unlink(&self.wait_link)
        if self.stream.owner is self:
            self.stream.owner = self.stream_owner
        return 0
