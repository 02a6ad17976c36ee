# The C face of the head scanner, for the compiled relay. `head.pyi` says what is accepted.

from libc.stdint cimport int64_t, uint8_t

from tunnelmux.pump.spans cimport Span, Spans


cdef enum Verdict:
    INCOMPLETE  # the blank line has not come, and nothing is wrong so far
    ACCEPTED
    DECLINED  # ambiguous: h11 has to read it; the shape means nothing


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
    # Zeroed by the caller, then given to `scan_request` each time there is more of the head.
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
    Span access  # the value of Tunnelmux-Access, the token of a program
    Span login  # the value of Authorization
    Span login_line  # its whole line, for `drop_login`
    Span cookie  # the pair that is the cookie of a visitor who was let in
    Span member  # the pair that names a device of a group, the first one
    bint from_page  # a browser says something of the page that made it send this
    bint from_here  # and that it is no other site's
    int64_t content_length  # bytes of body; 0 also when there is none, or `chunked`
    bint chunked
    bint is_head
    bint closes  # the sender has no request after this one
    bint binds  # it logs in, and the login belongs to the connection
    Spans dropped  # what the rewritten head leaves out: whole lines, and the proxy's own cookies
    Spans said  # the dropped lines that are forwarding fields


cdef struct ResponseShape:
    Progress progress
    Py_ssize_t head_size
    int status  # 100 to 599, without 101; below 200 another head follows
    int64_t content_length  # bytes of body; 0 when `bodiless`; -1 when `chunked` or `until_end`
    bint chunked
    bint until_end  # the body ends when the connection does
    bint bodiless  # 1xx, 204, 304, or the answer to HEAD
    bint announces  # bodiless, it names a length or chunks: some targets send them all the same
    bint closes  # the sender ends the connection after this message
    bint is_old  # written as HTTP/1.0
    bint has_hop  # has a field for this hop only, which must not be passed on
    bint sets_domain  # one of its cookies names a domain
    bint clears  # it has Clear-Site-Data
    bint sets_own  # it would set one of the proxy's own cookies
    bint binds  # it is part of a login that belongs to the connection
    Spans dropped


# Both scan a head that begins at `p`, of which `size` bytes have come. They go on where they stopped
# the last time. A head with more than `max_fields` fields is declined.
cdef Verdict scan_request(
    const uint8_t *p, Py_ssize_t size, int max_fields, RequestShape *shape
) noexcept nogil

cdef Verdict scan_response(
    const uint8_t *p, Py_ssize_t size, int max_fields, bint to_head, ResponseShape *shape
) noexcept nogil

# Where a head ends, valid or not, or -1; `looked` is 0 at first.
cdef Py_ssize_t find_head_end(
    const uint8_t *p, Py_ssize_t size, Py_ssize_t *looked, int64_t *steps
) noexcept nogil

# Write the accepted head to `out`, with `fields` (whole lines with their CRLF) behind its own. `out`
# has room for head_size + fields_size bytes and does not overlap. Returns how many were written.
cdef Py_ssize_t rewrite_request(
    const uint8_t *p, const RequestShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil

# Leave Authorization out as well: it was meant for the proxy. False when `dropped` has no place left.
# A second call does no harm.
cdef bint drop_login(RequestShape *shape) noexcept nogil

# The same for a response, written as HTTP/1.1 and without Connection: a caller that closes says so
# in `fields`.
cdef Py_ssize_t rewrite_response(
    const uint8_t *p, const ResponseShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil
