# The C face of the HTTP relay.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from tunnelmux.pump.followers cimport AnswerFollower, RequestFollower
from tunnelmux.pump.legs cimport Leg, LegUser, Route
from tunnelmux.pump.pump_socket cimport PumpSocket
from tunnelmux.pump.sockets cimport LingeringClose
from tunnelmux.yamux.links cimport Link
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport EngineStream


cdef enum Ending:
    # What comes after the exchange in progress. Until that is over it can only be raised.
    GOES_ON  # the next request, on the same leg
    PARTS  # the next request, on another leg
    HANDS_OVER  # Python takes the connection over
    CLOSES  # nothing: the visitor was told that the connection ends


cdef enum LegEnd:
    LEG_KEPT  # idle, for another visitor
    LEG_CLOSED
    LEG_RESET  # it cannot be used again: an exchange was not completed


cdef enum Outcome:
    RUNNING
    FINISHED
    LOCAL_BROKE
    STREAM_BROKE
    ABORTED
    HANDED_BACK


cdef class HttpRelay(LegUser):
    cdef PumpSocket local
    cdef LingeringClose lingering_close
    cdef Py_ssize_t drain_bytes
    cdef object carrier
    cdef bint heeds
    cdef bint connection_is_shared  # requests that name their visitor may be those of several
    cdef bint traces
    cdef uint32_t stream_seen
    cdef RequestFollower request
    cdef AnswerFollower answer
    cdef Route route
    cdef Leg leg
    cdef EngineStream bound
    cdef ByteRing pending
    cdef ByteRing unsent
    cdef Py_ssize_t owed
    cdef Link wait_link
    cdef bint local_eof
    cdef bint sent_again
    cdef Ending ending
    cdef bint over
    cdef Outcome ended_as
    cdef bytes host_seen
    cdef bytes said_seen
    cdef object by_seen
    cdef bytes fields
    cdef readonly object error
    cdef readonly str problem
    cdef readonly int status
    cdef readonly int64_t requests
    cdef readonly int64_t bytes_in
    cdef readonly int64_t bytes_out
    cdef readonly int64_t content_out
    cdef readonly double phase_since
    cdef bytes about
    cdef bytes method
    cdef bytes path
    cdef double began
    cdef int64_t bytes_in_before

    cdef int read_local(self) except -1
    cdef int read_head(self) except -1
    cdef int read_body(self) except -1
    cdef Py_ssize_t pull(self, Py_ssize_t room) except -2
    cdef int put_rest(self, Py_ssize_t used, Py_ssize_t size) except -1
    cdef bint find_leg(self) except -1
    cdef bint find_route(self) except -1
    cdef bint has_login_of_another(self) noexcept
    cdef int find_fields(self) except -1
    cdef int send_request(self) except -1
    cdef Py_ssize_t take_body(self, uint8_t *out, Py_ssize_t room) except -1
    cdef int after_reading(self) except -1
    cdef Py_ssize_t frame_limit(self) except -1
    cdef bint may_send_again(self) noexcept
    cdef int note_request(self) except -1
    cdef int note_answer(self) except -1
    cdef int give_visitor(self, const uint8_t *data, Py_ssize_t size, bint owed) except -1
    cdef Py_ssize_t write_some(self, const uint8_t *data, Py_ssize_t size) except -2
    cdef int write_unsent(self) except -1
    cdef int after_answer(self) except -1
    cdef int answered(self) except -1
    cdef int drop_leg(self, LegEnd how) except -1
    cdef int send_again(self) except -1
    cdef int fail_answer(self, str problem, int status) except -1
    cdef int hand_over(self, str problem, int status) except -1
    cdef int wrap_up(self) except -1
    cdef int end(self, Outcome outcome) except -1
