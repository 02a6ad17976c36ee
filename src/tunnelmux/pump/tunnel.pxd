# The C face of a tunnel, for relays and legs.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.yamux.engine cimport Engine
from tunnelmux.yamux.links cimport Link
from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.pump_socket cimport PumpSocket
from tunnelmux.pump.websocket cimport FrameReader


cdef enum:
    SENSIBLE = 1024  # bytes of room: with less, a read is not worth its cost


cdef class PumpedEngine(Engine):
    pass


cdef class Tunnel(Member):
    cdef readonly PumpedEngine engine
    cdef PumpSocket wire
    cdef FrameReader frames
    cdef bint masks
    cdef readonly Py_ssize_t portion
    cdef public double turn
    cdef uint8_t *fill
    cdef Py_ssize_t filled
    cdef int64_t messages
    cdef uint8_t *out
    cdef Py_ssize_t out_at
    cdef Py_ssize_t out_end
    cdef list controls
    cdef Link dirty_link
    cdef Link waiting
    cdef public bint watched
    cdef public double deadline
    cdef readonly bint ended
    cdef readonly object lost
    cdef readonly double last_received
    cdef readonly int64_t bytes_received
    cdef readonly int64_t bytes_sent

    cdef void mark_dirty(self) noexcept
    cdef Py_ssize_t space(self) noexcept
    cdef uint8_t *place(self) except NULL
    cdef int receive(self) except -1
    cdef bint is_sending(self) except -1
    cdef int on_broken(self) except -1
    cdef int take(self, uint8_t *data, Py_ssize_t size) except -1
    cdef int read_frames(self, uint8_t *data, Py_ssize_t size) except -1
    cdef int after_touch(self) except -1
    cdef bint seal(self) except -1
    cdef bint send_gathered(self) except -1
    cdef bint send_message(self) except -1
    cdef bint push_out(self) except -1
    cdef void resume_waiting(self) noexcept
