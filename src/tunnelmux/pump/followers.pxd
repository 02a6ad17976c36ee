# The C face of the followers of one HTTP connection's two directions.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.pump.chunks cimport ChunkState
from tunnelmux.pump.head cimport RequestShape, ResponseShape
from tunnelmux.pump.spans cimport Span
from tunnelmux.yamux.ring cimport ByteRing


cdef enum RequestState:
    REQUEST_IDLE  # waits for the next request's first byte
    REQUEST_HEAD  # part of its head is kept
    REQUEST_READY  # all of its head is kept, and waits to be sent
    REQUEST_LENGTH
    REQUEST_CHUNKS
    REQUEST_TRAILERS
    REQUEST_DONE  # all of it was sent; it waits for the end of its answer
    REQUEST_DECLINED  # the scanner does not accept the head: h11 has to read the kept bytes
    REQUEST_BROKEN  # the framing of its body is malformed
    REQUEST_STATES


cdef enum RequestEvent:
    HEAD_BEGAN
    HEAD_READ
    HEAD_DECLINED
    SENT_WITHOUT_BODY
    SENT_WITH_LENGTH
    SENT_WITH_CHUNKS
    TRAILERS_BEGAN
    BODY_READ
    BODY_BROKE
    SEND_AGAIN
    ANSWERED
    REQUEST_EVENTS


cdef enum AnswerState:
    ANSWER_NONE  # no request waits for one
    ANSWER_HEAD
    ANSWER_DOUBT  # the scanner did not accept its head: it is gathered for the judge
    ANSWER_LENGTH
    ANSWER_CHUNKS
    ANSWER_TRAILERS
    ANSWER_UNTIL_END
    ANSWER_DONE
    ANSWER_MISSING  # the connection ended without a byte of it
    ANSWER_REFUSED  # its head cannot be passed on, or is incomplete: `problem` says why
    ANSWER_BROKEN  # its body ended too early, or its framing is malformed
    ANSWER_UNASKED  # bytes came that belong to no answer
    ANSWER_STATES


cdef enum AnswerEvent:
    ASKED
    INTERIM_READ
    HEAD_DOUBTED
    HEAD_REFUSED
    FINAL_WITHOUT_BODY
    FINAL_WITH_LENGTH
    FINAL_WITH_CHUNKS
    FINAL_UNTIL_END
    ANSWER_TRAILERS_BEGAN
    ANSWER_READ
    ANSWER_BROKE
    ENDED
    ENDED_WITHIN_HEAD
    MORE_CAME
    TAKEN
    ANSWER_EVENTS


cdef enum Gives:
    # What is passed on for the bytes that a follower took.
    GIVES_NOTHING
    GIVES_SAME  # the same bytes
    GIVES_MADE  # `made` in their place


cdef class RequestFollower:
    cdef readonly object judge
    cdef Py_ssize_t max_head
    cdef int max_fields
    cdef RequestState state_
    cdef RequestShape shape
    cdef ByteRing kept
    cdef Py_ssize_t trailers_looked
    cdef int64_t trailers_steps
    cdef int64_t left
    cdef ChunkState chunks
    cdef Gives gives
    cdef bytes made
    cdef readonly str problem

    cdef int move(self, RequestEvent event) except -1
    cdef Py_ssize_t take(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t take_head(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t take_trailers(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef bytes said(self)
    cdef bint names_visitor(self) noexcept
    cdef bytes span(self, Span span)
    cdef bint is_called(self, const char *method, Py_ssize_t size) noexcept
    cdef bint may_repeat(self) noexcept
    cdef bint in_body(self) noexcept
    cdef Py_ssize_t run_left(self) noexcept
    cdef int skip_run(self, Py_ssize_t size) except -1
    cdef bytes text(self, Py_ssize_t at, Py_ssize_t end)
    cdef Py_ssize_t write_head(
        self, const uint8_t *fields, Py_ssize_t fields_size, uint8_t *out
    ) except -1
    cdef int sent(self, bint keep) except -1
    cdef int answered(self) except -1


cdef class AnswerFollower:
    cdef readonly object judge
    cdef Py_ssize_t max_head
    cdef int max_fields
    cdef AnswerState state_
    cdef ResponseShape shape
    cdef ByteRing kept
    cdef Py_ssize_t looked
    cdef int64_t more_steps
    cdef int max_interims
    cdef int64_t interims  # interim heads of this answer within the minute that began then
    cdef int64_t interim_bytes
    cdef double interims_since
    cdef int64_t left
    cdef ChunkState chunks
    cdef bytes method
    cdef bint to_head
    cdef bint is_last
    cdef tuple cookie_hosts
    cdef readonly int status
    cdef readonly bint closes
    cdef readonly bint announces
    cdef readonly bint until_end
    cdef readonly bint binds
    cdef readonly int64_t content
    cdef Gives gives
    cdef bytes made
    cdef readonly str problem

    cdef int move(self, AnswerEvent event) except -1
    cdef int asked_(self, bytes method, bint is_last) except -1
    cdef bint is_over(self) noexcept
    cdef Py_ssize_t take(self, const uint8_t *data, Py_ssize_t size, double now) except -1
    cdef Py_ssize_t take_head(self, const uint8_t *data, Py_ssize_t size, double now) except -1
    cdef int count_interim(self, Py_ssize_t size, double now) except -1
    cdef int accept(self, const uint8_t *p, bint in_place) except -1
    cdef int consult(self, const uint8_t *p, Py_ssize_t size) except -1
    cdef int begin_body(self, bint chunked, int64_t length) except -1
    cdef bytes hold_cookies(self, bytes head)
    cdef int give_made(self, bytes made) except -1
    cdef int refuse(self, str problem) except -1
    cdef Py_ssize_t take_chunks(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t take_trailers(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int ended_(self) except -1
