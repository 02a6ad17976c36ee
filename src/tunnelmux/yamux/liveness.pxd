from libc.stdint cimport uint32_t


cdef class Liveness:
    cdef double interval
    cdef double timeout
    cdef double last_inbound
    cdef bint probing
    cdef double probe_since
    cdef bint ping_due
    cdef bint ping_out
    cdef uint32_t ping_value
    cdef double ping_sent_at
    cdef readonly Py_ssize_t pings_answered
    cdef readonly object rtt
    cdef double best_rtt
    cdef double best_rtt_at
    cdef double requests_since
    cdef Py_ssize_t requests

    cdef void heard(self, double now) noexcept
    cdef void want_ping(self) noexcept
    cdef void want_fresh_rtt(self, double now) noexcept
    cdef uint32_t take_ping(self, double now) noexcept
    cdef int answered(self, uint32_t value, double now) except -1
    cdef Py_ssize_t count_request(self, double now) noexcept
    cdef double deadline(self) noexcept
    cdef bint is_dead(self, double now) noexcept
