# The C face of the HTTP relay.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.pump.head cimport ChunkState, RequestShape
from tunnelmux.pump.relay cimport Relay
from tunnelmux.yamux.ring cimport ByteRing


cdef enum RequestState:
    REQUEST_HEAD  # the next request's head is awaited, or part of it is here
    REQUEST_BODY
    REQUEST_DONE  # nothing more is read until it is answered


cdef enum ResponseState:
    RESPONSE_NONE  # no request waits for an answer
    RESPONSE_HEAD
    RESPONSE_BODY


cdef class HttpRelay(Relay):
    cdef bytes host
    cdef bytes fields
    cdef public bint parent_cookies
    cdef Py_ssize_t max_head
    cdef ByteRing pending
    cdef bint pending_is_new
    cdef ByteRing sent_head
    cdef ByteRing answer_head
    cdef RequestState request
    cdef int64_t request_left
    cdef bint request_chunked
    cdef ChunkState request_chunks
    cdef bint to_head
    cdef bint is_last
    cdef ResponseState response
    cdef int64_t response_left
    cdef bint response_chunked
    cdef bint response_until_end
    cdef ChunkState response_chunks
    cdef bint closes
    cdef bint parts
    cdef bytes parting_head
    cdef bint closing
    cdef bint leaving
    cdef bint stopping
    cdef readonly str problem
    cdef readonly int status
    cdef readonly int64_t content_out
    cdef readonly int64_t requests
    cdef public bytes about
    cdef bytes method
    cdef bytes path
    cdef int answer_status
    cdef double began
    cdef int64_t bytes_in_before
    cdef int64_t content_out_before
    cdef readonly double phase_since

    cdef int read_some(self) except -1
    cdef ssize_t read_behind(self, uint8_t *buffer, Py_ssize_t room) except -2
    cdef int read_body(self) except -1
    cdef Py_ssize_t frame_limit(self) except -1
    cdef Py_ssize_t use(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t begin_request(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t body_part(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int place_body(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int request_complete(self) except -1
    cdef Py_ssize_t follow(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int pass_on(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int pass_on_head(self, Py_ssize_t size) except -1
    cdef Py_ssize_t follow_head(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t follow_body(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int answered(self) except -1
    cdef int note_request(
        self, const uint8_t *data, const RequestShape *shape
    ) except -1
    cdef int stream_over(self) except -1
    cdef int hand_over(self, str problem, int status) except -1
    cdef int leave_stream(self) except -1
    cdef int take_agreement(self, const uint8_t *data, Py_ssize_t size) except -1
