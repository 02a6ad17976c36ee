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
