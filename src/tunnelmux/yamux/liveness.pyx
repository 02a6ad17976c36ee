"""Pings: whether the peer lives, how far away it is, how often it asks. Time is an argument.

Any byte from the peer is a sign of life; a ping is sent only after silence, or to measure the
round trip when something depends on it.
"""

cimport cython

from libc.math cimport INFINITY
from libc.stdint cimport uint32_t

cdef enum:
    RTT_AGE = 10  # seconds after which a busy session measures its round trip again
    BEST_RTT_AGE = 30  # seconds after which the shortest one is forgotten: paths change


@cython.final
cdef class Liveness:
    # At most one ping is outstanding, and an answer to any other value is none.

    def __init__(self, double interval, double timeout, double now):
        self.interval = interval
        self.timeout = timeout
        self.last_inbound = now
        self.ping_sent_at = -INFINITY
        self.best_rtt = INFINITY
        self.best_rtt_at = -INFINITY
        self.requests_since = now

    cdef void heard(self, double now) noexcept:
        """Bytes came."""
        self.last_inbound = now
        self.probing = False

    cdef void want_ping(self) noexcept:
        if not self.ping_out:
            self.ping_due = True

    cdef void want_fresh_rtt(self, double now) noexcept:
        """The caller needs the round trip: have it measured if that was not done lately."""
        if now >= self.ping_sent_at + RTT_AGE:
            self.want_ping()

    cdef uint32_t take_ping(self, double now) noexcept:
        """The value of the ping that leaves now."""
        self.ping_due = False
        self.ping_out = True
        self.ping_sent_at = now
        return self.ping_value

    cdef int answered(self, uint32_t value, double now) except -1:
        """An answer with *value* came; anything but the one we wait for is ignored."""
        cdef double rtt = now - self.ping_sent_at
        if not self.ping_out or value != self.ping_value:
            return 0
        self.ping_out = False
        self.ping_value += 1
        self.pings_answered += 1
        self.rtt = rtt
        # The shortest counts: the others have waited behind data on the way.
        if rtt <= self.best_rtt or now >= self.best_rtt_at + BEST_RTT_AGE:
            self.best_rtt = rtt
            self.best_rtt_at = now
        return 0

    cdef Py_ssize_t count_request(self, double now) noexcept:
        """The peer sent a ping of its own: how many that makes in the running second."""
        if now >= self.requests_since + 1.0:
            self.requests_since = now
            self.requests = 0
        self.requests += 1
        return self.requests

    cdef double deadline(self) noexcept:
        """When `is_dead` must be called next."""
        if self.probing:
            return self.probe_since + self.timeout
        return self.last_inbound + self.interval

    cdef bint is_dead(self, double now) noexcept:
        """Whether the peer was silent for too long; a ping is asked for when it may be."""
        if now < self.deadline():
            return False
        if self.probing:
            return True
        self.probing = True
        self.probe_since = now
        self.want_ping()
        return False
