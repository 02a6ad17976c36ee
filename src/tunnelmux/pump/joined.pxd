# The C face of joined streams.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.tunnel cimport Tunnel
from tunnelmux.yamux.links cimport Link
from tunnelmux.yamux.streams cimport EngineStream


cdef class JoinedStream(Member):
    cdef Tunnel tunnel
    cdef EngineStream stream
    cdef JoinedStream other
    cdef Link wait_link
    cdef bint passed_end
    cdef int64_t frame_message
    cdef Py_ssize_t frame_end
    cdef Py_ssize_t frame_size

    cdef Py_ssize_t pass_on(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t place(self, EngineStream onward, Tunnel tunnel, const uint8_t *data,
                          Py_ssize_t size) except -1
    cdef int carry(self) except -1
    cdef int wait_for_flush(self, Tunnel tunnel) except -1
    cdef int end(self, bint in_order) except -1
    cdef int leave(self) except -1
