"""Two streams of two sessions, joined: what comes on one leaves on the other.

Payload goes from the pump's input buffer into the output buffer of the other session's tunnel, as
frames of the other stream. A piece that follows another one in the same buffer lengthens its frame,
so that what comes in many small frames leaves in a large one. What that stream's window or its
tunnel does not take now is kept in the inbox of the stream that it came on, bounded by its window:
the peer gets credit for what was passed on only. An orderly end is passed on as one, every other
end as a reset, behind what came before it.
The docstrings of the public names are in `joined.pyi`.
"""

cimport cython

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from tunnelmux._frame cimport HEADER_BYTES, write_u32
from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.tunnel cimport SENSIBLE, Tunnel
from tunnelmux.yamux.links cimport append_link, init_link, is_linked, unlink
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport EngineStream

cdef enum:
    LARGEST = 65536  # bytes of payload in a frame, as in those of a relay


def join_streams(Tunnel one_tunnel not None, EngineStream one not None,
                 Tunnel other_tunnel not None, EngineStream other not None, owner=None):
    cdef JoinedStream first, second
    if one_tunnel.pump is not other_tunnel.pump:
        raise ValueError("the two tunnels are in different pumps")
    if isinstance(one.owner, Member) or isinstance(other.owner, Member):
        raise ValueError(f"stream {one.id} or {other.id} is relayed already")
    first = JoinedStream.__new__(JoinedStream)
    second = JoinedStream.__new__(JoinedStream)
    first.tunnel, first.stream, first.other = one_tunnel, one, second
    second.tunnel, second.stream, second.other = other_tunnel, other, first
    first.owner = owner
    for end in (first, second):
        (<JoinedStream>end).pump = one_tunnel.pump
        (<JoinedStream>end).fd = -1
        (<JoinedStream>end).registered = True
        (<JoinedStream>end).stream.owner = end
    first.want_turn()
    second.want_turn()
    first.pump.wake()
    return first


@cython.final
cdef class JoinedStream(Member):
    # A member without a descriptor, and so not in the pump's table: it owns its stream, which keeps
    # it alive. `other` is None once both are over. Its last frame ends the other tunnel's buffer,
    # and can become longer, while that is the buffer of message `frame_message`, filled to `frame_end`.

    def __cinit__(self, *args, **kwargs):
        init_link(&self.wait_link, <void *>self)

    def __init__(self, *args):
        raise TypeError("joined streams are made by join_streams")

    def __dealloc__(self):
        unlink(&self.wait_link)

    @property
    def is_over(self):
        return self.other is None

    def abort(self):
        if self.other is not None:
            self.end(False)
            self.pump.wake()

    def _wake(self):
        self.on_change()
        self.pump.wake()

    # -- the pump's and the engine's calls ----------------------------------------------------------

    cdef int take_turn(self) except -1:
        return self.carry()

    cdef int fail(self, object error) except -1:
        return self.end(False)

    cdef int on_change(self) except -1:
        cdef JoinedStream held = self  # keeps a reference: the stream may drop its own
        return held.carry()

    cdef void on_credit(self) noexcept:
        if self.other is not None:
            self.other.want_turn()

    cdef int take_payload(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Pass bytes on as far as the other stream takes them; put the rest in the inbox."""
        cdef JoinedStream held = self
        cdef EngineStream stream = self.stream
        cdef Py_ssize_t passed = 0
        if stream.inbox.size == 0:
            passed = self.pass_on(data, size)
            stream.table.unread_bytes += passed
            stream.consumed(passed)
        if passed < size:
            stream.inbox.push(data + passed, size - passed)
            stream.table.unread_bytes += size - passed
        return 0

    # -- from this stream to the other ----------------------------------------------------------------

    cdef Py_ssize_t pass_on(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Make frames of the other stream; how many bytes they have taken."""
        cdef EngineStream onward
        cdef Tunnel tunnel
        cdef Py_ssize_t passed = 0, room, part
        while passed < size and self.other is not None:
            onward, tunnel = self.other.stream, self.other.tunnel
            if tunnel.engine.frame_room(onward) == 0:
                if onward.sendable():  # the next flush first sends what Python has queued
                    self.wait_for_flush(tunnel)
                break  # else `on_credit` gives the next turn, or `on_change` ends both
            part = min(min(onward.send_window.credit_, LARGEST), size - passed)
            room = tunnel.space()
            if room < min(part, SENSIBLE):
                if tunnel.send_gathered():
                    continue
                self.wait_for_flush(tunnel)
                break
            passed += self.place(onward, tunnel, data + passed, min(part, room))
        return passed

    cdef Py_ssize_t place(self, EngineStream onward, Tunnel tunnel, const uint8_t *data,
                          Py_ssize_t size) except -1:
        """Put bytes behind those of the last frame, if that is this stream's and takes more, else
        in a frame of their own; how many bytes that were."""
        cdef uint8_t *gap = tunnel.place()
        if 0 < self.frame_size < LARGEST and (
            self.frame_message == tunnel.messages and self.frame_end == tunnel.filled
        ):
            size = min(size, LARGEST - self.frame_size)
            memcpy(gap, data, size)
            self.frame_size += size
            write_u32(gap + size - self.frame_size - 4, <uint32_t>self.frame_size)
            tunnel.engine.spend(onward, size)
        else:
            memcpy(gap + HEADER_BYTES, data, size)
            tunnel.engine.place_frame(onward, gap, size)
            tunnel.filled += HEADER_BYTES
            self.frame_size = size
        tunnel.filled += size
        self.frame_message, self.frame_end = tunnel.messages, tunnel.filled
        tunnel.mark_dirty()
        return size

    cdef int carry(self) except -1:
        """Pass on what the inbox holds, and then the end, if that has come."""
        cdef EngineStream stream = self.stream
        cdef ByteRing inbox = stream.inbox
        cdef Py_ssize_t n
        if self.other is None:
            return 0
        while inbox.size:
            n = self.pass_on(inbox.base + inbox.head, min(inbox.size, inbox.capacity_ - inbox.head))
            if n == 0:
                break
            inbox.skip(n)
            stream.consumed(n)
        if self.tunnel.engine.wants_send_():
            self.tunnel.mark_dirty()
        if inbox.size and self.other.stream.error_ is None:
            return 0
        if stream.error_ is not None:
            return self.end(False)
        if stream.remote_fin and not inbox.size and not self.passed_end:
            self.passed_end = True
            if self.other.passed_end:
                return self.end(True)
            if self.other.stream.error_ is None:
                self.other.stream.finish()
                self.other.tunnel.mark_dirty()
        return 0

    cdef int wait_for_flush(self, Tunnel tunnel) except -1:
        if tunnel.registered:  # else its session ends, and with it the stream
            if not is_linked(&self.wait_link):
                append_link(&tunnel.waiting, &self.wait_link)
            tunnel.mark_dirty()
        return 0

    # -- the end --------------------------------------------------------------------------------------

    cdef int end(self, bint in_order) except -1:
        """End both streams: close them when both directions have ended in order, else reset them."""
        cdef JoinedStream held = self, other = self.other
        if other is None:
            return 0
        for end in (held, other):
            (<JoinedStream>end).leave()
            if in_order:
                (<JoinedStream>end).stream.close(self.pump.now)
            else:
                (<JoinedStream>end).stream.reset_(0, "the stream that it was joined to was cut")
            (<JoinedStream>end).tunnel.mark_dirty()
            if (<JoinedStream>end).owner is not None:
                self.pump.tell(<JoinedStream>end)
        return 0

    cdef int leave(self) except -1:
        """Give up owning the stream, and forget the other one."""
        self.registered = False
        unlink(&self.turn_link)
        unlink(&self.wait_link)
        self.other = None
        if self.stream.owner is self:
            self.stream.owner = None
        return 0
