# The C face of legs: streams that lead to connections of a target.

from libc.stdint cimport uint8_t

from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.tunnel cimport Tunnel
from tunnelmux.yamux.streams cimport EngineStream


cdef class Leg  # declared below; each needs the other


cdef class LegUser(Member):
    # The calls that a leg makes to its user.
    cdef int on_agreed(self) except -1
    cdef int on_bytes(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int on_leg_end(self, bint in_order) except -1
    cdef int on_leg_bug(self, object error) except -1
    cdef void on_leg_room(self) noexcept


cdef class Route:
    cdef readonly object opener
    cdef readonly bytes answer
    cdef readonly object destination
    cdef public bint has_answered
    cdef list idle
    cdef public Py_ssize_t max_idle
    cdef public double idle_time

    cdef Leg open_leg(self, LegUser user)
    cdef Leg take_idle(self, LegUser user, double now)
    cdef int keep(self, Leg leg, double now) except -1
    cdef int forget(self, Leg leg) except -1


cdef class Leg(Member):
    cdef readonly Route route
    cdef readonly Tunnel tunnel
    cdef readonly EngineStream stream
    cdef LegUser user
    cdef Py_ssize_t matched  # bytes of the agreed answer that have come
    cdef bint agreed
    cdef bint bound  # a login was made on it that belongs to the connection
    cdef readonly Py_ssize_t exchanges  # answered requests it has carried
    cdef double idle_since

    cdef EngineStream release(self)
    cdef int part(self, bint in_order) except -1
    cdef int repay(self, Py_ssize_t size) except -1
    cdef int refused(self) except -1
