# The C face of the head scanner, for the compiled relay. `head.pyi` says what is accepted.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.pump.spans cimport Span, Spans


cdef enum Verdict:
    INCOMPLETE  # the blank line has not come, and nothing is wrong so far
    ACCEPTED
    DECLINED  # not unambiguous: for h11 to judge; the shape means nothing


cdef struct Progress:
    # How far a head was scanned, so that the next look goes on from there. All zero at its beginning.
    Py_ssize_t at  # where the next line begins
    Py_ssize_t looked  # no line ends between `at` and here
    int64_t steps  # bytes looked at: at most three for each byte of the head, however it was cut
    int fields
    bint has_host
    bint has_length
    bint has_coding
    bint has_connection


cdef struct RequestShape:
    # To be zeroed, and then given to `scan_request` each time there is more of the head.
    Progress progress
    Py_ssize_t head_size  # through the blank line
    Py_ssize_t line_size  # of the request line, with its CRLF
    Py_ssize_t method_size  # the method begins at 0
    Py_ssize_t target_at
    Py_ssize_t target_size
    Py_ssize_t path_size  # of the target without its query, for logs
    Span host  # the values of these fields; 0 to 0 when there is none
    Span device
    Span service
    Span access  # of a program: the value of Tunnelmux-Access
    Span login  # the value of Authorization
    Span login_line  # its whole line, for `drop_login`
    Span cookie  # the pair that is the cookie of a visitor who was let in
    Span member  # the pair that names a device of a group, the first one
    bint from_here  # a browser says that no other site's page made it send this
    int64_t content_length  # bytes of body; 0 also when there is none, or `chunked`
    bint chunked
    bint is_head
    bint closes  # the sender has no request after this one
    bint binds  # it logs in, and the login will belong to the connection
    Spans dropped  # what the rewritten head is without: whole lines, and cookies of the proxy's own
    Spans said  # those lines of them that say who asked for what


cdef struct ResponseShape:
    Progress progress
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
    bint clears  # it would clear something at the browser
    bint sets_own  # it would set a cookie of the proxy's own
    bint binds  # it is part of a login that will belong to the connection
    Spans dropped


# Both look at a head that begins at `p` and of which `size` bytes are there, and go on from where
# they stopped the last time. A head of more than `max_fields` fields is declined.
cdef Verdict scan_request(
    const uint8_t *p, Py_ssize_t size, int max_fields, RequestShape *shape
) noexcept nogil

cdef Verdict scan_response(
    const uint8_t *p, Py_ssize_t size, int max_fields, bint to_head, ResponseShape *shape
) noexcept nogil

# Where a head ends, sound or not, or -1; `looked` is 0 at first.
cdef Py_ssize_t find_head_end(
    const uint8_t *p, Py_ssize_t size, Py_ssize_t *looked, int64_t *steps
) noexcept nogil

# The accepted head with `fields`, whole lines with their CRLF, behind the remaining ones. `out` has
# room for head_size + fields_size bytes and does not overlap; answers how many were written.
cdef Py_ssize_t rewrite_request(
    const uint8_t *p, const RequestShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil

# Leave Authorization out as well: it was for the proxy. False when that is one place too many; harmless
# twice.
cdef bint drop_login(RequestShape *shape) noexcept nogil

# The same for a response, written as HTTP/1.1 and without Connection: a caller that closes says so
# in `fields`.
cdef Py_ssize_t rewrite_response(
    const uint8_t *p, const ResponseShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil
