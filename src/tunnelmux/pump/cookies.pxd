# The C face of what is done about cookies for other hosts, for the compiled relay.

from libc.stdint cimport uint8_t


# Looks in a Set-Cookie value, from *at* on, for the next Domain attribute that `cookies.pyi` says is
# taken out: whether there is one. It is what lies between *start*, a semicolon, and *at*.
cdef bint next_parent_domain(
    const uint8_t *p, Py_ssize_t *at, Py_ssize_t end,
    const uint8_t *host, Py_ssize_t host_size, Py_ssize_t *start,
) noexcept nogil


# Whether a Set-Cookie value names a domain: what `head_without_parent_domains` is for.
cdef bint names_domain(const uint8_t *p, Py_ssize_t size) noexcept nogil


# The next pair of a Cookie field's value, which lies from *start* to *stop*, without the blanks around
# it; *at* is where to look and then behind its semicolon. False at the end.
cdef bint next_pair(
    const uint8_t *p, Py_ssize_t *at, Py_ssize_t end, Py_ssize_t *start, Py_ssize_t *stop
) noexcept nogil


# Whether a pair of a Cookie field, or the beginning of a Set-Cookie value, is called like a cookie of
# the proxy itself.
cdef bint is_own_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Whether a pair is the cookie of a visitor who was let in.
cdef bint is_access_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Whether a pair is the cookie by which a browser comes back to a device of a group.
cdef bint is_member_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil


# Whether a Set-Cookie value would make such a cookie in some browser.
cdef bint sets_own_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil
