"""Cookies that a device must not set or see. The docstrings are in `cookies.pyi`.

Like a browser, this cuts the value at every semicolon, in quotes or not (RFC 6265 5.2).
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp

cdef enum:
    ACCESS_SIZE = 23  # bytes of b"__Host-tunnelmux-access" and b"__Host-tunnelmux-member"
    PLAIN_SIZE = 20  # bytes of b"tunnelmux-dev-access" and b"tunnelmux-dev-member"
    OWN_SIZE = 16  # bytes of b"__host-tunnelmux"
    OWN_PLAIN_SIZE = 13  # bytes of b"tunnelmux-dev"


cdef inline uint8_t lower(uint8_t byte) noexcept nogil:
    return byte + 0x20 if c"A" <= byte <= c"Z" else byte


cdef inline bint is_blank(uint8_t byte) noexcept nogil:
    return byte <= 0x20


cdef inline bint is_plain(uint8_t byte) noexcept nogil:
    byte = lower(byte)
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
    """Whether a Domain attribute with this value has to be taken out."""
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
        if lower(p[i]) != lower(host[host_size - size + i]):
            return False
    return True


cdef bint is_domain(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    cdef const char *name = b"domain"
    cdef Py_ssize_t i
    if size != 6:
        return False
    for i in range(6):
        if lower(p[i]) != <uint8_t>name[i]:
            return False
    return True


cdef bint names_domain(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(size - 5):
        if lower(p[at]) == c"d" and is_domain(p + at, 6):
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


cdef bint next_pair(
    const uint8_t *p, Py_ssize_t *at, Py_ssize_t end, Py_ssize_t *start, Py_ssize_t *stop
) noexcept nogil:
    cdef const uint8_t *found
    cdef Py_ssize_t first = at[0], last
    if first >= end:
        return False
    found = <const uint8_t *>memchr(p + first, c";", end - first)
    last = found - p if found != NULL else end
    at[0] = last + 1
    while first < last and is_blank(p[first]):
        first += 1
    while last > first and is_blank(p[last - 1]):
        last -= 1
    start[0], stop[0] = first, last
    return True


cdef bint begins_ignoring_case(
    const uint8_t *p, Py_ssize_t size, const char *name, Py_ssize_t name_size
) noexcept nogil:
    """Whether these bytes begin with *name*, in any case. *name* itself is in lower case."""
    cdef Py_ssize_t i
    if size < name_size:
        return False
    for i in range(name_size):
        if lower(p[i]) != <uint8_t>name[i]:
            return False
    return True


cdef bint is_own_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    return begins_ignoring_case(p, size, b"__host-tunnelmux", OWN_SIZE) or begins_ignoring_case(
        p, size, b"tunnelmux-dev", OWN_PLAIN_SIZE
    )


cdef bint is_called(
    const uint8_t *p, Py_ssize_t size, const char *name, Py_ssize_t name_size
) noexcept nogil:
    return size > name_size and p[name_size] == c"=" and memcmp(p, name, name_size) == 0


cdef bint is_access_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    return is_called(p, size, b"__Host-tunnelmux-access", ACCESS_SIZE) or is_called(
        p, size, b"tunnelmux-dev-access", PLAIN_SIZE
    )


cdef bint is_member_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    return is_called(p, size, b"__Host-tunnelmux-member", ACCESS_SIZE) or is_called(
        p, size, b"tunnelmux-dev-member", PLAIN_SIZE
    )


cdef bint sets_own_cookie(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    # "=name=value" has no name, and some browsers send it as "name=value".
    cdef Py_ssize_t at = 0
    while at < size and (is_blank(p[at]) or p[at] == c"="):
        at += 1
    return is_own_cookie(p + at, size - at)


def split_own_cookies(bytes value not None):
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(value)
    cdef Py_ssize_t at = 0, start = 0, stop = 0
    cdef list own = [], others = []
    while next_pair(p, &at, len(value), &start, &stop):
        (own if is_own_cookie(p + start, stop - start) else others).append(value[start:stop])
    return (b"; ".join(others) if own else value), own


def is_own_set_cookie(bytes value not None):
    return sets_own_cookie(<const uint8_t *>PyBytes_AS_STRING(value), len(value))


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


def head_without_own_cookies(bytes head not None):
    return b"\r\n".join([
        line
        for line in head.split(b"\r\n")
        if line[:11].lower() != b"set-cookie:" or not is_own_set_cookie(line[11:])
    ])


_CLEARED_OF_ONE_ORIGIN = frozenset({
    b'"cache"', b'"clientHints"', b'"executionContexts"', b'"prefetchCache"', b'"prerenderCache"',
    b'"storage"',
})


def clearing_only_own(bytes value not None):
    cdef list members = [member.strip(b" \t") for member in value.split(b",")]
    cdef list kept = [member for member in members if member in _CLEARED_OF_ONE_ORIGIN]
    if len(kept) == len(members):
        return value
    if b'"*"' in members:
        kept = [b'"cache"', b'"executionContexts"', b'"storage"']
    return b", ".join(kept)


def head_clearing_only_own(bytes head not None):
    cdef list lines = []
    cdef bytes line, value, held
    for line in head.split(b"\r\n"):
        if line[:16].lower() == b"clear-site-data:":
            value = line[16:]
            held = clearing_only_own(value)
            if not held:
                continue
            if held is not value:
                line = line[:16] + b" " + held
        lines.append(line)
    return b"\r\n".join(lines)
