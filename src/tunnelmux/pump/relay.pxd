# The C face of a relay.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.yamux.links cimport Link
from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.pump_socket cimport PumpSocket
from tunnelmux.yamux.streams cimport EngineStream
from tunnelmux.pump.tunnel cimport Tunnel


cdef enum:
    TURN = 65536  # bytes read from a local socket in one turn, and the largest frame made of them


cdef enum Outcome:
    RUNNING
    FINISHED
    LOCAL_BROKE
    STREAM_BROKE
    ABORTED
    HANDED_BACK


cdef class Relay(Member):
    cdef readonly Tunnel tunnel
    cdef readonly EngineStream stream
    cdef readonly PumpSocket local
    cdef object stream_owner
    cdef Link wait_link
    cdef bint reads
    cdef bint writes
    cdef bint local_half_closed
    cdef bint connecting
    cdef bytes answer
    cdef readonly double agreed_at
    cdef Py_ssize_t head_size
    cdef Outcome ended_as
    cdef readonly object error
    cdef readonly int64_t bytes_in
    cdef readonly int64_t bytes_out

    cdef int read_local(self) except -1
    cdef Py_ssize_t send_local(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int write_out(self) except -1
    cdef int pass_on_end(self) except -1
    cdef int after_half_close(self) except -1
    cdef int on_connected(self) except -1
    cdef int on_broken(self) except -1
    cdef int look_for_answer(self) except -1
    cdef void wait_for_flush(self) noexcept
    cdef int local_failed(self) except -1
    cdef int stream_failed(self) except -1
    cdef int end(self, Outcome outcome) except -1
    cdef int leave(self) except -1
