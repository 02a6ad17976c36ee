# The C face of the head scanner, for the compiled relay. `head.pyi` says what is accepted.

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef enum:
    MAX_DROPPED = 12  # places in one head where fields are left out; a head with more is declined
    MAX_EXTENSION = 64  # bytes of a chunk's size line after its digits


cdef enum Verdict:
    INCOMPLETE  # the blank line has not come, and nothing is wrong so far
    ACCEPTED
    DECLINED  # not unambiguous: for h11 to judge; the shape means nothing


cdef struct Span:
    Py_ssize_t at
    Py_ssize_t end


cdef struct Dropped:
    # The lines that a rewritten head is without, in order and not touching each other.
    int count
    Span spans[MAX_DROPPED]


cdef struct RequestShape:
    Py_ssize_t head_size  # through the blank line
    Py_ssize_t line_size  # of the request line, with its CRLF
    Py_ssize_t method_size  # the method begins at 0
    Py_ssize_t target_at
    Py_ssize_t target_size
    Py_ssize_t path_size  # of the target without its query, for logs
    int64_t content_length  # bytes of body; 0 also when there is none, or `chunked`
    bint chunked
    bint is_head
    bint closes  # the sender has no request after this one; that line of the head stays in it
    Dropped dropped


cdef struct ResponseShape:
    Py_ssize_t head_size
    int status  # 100 to 599, without 101; below 200 another head follows
    int64_t content_length  # bytes of body; 0 when `bodiless`; -1 when `chunked` or `until_end`
    bint chunked
    bint until_end  # the body ends when the connection does
    bint bodiless  # 1xx, 204, 304, or the answer to HEAD
    bint closes  # the sender ends the connection after this message
    bint is_old  # written as HTTP/1.0
    bint has_hop  # says something that must not be passed on as it is
    bint sets_domain  # a cookie of it names a domain
    Dropped dropped


cdef struct ChunkState:
    # All zero at the beginning of a body.
    uint64_t left  # content bytes of this chunk still to come
    int step
    int digits
    int extension
    bint padded  # set by the caller: blanks after a chunk's size are accepted, as h11 does
    bint done
    bint broken  # and nothing more is read


# `host` is the Host value of the connection's first request, which h11 accepted; a request that
# has another one, or none, is declined.
cdef Verdict scan_request(
    const uint8_t *p, Py_ssize_t size, const uint8_t *host, Py_ssize_t host_size,
    RequestShape *shape,
) noexcept nogil

# The accepted head with `fields`, whole lines with their CRLF, behind the remaining ones. `out` has
# room for head_size + fields_size bytes and does not overlap; answers how many were written.
cdef Py_ssize_t rewrite_request(
    const uint8_t *p, const RequestShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil

cdef Verdict scan_response(
    const uint8_t *p, Py_ssize_t size, bint to_head, ResponseShape *shape
) noexcept nogil

# The same for a response, written as HTTP/1.1 and without Connection: a caller that closes says so
# in `fields`.
cdef Py_ssize_t rewrite_response(
    const uint8_t *p, const ResponseShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil

# How many of these bytes belong to the body: all while it goes on, fewer when it ended within
# (`done`) or when the next one breaks it (`broken`).
cdef Py_ssize_t scan_chunked(ChunkState *state, const uint8_t *p, Py_ssize_t size) noexcept nogil
