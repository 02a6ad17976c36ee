# The parts of a head that are left out when it is passed on.

from libc.stdint cimport uint8_t
from libc.string cimport memcpy


cdef enum:
    MAX_DROPPED = 24  # places in one head where something is left out; a head with more is declined


cdef struct Span:
    Py_ssize_t at
    Py_ssize_t end


cdef struct Spans:
    # In order and not touching each other.
    int count
    Span spans[MAX_DROPPED]


# Add a part that lies behind all others; False when there are too many.
cdef inline bint note_line(Spans *lines, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    if lines.count and lines.spans[lines.count - 1].end == at:
        lines.spans[lines.count - 1].end = end
        return True
    if lines.count == MAX_DROPPED:
        return False
    lines.spans[lines.count].at = at
    lines.spans[lines.count].end = end
    lines.count += 1
    return True


# Add a line at the place where it belongs, unless it is there. False when there are too many.
cdef inline bint add_line(Spans *lines, const Span *line) noexcept nogil:
    cdef int i = 0, j
    while i < lines.count and lines.spans[i].end <= line.at:
        i += 1
    if i < lines.count and lines.spans[i].at <= line.at:
        return True  # it is among them already
    if lines.count == MAX_DROPPED:
        return False
    for j in range(lines.count, i, -1):
        lines.spans[j] = lines.spans[j - 1]
    lines.spans[i] = line[0]
    lines.count += 1
    return True


# Write a head of `size` bytes to `out`, without the dropped parts and with `fields` (whole lines) at
# its end. `out` has room for `size + fields_size` bytes and does not overlap. Returns how many were
# written.
cdef inline Py_ssize_t rewrite(
    const uint8_t *p, Py_ssize_t size, const Spans *dropped,
    const uint8_t *fields, Py_ssize_t fields_size, uint8_t *out,
) noexcept nogil:
    cdef Py_ssize_t at = 0, used = 0
    cdef int i
    for i in range(dropped.count):
        memcpy(out + used, p + at, dropped.spans[i].at - at)
        used += dropped.spans[i].at - at
        at = dropped.spans[i].end
    memcpy(out + used, p + at, size - 2 - at)
    used += size - 2 - at
    if fields_size > 0:
        memcpy(out + used, fields, fields_size)
        used += fields_size
    out[used] = 0x0D
    out[used + 1] = 0x0A
    return used + 2
