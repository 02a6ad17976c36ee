"""Set-Cookie fields that reach beyond their host. The docstrings are in `cookies.pyi`.

A browser cuts the value at every semicolon, quotes or not (RFC 6265 5.2), and so does this.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.string cimport memchr


cdef inline uint8_t small(uint8_t byte) noexcept nogil:
    return byte + 0x20 if c"A" <= byte <= c"Z" else byte


cdef inline bint is_blank(uint8_t byte) noexcept nogil:
    return byte <= 0x20


cdef inline bint is_plain(uint8_t byte) noexcept nogil:
    byte = small(byte)
    return c"a" <= byte <= c"z" or c"0" <= byte <= c"9" or byte == c"-" or byte == c"."


cdef Py_ssize_t name_size(const uint8_t *host, Py_ssize_t size) noexcept nogil:
    """How many bytes of a Host field's value are the name: without a port and a root dot."""
    cdef const uint8_t *found
    if size and host[0] != c"[":
        found = <const uint8_t *>memchr(host, c":", size)
        if found != NULL:
            size = found - host
    if size and host[size - 1] == c".":
        size -= 1
    return size


cdef bint is_above(
    const uint8_t *p, Py_ssize_t size, const uint8_t *host, Py_ssize_t host_size
) noexcept nogil:
    """Whether a Domain attribute of this value is taken out."""
    cdef Py_ssize_t i
    while size and p[0] == c".":
        p += 1
        size -= 1
    if size == 0:
        return False  # means nothing to a browser
    for i in range(size):
        if not is_plain(p[i]):
            return True
    if p[size - 1] == c".":
        size -= 1
    host_size = name_size(host, host_size)
    if size >= host_size or host[host_size - size - 1] != c".":
        return False
    for i in range(size):
        if small(p[i]) != small(host[host_size - size + i]):
            return False
    return True


cdef bint is_domain(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    cdef const char *name = b"domain"
    cdef Py_ssize_t i
    if size != 6:
        return False
    for i in range(6):
        if small(p[i]) != <uint8_t>name[i]:
            return False
    return True


cdef bint names_domain(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(size - 5):
        if small(p[at]) == c"d" and is_domain(p + at, 6):
            return True
    return False


cdef bint next_parent_domain(
    const uint8_t *p, Py_ssize_t *at, Py_ssize_t end,
    const uint8_t *host, Py_ssize_t host_size, Py_ssize_t *start,
) noexcept nogil:
    cdef const uint8_t *found
    cdef Py_ssize_t here, stop, name_end, value_end
    while at[0] < end:
        found = <const uint8_t *>memchr(p + at[0], c";", end - at[0])
        if found == NULL:
            at[0] = end
            return False
        start[0] = found - p
        here = start[0] + 1
        found = <const uint8_t *>memchr(p + here, c";", end - here)
        stop = found - p if found != NULL else end
        at[0] = stop
        while here < stop and is_blank(p[here]):
            here += 1
        found = <const uint8_t *>memchr(p + here, c"=", stop - here)
        if found == NULL:
            continue
        name_end = found - p
        value_end = stop
        stop = name_end + 1
        while name_end > here and is_blank(p[name_end - 1]):
            name_end -= 1
        while stop < value_end and is_blank(p[stop]):
            stop += 1
        while value_end > stop and is_blank(p[value_end - 1]):
            value_end -= 1
        if is_domain(p + here, name_end - here) and is_above(
            p + stop, value_end - stop, host, host_size
        ):
            return True
    return False


def without_parent_domains(bytes value not None, bytes host not None):
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(value)
    cdef Py_ssize_t at = 0, kept = 0, start = 0
    cdef list parts = []
    while next_parent_domain(
        p, &at, len(value), <const uint8_t *>PyBytes_AS_STRING(host), len(host), &start
    ):
        parts.append(value[kept:start])
        kept = at
    if not parts:
        return value
    parts.append(value[kept:])
    return b"".join(parts)


def head_without_parent_domains(bytes head not None, bytes host not None):
    cdef list lines = head.split(b"\r\n")
    cdef bytes line
    cdef Py_ssize_t i
    for i in range(len(lines)):
        line = lines[i]
        if line[:11].lower() == b"set-cookie:":
            lines[i] = line[:11] + without_parent_domains(line[11:], host)
    return b"\r\n".join(lines)
