# The C face of the framing, for the tunnel: it reads frames where they lie and writes their heads into
# a gap before the payload.

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef enum:
    MAX_FRAME_HEAD = 14  # two bytes, eight of length, four of mask (RFC 6455 section 5.2)
    MAX_CONTROL = 125  # bytes of payload in a control frame (section 5.5)
    MAX_CONTROL_FRAME = 131  # the same with its head, which is short


cdef enum Kind:
    PAYLOAD  # of a binary message
    CONTROL
    SKIPPED  # of a text message: skipped, so that a Close behind it is still seen


cdef void xor_copy(
    uint8_t *out, const uint8_t *data, Py_ssize_t size, const uint8_t *mask, Py_ssize_t phase
) noexcept nogil

cdef Py_ssize_t write_frame_head(
    uint8_t *end, Py_ssize_t size, const uint8_t *mask
) noexcept nogil


cdef class FrameReader:
    cdef readonly bint masked
    cdef uint8_t head[14]
    cdef Py_ssize_t head_have
    cdef Py_ssize_t head_need
    cdef Kind kind
    cdef uint8_t opcode
    cdef uint64_t left
    cdef uint8_t mask[4]
    cdef Py_ssize_t phase
    cdef readonly bint in_message
    cdef bint in_text
    cdef uint8_t part[MAX_CONTROL_FRAME]
    cdef Py_ssize_t part_size
    cdef uint8_t ping[MAX_CONTROL_FRAME]
    cdef Py_ssize_t ping_size
    cdef uint8_t pong[MAX_CONTROL_FRAME]
    cdef Py_ssize_t pong_size
    cdef Py_ssize_t closing_size
    cdef uint8_t close_payload[MAX_CONTROL]
    cdef Py_ssize_t close_size
    cdef readonly object close
    cdef readonly object error
    cdef bint lost
    cdef Py_ssize_t given
    cdef readonly int64_t steps

    cdef Py_ssize_t split(self, const uint8_t *data, Py_ssize_t size, uint8_t *out) except -1
    cdef bint goes_on(self) noexcept
    cdef bint has_control_(self) noexcept
    cdef Py_ssize_t take_head(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef Py_ssize_t take_body(self, const uint8_t *data, Py_ssize_t size, uint8_t *out) except -1
    cdef int fail(self, int code, str sentence) except -1
    cdef int check_head(self) except -1
    cdef int begin_frame(self) except -1
    cdef int end_frame(self) except -1
