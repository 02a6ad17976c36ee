# The C functions of `cookies`, for the compiled relay.

from libc.stdint cimport uint8_t


# Finds the next Domain attribute of a Set-Cookie value, from *at* on, that must be taken out (see
# `cookies.pyi`). True when there is one: it lies between *start*, a semicolon, and *at*.
cdef bint next_parent_domain(
    const uint8_t *p, Py_ssize_t *at, Py_ssize_t end,
    const uint8_t *host, Py_ssize_t host_size, Py_ssize_t *start,
) noexcept nogil


# Whether a Set-Cookie value names a domain, so that `head_without_parent_domains` has to look at it.
cdef bint names_domain(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Finds the next pair of a Cookie field's value, from *at* on: it lies from *start* to *stop*, without
# the blanks around it, and *at* moves behind its semicolon. False at the end.
cdef bint next_pair(
    const uint8_t *p, Py_ssize_t *at, Py_ssize_t end, Py_ssize_t *start, Py_ssize_t *stop
) noexcept nogil


# Whether a pair of a Cookie field, or the beginning of a Set-Cookie value, has the name of one of the
# proxy's own cookies.
cdef bint is_own_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Whether a pair is the cookie by which the proxy knows a visitor whom it admitted.
cdef bint is_access_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Whether a pair is the cookie by which a browser comes back to a device of a group.
cdef bint is_member_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Whether a Set-Cookie value would make such a cookie in some browser.
cdef bint sets_own_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil
